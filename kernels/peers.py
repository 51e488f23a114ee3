"""What the bench compares: our ops, the ops that others would use, and the equations that both must equal.

All take packed rows of users of equal length, which is the best case of every op but ours.

Shape suffixes: B users, L packed rows, N rows of a user, H heads, D width.
"""

import importlib.util
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.pointwise import silu_attention
from kernels.quasi_linear import qla


@dataclass(frozen=True, slots=True)
class Shape:
    users: int
    rows_per_user: int
    heads: int
    width: int

    @property
    def rows(self) -> int:
        return self.users * self.rows_per_user

    def __str__(self) -> str:
        return f"{self.users:,} x {self.rows_per_user:,} rows, {self.heads} heads of {self.width}"


class Op(Protocol):
    """q_LHD, k_LHD, v_LHD, shape -> out_LHD."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, shape: Shape, /) -> Tensor: ...


def our_qla(q: Tensor, k: Tensor, v: Tensor, shape: Shape) -> Tensor:
    return qla(q, k, v, *_ragged(shape, q.device), phi="silu", phi_out="silu")


def our_silu_attention(q: Tensor, k: Tensor, v: Tensor, shape: Shape) -> Tensor:
    return silu_attention(q, k, v, *_ragged(shape, q.device), causal=False)


def sdpa(q: Tensor, k: Tensor, v: Tensor, shape: Shape) -> Tensor:
    q_BHND, k_BHND, v_BHND = (_dense(x, shape) for x in (q, k, v))
    return _packed(F.scaled_dot_product_attention(q_BHND, k_BHND, v_BHND))


def qla_equation(q: Tensor, k: Tensor, v: Tensor, shape: Shape) -> Tensor:
    """The reference's equation in two products, with nothing ragged in a compiler's way."""
    q_BHND, k_BHND, v_BHND = (_dense(x, shape) for x in (q, k, v))
    z_BHDD = F.silu(k_BHND).mT @ v_BHND / shape.rows_per_user
    return _packed(F.silu(q_BHND) @ F.silu(z_BHDD))


def silu_equation(q: Tensor, k: Tensor, v: Tensor, shape: Shape) -> Tensor:
    q_BHND, k_BHND, v_BHND = (_dense(x, shape) for x in (q, k, v))
    return _packed(F.silu(q_BHND @ k_BHND.mT) @ v_BHND / shape.rows_per_user)


def fla_chunk(q: Tensor, k: Tensor, v: Tensor, shape: Shape) -> Tensor:
    """Causal linear attention without activations, of flash-linear-attention: less than the op computes."""
    chunk: Any = importlib.import_module("fla.ops.linear_attn").chunk_linear_attn
    q_BNHD, k_BNHD, v_BNHD = (_dense(x, shape).transpose(1, 2) for x in (q, k, v))
    out_BNHD, _ = chunk(q_BNHD, k_BNHD, v_BNHD, scale=1.0, normalize=False)
    return _packed(out_BNHD.transpose(1, 2))


def peers(device: torch.device) -> tuple[dict[str, Op], list[str]]:
    """What runs here, by name, and what does not, with the reason."""
    found: dict[str, Op] = {
        "qla": our_qla,
        "sdpa": sdpa,
        "compiled": torch.compile(qla_equation),
        "silu": our_silu_attention,
    }
    if device.type != "cuda":
        return found, ["fla chunk_linear_attn: needs a GPU"]
    if importlib.util.find_spec("fla") is None:
        return found, ["fla chunk_linear_attn: fla-core is not installed"]
    return {**found, "fla": fla_chunk}, []


def inputs(
    shape: Shape, dtype: torch.dtype, device: torch.device, seed: int = 0
) -> tuple[list[Tensor], Tensor]:
    """q, k, v that want gradients, and the gradient in the output."""
    draw = torch.Generator(device).manual_seed(seed)
    size = shape.rows, shape.heads, shape.width
    q, k, v, d_out = (torch.randn(size, generator=draw, device=device, dtype=dtype) for _ in range(4))
    return [x.requires_grad_() for x in (q, k, v)], d_out


def _ragged(shape: Shape, device: torch.device) -> tuple[Tensor, Tensor]:
    users = torch.arange(shape.users + 1, device=device)
    return users * shape.rows_per_user, torch.zeros(shape.users, dtype=torch.int64, device=device)


def _dense(x: Tensor, shape: Shape) -> Tensor:
    """x_LHD -> x_BHND, the same memory."""
    return x.view(shape.users, shape.rows_per_user, *x.shape[1:]).transpose(1, 2)


def _packed(x_BHND: Tensor) -> Tensor:
    return x_BHND.transpose(1, 2).flatten(0, 1)
