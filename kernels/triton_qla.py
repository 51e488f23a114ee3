"""Quasi-linear attention in Triton: what `reference` computes, in 4 tensor passes forward and 7 backward.

Shape suffixes: B users, L packed rows, H heads, D width of queries and keys, E width of values, N chunks.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from kernels.activations import Phi
from kernels.chunks import source_count
from kernels.triton_kernels import (
    output_kernel,
    query_backward_kernel,
    reduce_kernel,
    source_backward_kernel,
    state_kernel,
)

CHUNK_ROWS = 4096
"""Fixed: it is the tree of the sum over a user's rows, so another size would change bits. A state of 64 x 64
is 1.6% of the bytes of so many half precision rows of K and V."""
PARTS, TILE = 16, 128
"""Parts and elements of the state that a step of the reduction reads."""
MAX_WIDTH = 128


def forward(
    q_LHD: Tensor,
    k_LHD: Tensor,
    v_LHE: Tensor,
    seq_offsets: Tensor,
    num_candidates: Tensor,
    phi: Phi,
    phi_out: Phi,
) -> tuple[Tensor, Tensor]:
    """As `reference.forward`."""
    kv_BHDE = state(k_LHD, v_LHE, seq_offsets, num_candidates, phi)
    q, k, v = _rows(q_LHD), _rows(k_LHD), _rows(v_LHE)
    out_LHE = v.new_empty(v.shape)
    plan = _Plan.of(seq_offsets, num_candidates, k)
    with _device_of(k):
        output_kernel[plan.grid](
            q,
            k,
            v,
            out_LHE,
            kv_BHDE,
            *plan.places,
            *_strides(q, k, v),
            **_sizes(k, v),
            PHI=phi,
            PHI_OUT=phi_out,
        )
    return out_LHE, kv_BHDE


def backward(
    d_out_LHE: Tensor,
    q_LHD: Tensor,
    k_LHD: Tensor,
    v_LHE: Tensor,
    kv_BHDE: Tensor,
    seq_offsets: Tensor,
    num_candidates: Tensor,
    phi: Phi,
    phi_out: Phi,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `reference.backward`."""
    d_out, q, k, v = _rows(d_out_LHE), _rows(q_LHD), _rows(k_LHD), _rows(v_LHE)
    dq, dk, dv = q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)
    plan, sizes = _Plan.of(seq_offsets, num_candidates, k), _sizes(k, v)
    g_BHDE, parts = torch.empty_like(kv_BHDE), plan.new_parts(kv_BHDE)
    with _device_of(k):
        query_backward_kernel[plan.grid](
            d_out, q, k, v, kv_BHDE, dq, dk, dv, g_BHDE, parts, *plan.places, plan.first_part_B,
            *_strides(d_out, q, k, v), **sizes, PHI=phi, PHI_OUT=phi_out,
        )  # fmt: skip
        _reduce(plan, parts, kv_BHDE, g_BHDE, backward=True, phi_out=phi_out)
        source_backward_kernel[plan.grid](
            k, v, g_BHDE, dk, dv, *plan.places, *_strides(k, v), **sizes, PHI=phi, ZERO_CANDIDATES=False
        )
    return dq, dk, dv


def state(k_LHD: Tensor, v_LHE: Tensor, seq_offsets: Tensor, num_candidates: Tensor, phi: Phi) -> Tensor:
    """As `reference.state`."""
    _check(k_LHD, v_LHE)
    k, v = _rows(k_LHD), _rows(v_LHE)
    kv_BHDE = k.new_empty(num_candidates.numel(), k.shape[1], k.shape[2], v.shape[2], dtype=torch.float32)
    plan = _Plan.of(seq_offsets, num_candidates, k)
    parts = plan.new_parts(kv_BHDE)
    with _device_of(k):
        state_kernel[plan.grid](
            k, v, kv_BHDE, parts, *plan.places, plan.first_part_B, *_strides(k, v), **_sizes(k, v), PHI=phi
        )
        _reduce(plan, parts, kv_BHDE, kv_BHDE, backward=False, phi_out="identity")
    return kv_BHDE


def state_backward(
    d_kv_BHDE: Tensor, k_LHD: Tensor, v_LHE: Tensor, seq_offsets: Tensor, num_candidates: Tensor, phi: Phi
) -> tuple[Tensor, Tensor]:
    """As `reference.state_backward`."""
    k, v = _rows(k_LHD), _rows(v_LHE)
    dk, dv = k.new_empty(k.shape), v.new_empty(v.shape)
    g_BHDE = d_kv_BHDE / source_count(seq_offsets, num_candidates)[:, None, None, None]
    plan = _Plan.of(seq_offsets, num_candidates, k)
    with _device_of(k):
        source_backward_kernel[plan.grid](
            k, v, g_BHDE.contiguous(), dk, dv, *plan.places, *_strides(k, v), **_sizes(k, v), PHI=phi,
            ZERO_CANDIDATES=True,
        )  # fmt: skip
    return dk, dv


