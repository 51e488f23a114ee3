"""Half inputs are summed in float32 on the CPU too: the reference against itself in float64."""

import pytest
import torch
from ragged import inputs
from torch import Tensor

from kernels import qla, qla_causal, qla_state, silu_attention

USERS = [(700, 3), (0, 2), (40, 0)]
OPS = {
    "qla": lambda q, k, v, *ragged: qla(q, k, v, *ragged, phi="silu", phi_out="silu"),
    "qla_causal": lambda q, k, v, *ragged: qla_causal(q, k, v, *ragged, phi="silu", phi_out="silu"),
    "silu_attention": lambda q, k, v, *ragged: silu_attention(q, k, v, *ragged, causal=True),
}

# Every operand and every output is rounded once, to 8 bits of fraction in bfloat16 and 11 in float16.
TOLERANCE = {torch.bfloat16: 5e-3, torch.float16: 1e-3}


def _relative(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", OPS)
def test_only_inputs_and_outputs_are_rounded(name: str, dtype: torch.dtype) -> None:
    q, k, v, *ragged = inputs(USERS)
    rounded = [x.detach().to(dtype).requires_grad_() for x in (q, k, v)]
    exact = [x.detach().double().requires_grad_() for x in rounded]
    out, expected = (OPS[name](*qkv, *ragged) for qkv in (rounded, exact))
    assert out.dtype == dtype
    assert _relative(out.detach(), expected.detach()) <= TOLERANCE[dtype]
    d_out = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    gradients = torch.autograd.grad(out, rounded, d_out)
    for found, wanted in zip(gradients, torch.autograd.grad(expected, exact, d_out.double()), strict=True):
        assert _relative(found, wanted) <= TOLERANCE[dtype]


def test_a_long_history_keeps_its_precision() -> None:
    """A bfloat16 accumulator would lose a tenth of such a sum."""
    draw = torch.Generator().manual_seed(0)
    k, v = (torch.randn(200_000, 1, 4, generator=draw).bfloat16() for _ in range(2))
    ragged = torch.tensor([0, 200_000]), torch.tensor([0])
    state = qla_state(k, v, *ragged, phi="silu")
    assert state.dtype == torch.float32
    assert _relative(state, qla_state(k.double(), v.double(), *ragged, phi="silu")) <= 1e-4  # float32 sums
