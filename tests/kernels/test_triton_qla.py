"""The Triton kernels against the reference in float64: on a GPU, or in Triton's interpreter."""

import random
from collections.abc import Iterator
from typing import get_args

import pytest
import torch
from ragged import inputs
from torch import Tensor

from kernels import Phi, qla, qla_state
from kernels.triton_qla import CHUNK_ROWS

PHIS: tuple[Phi, ...] = get_args(Phi)

# ||error|| / ||reference||: half types round every operand and output (2^-9 for bfloat16) and add them up in
# float32; float32 differs from the reference by rounding and by the order of summation.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 5e-3}
# The interpreter multiplies bfloat16 wrongly: there it is refused.
DTYPES = list(TOLERANCE) if torch.cuda.is_available() else [torch.float32, torch.float16]

Ragged = tuple[Tensor, Tensor]


@pytest.fixture(autouse=True)
def _poisoned_memory() -> Iterator[None]:
    """What a kernel forgets to write is NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def _ragged(users: list[tuple[int, int]], device: str) -> Ragged:
    sizes = torch.tensor([sources + candidates for sources, candidates in users])
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)])
    return offsets.to(device), torch.tensor([candidates for _, candidates in users]).to(device)


def _draw(
    rows: int, heads: int, widths: tuple[int, ...], dtype: torch.dtype, device: str, seed: int
) -> list[Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, heads, width, generator=draw).to(device, dtype) for width in widths]


def _with_gradients(
    tensors: list[Tensor], d_out: Tensor, ragged: Ragged, phi: Phi, phi_out: Phi, impl: str
) -> list[Tensor]:
    q, k, v = (x.detach().requires_grad_() for x in tensors)
    out = qla(q, k, v, *ragged, phi=phi, phi_out=phi_out, impl=impl)
    return [out.detach(), *torch.autograd.grad(out, (q, k, v), d_out)]


def _assert_equals_the_reference(
    users: list[tuple[int, int]], heads: int, width: int, value_width: int, phi: Phi, phi_out: Phi,
    dtype: torch.dtype, device: str, seed: int,
) -> None:  # fmt: skip
    ragged = _ragged(users, device)
    *qkv, d_out = _draw(
        int(ragged[0][-1]), heads, (width, width, value_width, value_width), dtype, device, seed
    )
    found = _with_gradients(qkv, d_out, ragged, phi, phi_out, "triton")
    wanted = _with_gradients([x.double() for x in qkv], d_out.double(), ragged, phi, phi_out, "reference")
    for name, x, expected in zip(("out", "dq", "dk", "dv"), found, wanted, strict=True):
        error = (x.double() - expected).norm() / expected.norm().clamp(min=1e-30)
        assert error <= TOLERANCE[dtype], f"{name}: {error:.1e} for {users}"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("seed", range(20))
def test_equals_the_reference_on_random_draws(seed: int, dtype: torch.dtype, device: str) -> None:
    draw = random.Random(seed)
    lengths = [0, 1, 15, 16, 17, 127, 128, 129, 260]
    users = [(draw.choice(lengths), draw.choice([0, 0, 1, 17])) for _ in range(draw.randint(1, 4))]
    heads, width, value_width = draw.randint(1, 2), draw.choice([3, 8, 16, 32]), draw.choice([8, 16, 20])
    phi, phi_out = draw.choice(PHIS), draw.choice(PHIS)
    _assert_equals_the_reference(users, heads, width, value_width, phi, phi_out, dtype, device, seed)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "users",
    [
        [(CHUNK_ROWS - 1, 1), (0, 0), (CHUNK_ROWS, 0), (1, 0)],
        [(CHUNK_ROWS, 1), (0, 2), (2 * CHUNK_ROWS + 5, 3), (CHUNK_ROWS - 20, 50)],
    ],
)
def test_equals_the_reference_across_chunks(
    users: list[tuple[int, int]], dtype: torch.dtype, device: str
) -> None:
    _assert_equals_the_reference(users, 1, 8, 16, "shifted_elu", "silu", dtype, device, seed=0)


@pytest.mark.parametrize("phi", PHIS)
@pytest.mark.parametrize("phi_out", PHIS)
def test_every_pair_of_activations(phi: Phi, phi_out: Phi, device: str) -> None:
    _assert_equals_the_reference(
        [(40, 3), (0, 2), (7, 0)], 2, 8, 8, phi, phi_out, torch.float32, device, seed=1
    )


@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_wide_heads(width: int, dtype: torch.dtype, device: str) -> None:
    _assert_equals_the_reference([(150, 2), (30, 0)], 2, width, width, "silu", "silu", dtype, device, seed=2)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_reads_slices_of_a_fused_projection(dtype: torch.dtype, device: str) -> None:
    ragged = _ragged([(130, 2), (0, 0), (5, 1)], device)
    rows = int(ragged[0][-1])
    (fused,) = _draw(rows, 3 * 2, (8,), dtype, device, seed=3)
    qkv = list(fused.view(rows, 3, 2, 8).unbind(1))
    assert not qkv[0].is_contiguous()
    d_out = torch.ones((), dtype=dtype, device=device).expand(rows, 2, 8)  # what out.sum() hands back
    found = _with_gradients(qkv, d_out, ragged, "silu", "silu", "triton")
    wanted = _with_gradients(
        [x.contiguous() for x in qkv], d_out.contiguous(), ragged, "silu", "silu", "triton"
    )
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_ten_runs_are_bitwise_identical(device: str) -> None:
    ragged = _ragged([(CHUNK_ROWS + 60, 2), (33, 1)], device)
    *qkv, d_out = _draw(int(ragged[0][-1]), 1, (8, 8, 8, 8), torch.float16, device, seed=4)
    first = _with_gradients(qkv, d_out, ragged, "silu", "silu", "triton")
    for _ in range(9):
        again = _with_gradients(qkv, d_out, ragged, "silu", "silu", "triton")
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_a_user_does_not_depend_on_its_batch(device: str) -> None:
    ragged = _ragged([(70, 3), (CHUNK_ROWS + 9, 2), (5, 0)], device)
    *qkv, d_out = _draw(int(ragged[0][-1]), 1, (8, 8, 8, 8), torch.float32, device, seed=5)
    mine = slice(73, 73 + CHUNK_ROWS + 11)
    together = _with_gradients(qkv, d_out, ragged, "silu", "silu", "triton")
    alone = _with_gradients(
        [x[mine] for x in qkv], d_out[mine], _ragged([(CHUNK_ROWS + 9, 2)], device), "silu", "silu", "triton"
    )
    assert all(torch.equal(a[mine], b) for a, b in zip(together, alone, strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_state_alone(dtype: torch.dtype, device: str) -> None:
    ragged = _ragged([(60, 3), (0, 2), (0, 0), (CHUNK_ROWS + 1, 1)], device)
    rows = int(ragged[0][-1])
    results = []
    for impl, cast in (("triton", dtype), ("reference", torch.float64)):
        k, v = (x.to(cast).requires_grad_() for x in _draw(rows, 2, (8, 16), dtype, device, seed=6))
        state = qla_state(k, v, *ragged, phi="silu", impl=impl)
        (weights,) = _draw(4 * 2 * 8, 1, (16,), torch.float32, device, seed=7)
        d_state = weights.view(state.shape).to(state.dtype)
        results.append([state.detach(), *torch.autograd.grad(state, (k, v), d_state)])
    for found, wanted in zip(*results, strict=True):
        assert (found.double() - wanted).norm() <= TOLERANCE[dtype] * wanted.norm()
    assert bool((results[0][0][1:3] == 0).all())  # without sources
    assert bool((results[0][1][60:63] == 0).all())  # a candidate's key


def test_refuses_what_it_cannot_do(device: str) -> None:
    q, k, v, offsets, candidates = (x.detach().to(device) for x in inputs([(3, 1)]))
    with pytest.raises(ValueError, match=r"float64.*use impl='reference'"):
        qla(q, k, v, offsets, candidates, phi="silu", phi_out="silu", impl="triton")
    wide = torch.zeros(4, 1, 129, device=device)
    with pytest.raises(ValueError, match=r"width 129.*at most 128"):
        qla_state(wide, wide, offsets, candidates, phi="silu", impl="triton")
    if device == "cpu":
        short = torch.zeros(4, 1, 8, dtype=torch.bfloat16)
        with pytest.raises(ValueError, match="bfloat16"):
            qla_state(short, short, offsets, candidates, phi="silu", impl="triton")