class _Plan(NamedTuple):
    """Which chunk belongs to whom, found on the device: the host knows only how many there can be."""

    seq_offsets: Tensor
    num_candidates: Tensor
    chunk_user_N: Tensor  # B behind the last chunk
    first_chunk_B: Tensor
    first_part_B: Tensor  # users of one chunk need no part
    heads: int
    max_parts: int

    @classmethod
    def of(cls, seq_offsets: Tensor, num_candidates: Tensor, k_LHD: Tensor) -> "_Plan":
        rows, users = k_LHD.shape[0], num_candidates.numel()
        chunks_B = (seq_offsets.diff() + CHUNK_ROWS - 1) // CHUNK_ROWS
        end_B = chunks_B.cumsum(0)
        max_chunks = torch.arange(rows // CHUNK_ROWS + users, device=k_LHD.device)
        chunk_user_N = torch.searchsorted(end_B, max_chunks, right=True)
        parts_B = chunks_B * (chunks_B > 1)
        first_part_B = parts_B.cumsum(0) - parts_B
        return cls(
            seq_offsets=seq_offsets.contiguous(),
            num_candidates=num_candidates.contiguous(),
            chunk_user_N=chunk_user_N,
            first_chunk_B=end_B - chunks_B,
            first_part_B=first_part_B,
            heads=k_LHD.shape[1],
            max_parts=2 * rows // CHUNK_ROWS,
        )

    @property
    def grid(self) -> tuple[int]:
        return (self.chunk_user_N.numel() * self.heads,)

    @property
    def places(self) -> tuple[Tensor | int, ...]:
        users = self.num_candidates.numel()
        return self.seq_offsets, self.num_candidates, users, self.chunk_user_N, self.first_chunk_B

    def new_parts(self, kv_BHDE: Tensor) -> Tensor:
        return kv_BHDE.new_empty(self.max_parts, *kv_BHDE.shape[1:])


def _reduce(
    plan: _Plan, parts: Tensor, kv_BHDE: Tensor, to_BHDE: Tensor, *, backward: bool, phi_out: Phi
) -> None:
    users, heads, *widths = kv_BHDE.shape
    state_size = widths[0] * widths[1]
    reduce_kernel[(users * heads, triton.cdiv(state_size, TILE))](
        parts, kv_BHDE, to_BHDE, plan.seq_offsets, plan.num_candidates, plan.first_part_B, H=heads,
        STATE=state_size, CHUNK=CHUNK_ROWS, PARTS=PARTS, TILE=TILE, BACKWARD=backward, PHI_OUT=phi_out,
    )  # fmt: skip


def _device_of(x: Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current device."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def _check(k_LHD: Tensor, v_LHE: Tensor) -> None:
    interpreted = triton.knobs.runtime.interpret
    if not k_LHD.is_cuda and not interpreted:
        raise ValueError(
            f"impl='triton' got tensors on {k_LHD.device}: move them to a GPU, set TRITON_INTERPRET=1 before "
            "the first import of triton, or use impl='reference'"
        )
    types = [torch.float16, torch.float32] if interpreted else [torch.float16, torch.bfloat16, torch.float32]
    if k_LHD.dtype not in types:
        raise ValueError(f"impl='triton' got {k_LHD.dtype}: give one of {types}, or use impl='reference'")
    if max(k_LHD.shape[2], v_LHE.shape[2]) > MAX_WIDTH:
        raise ValueError(
            f"heads of width {k_LHD.shape[2]} and {v_LHE.shape[2]}: at most {MAX_WIDTH}; use more heads, or "
            "impl='reference'"
        )


def _rows(x_LHD: Tensor) -> Tensor:
    """As it lies, be it a slice of a fused projection; only each row of a head must be in one piece."""
    return x_LHD if x_LHD.stride(2) == 1 else x_LHD.contiguous()


def _strides(*tensors: Tensor) -> list[int]:
    return [stride for x in tensors for stride in x.stride()[:2]]


def block_rows(dtype: torch.dtype, padded_width: int) -> int:
    """Rows that a step of a kernel holds: as many as leave its accumulators in registers."""
    if dtype == torch.float32:
        return max(16, 1024 // padded_width)
    return (4096 if padded_width <= 64 else 2048) // padded_width


def _sizes(k_LHD: Tensor, v_LHE: Tensor) -> dict[str, Any]:
    _, heads, width = k_LHD.shape
    value_width = v_LHE.shape[2]
    half = k_LHD.dtype != torch.float32
    padded = [max(16, triton.next_power_of_2(x)) for x in (width, value_width)]
    return {
        "H": heads, "D": width, "DP": padded[0], "E": value_width, "EP": padded[1], "CHUNK": CHUNK_ROWS,
        "BLOCK": block_rows(k_LHD.dtype, max(padded)),
        "TANH": half and k_LHD.is_cuda and torch.version.hip is None,
    }  # fmt: skip
