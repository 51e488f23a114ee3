"""Quasi-linear attention: the public functions and their registration with torch (section 3.2.2).

Shape suffixes: B users, L packed rows, S rows read per user, H heads, D width of queries and keys, E width of
values. Rows of a user are [sources ; candidates], oldest first.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor

from kernels import reference
from kernels.activations import PHI, Phi
from kernels.arguments import check_bounds, check_phi, check_queries, check_read, check_sources

Impl = Literal["auto", "reference", "triton"]


def qla(
    q_LHD: Tensor,
    k_LHD: Tensor,
    v_LHE: Tensor,
    seq_offsets: Tensor,
    num_candidates: Tensor,
    *,
    phi: Phi,
    phi_out: Phi,
    impl: Impl = "auto",
) -> Tensor:
    """Every row reads its user's sources; a candidate reads itself too, and no other candidate.

    `seq_offsets` [B + 1] int64 bounds the users' rows, the last `num_candidates` [B] of each are candidates.
    `impl`: auto is triton on CUDA, the reference elsewhere. Returns out_LHE; ValueError for shapes, types or
    names that do not fit, on a CPU for bounds that do not, too. With n = max(1, the user's own sources):

        Z = phi(K_S)^T V_S / n        O = phi(Q) phi_out(Z)        candidates add <phi(Q), phi(K)> / n * V
    """
    check_sources(k_LHD, v_LHE, seq_offsets, num_candidates)
    check_queries(q_LHD, k_LHD)
    check_phi(phi=phi, phi_out=phi_out)
    out_LHE: Tensor
    out_LHE, _ = torch.ops.vista.qla(
        q_LHD, k_LHD, v_LHE, seq_offsets, num_candidates, phi, phi_out, _resolve(impl, k_LHD)
    )
    return out_LHE


def qla_state(
    k_LHD: Tensor,
    v_LHE: Tensor,
    seq_offsets: Tensor,
    num_candidates: Tensor,
    *,
    phi: Phi,
    impl: Impl = "auto",
) -> Tensor:
    """The state that a user's sources leave: kv_BHDE = phi(K_S)^T V_S / n, in float32 at least.

    It is zero for a user without sources. Arguments and errors as for `qla`.
    """
    check_sources(k_LHD, v_LHE, seq_offsets, num_candidates)
    check_phi(phi=phi)
    kv_BHDE: Tensor = torch.ops.vista.qla_state(
        k_LHD, v_LHE, seq_offsets, num_candidates, phi, _resolve(impl, k_LHD)
    )
    return kv_BHDE


def qla_read(q_BSHD: Tensor, kv_BHDE: Tensor, *, phi: Phi, phi_out: Phi) -> Tensor:
    """What S rows of every user read from the user's state: out_BSHE = phi(Q) phi_out(Z).

    The last layer of a summariser needs only its seeds' rows: `qla_state` over all, this over the seeds.
    Errors as for `qla`.
    """
    check_read(q_BSHD, kv_BHDE)
    check_phi(phi=phi, phi_out=phi_out)
    out_BHSE = PHI[phi](q_BSHD).transpose(1, 2) @ PHI[phi_out](kv_BHDE).to(q_BSHD.dtype)
    return out_BHSE.transpose(1, 2)


def _resolve(impl: Impl, like: Tensor) -> Impl:
    if impl == "auto":
        return "triton" if like.is_cuda else "reference"
    return impl


def _forward(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, candidates: Tensor, *options: str) -> Any:
    *phis, impl = options
    check_bounds(offsets, candidates, len(k))
    return _implementation(impl).forward(q, k, v, offsets, candidates, *phis)


def _state(k: Tensor, v: Tensor, offsets: Tensor, candidates: Tensor, phi: str, impl: str) -> Any:
    check_bounds(offsets, candidates, len(k))
    return _implementation(impl).state(k, v, offsets, candidates, phi)


def _implementation(impl: str) -> ModuleType:
    if impl == "reference":
        return reference
    if impl == "triton":
        from kernels import triton_qla  # importing is free: a process without a GPU never needs triton

        return triton_qla
    raise ValueError(f"impl is {impl!r}: give 'auto', 'reference' or 'triton'")


def _setup_qla(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, seq_offsets, num_candidates, *ctx.options = inputs
    ctx.save_for_backward(q, k, v, output[1], seq_offsets, num_candidates)


def _backward_qla(ctx: Any, d_out_LHE: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    gradients = torch.ops.vista.qla_backward(d_out_LHE, *ctx.saved_tensors, *ctx.options)
    return *gradients, None, None, None, None, None


def _setup_state(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    k, v, seq_offsets, num_candidates, *ctx.options = inputs
    ctx.save_for_backward(k, v, seq_offsets, num_candidates)


def _backward_state(ctx: Any, d_kv_BHDE: Tensor) -> tuple[Tensor | None, ...]:
    gradients = torch.ops.vista.qla_state_backward(d_kv_BHDE, *ctx.saved_tensors, *ctx.options)
    return *gradients, None, None, None, None


def _no_second_derivative(ctx: Any, *gradients: Tensor) -> None:
    raise NotImplementedError(
        "qla has no second derivative: nothing that is differentiated may depend on its gradients, so leave "
        "out create_graph, or detach them"
    )


def _new_state(k: Tensor, v: Tensor, num_candidates: Tensor) -> Tensor:
    dtype = torch.promote_types(k.dtype, torch.float32)
    return k.new_empty(num_candidates.shape[0], k.shape[1], k.shape[2], v.shape[2], dtype=dtype)


_LIBRARY = torch.library.Library("vista", "DEF")  # type: ignore[no-untyped-call]
_OFFSETS = "Tensor seq_offsets, Tensor num_candidates"


def _register(schema: str, run: Callable[..., Any], fake: Callable[..., Any]) -> None:
    # Not `torch.library.custom_op`: its first call imports torch._dynamo, a second in every process.
    name = _LIBRARY.define(schema)  # type: ignore[no-untyped-call]
    _LIBRARY.impl(name, run, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
    torch.library.register_fake(f"vista::{name}", fake, lib=_LIBRARY)


_register(
    f"qla(Tensor q, Tensor k, Tensor v, {_OFFSETS}, str phi, str phi_out, str impl) -> (Tensor, Tensor)",
    _forward,
    lambda q, k, v, offsets, candidates, *_: (v.new_empty(v.shape), _new_state(k, v, candidates)),
)
_register(
    f"qla_backward(Tensor d_out, Tensor q, Tensor k, Tensor v, Tensor kv, {_OFFSETS}, str phi, str phi_out, "
    "str impl) -> (Tensor, Tensor, Tensor)",
    lambda *args: _implementation(args[-1]).backward(*args[:-1]),
    lambda d_out, q, k, v, *_: (q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)),
)
_register(
    f"qla_state(Tensor k, Tensor v, {_OFFSETS}, str phi, str impl) -> Tensor",
    _state,
    lambda k, v, offsets, candidates, *_: _new_state(k, v, candidates),
)
_register(
    f"qla_state_backward(Tensor d_kv, Tensor k, Tensor v, {_OFFSETS}, str phi, str impl) -> (Tensor, Tensor)",
    lambda *args: _implementation(args[-1]).state_backward(*args[:-1]),
    lambda d_kv, k, v, *_: (k.new_empty(k.shape), v.new_empty(v.shape)),
)
torch.library.register_autograd("vista::qla", _backward_qla, setup_context=_setup_qla, lib=_LIBRARY)
torch.library.register_autograd("vista::qla_state", _backward_state, setup_context=_setup_state, lib=_LIBRARY)
for _name in ("qla_backward", "qla_state_backward"):
    torch.library.register_autograd(f"vista::{_name}", _no_second_derivative, lib=_LIBRARY)
