"""The reference op against a loop over users, finite differences and the gradients of kernels/README.md."""

import itertools
import math
from collections.abc import Callable
from typing import get_args

import pytest
import torch
from ragged import ACROSS_CHUNKS, NO_CANDIDATES, RAGGED, inputs
from torch import Tensor

from kernels import PHI, Phi, qla, qla_read, qla_state, reference

PHIS: tuple[Phi, ...] = get_args(Phi)
PAIRS = [*itertools.product(PHIS, ["silu"]), *itertools.product(["silu"], PHIS[1:])]


def _one_user_at_a_time(
    q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, num_candidates: Tensor, phi: Phi, phi_out: Phi
) -> Tensor:
    """Section 3.2.2 written down: a loop over users and heads, and over candidates."""
    out = torch.zeros(q.shape[0], q.shape[1], v.shape[2], dtype=q.dtype)
    f = PHI[phi]
    for user, head in itertools.product(range(offsets.numel() - 1), range(q.shape[1])):
        rows = slice(int(offsets[user]), int(offsets[user + 1]))
        sources = slice(rows.start, rows.stop - int(num_candidates[user]))
        n = max(1, sources.stop - sources.start)
        z = sum(
            (torch.outer(f(k[i, head]), v[i, head]) for i in range(sources.start, sources.stop)),
            torch.zeros(q.shape[2], v.shape[2], dtype=q.dtype),
        )
        out[rows, head] = f(q[rows, head]) @ PHI[phi_out](z / n)
        for i in range(sources.stop, rows.stop):
            out[i, head] += f(q[i, head]).dot(f(k[i, head])) / n * v[i, head]
    return out


@pytest.mark.parametrize("users", [RAGGED, ACROSS_CHUNKS, NO_CANDIDATES])
@pytest.mark.parametrize("phi", PHIS)
def test_equals_a_loop_over_users_with_its_gradients(users: list[tuple[int, int]], phi: Phi) -> None:
    q, k, v, offsets, candidates = inputs(users)
    out = qla(q, k, v, offsets, candidates, phi=phi, phi_out="silu")
    expected = _one_user_at_a_time(q, k, v, offsets, candidates, phi, "silu")
    weights = torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(1))
    gradients = torch.autograd.grad((out * weights).sum(), (q, k, v))
    expected_gradients = torch.autograd.grad((expected * weights).sum(), (q, k, v))
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)  # fp64, another order of summation
    for found, wanted in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("phi", "phi_out"), PAIRS)
@pytest.mark.parametrize("users", [RAGGED, NO_CANDIDATES, [(1, 0)], [(0, 3)]])
def test_gradcheck(users: list[tuple[int, int]], phi: Phi, phi_out: Phi) -> None:
    q, k, v, offsets, candidates = inputs(users)

    def op(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return qla(q, k, v, offsets, candidates, phi=phi, phi_out=phi_out)

    assert torch.autograd.gradcheck(op, (q, k, v))


def _slope(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    (slope,) = torch.autograd.grad(f(x).sum(), x)
    return slope


@pytest.mark.parametrize("phi", PHIS)
def test_the_readme_derives_the_right_gradients(phi: Phi) -> None:
    q, k, v, offsets, candidates = inputs([(4, 3)])
    out = qla(q, k, v, offsets, candidates, phi=phi, phi_out="silu")
    d_out = torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(1))
    wanted = torch.autograd.grad(out, (q, k, v), d_out)
    f, f_out, n = PHI[phi], PHI["silu"], 4
    for head in range(2):
        Q, K, V, dO = (x.detach()[:, head] for x in (q, k, v, d_out))
        Z = f(K[:n]).T @ V[:n] / n
        G = (f(Q).T @ dO) * _slope(f_out, Z) / n
        x = (dO[n:] * V[n:]).sum(-1, keepdim=True) / n
        y = (f(Q[n:]) * f(K[n:])).sum(-1, keepdim=True) / n
        own = torch.cat([torch.zeros_like(K[:n]), x * f(K[n:])])
        dQ = _slope(f, Q) * (dO @ f_out(Z).T + own)
        dK = torch.cat([_slope(f, K[:n]) * (V[:n] @ G.T), x * f(Q[n:]) * _slope(f, K[n:])])
        dV = torch.cat([f(K[:n]) @ G, y * dO[n:]])
        for found, expected in zip((dQ, dK, dV), wanted, strict=True):
            torch.testing.assert_close(found, expected[:, head], rtol=1e-12, atol=1e-12)


def test_its_halves_make_the_sources_rows() -> None:
    q, k, v, offsets, candidates = inputs([(3, 1), (3, 0)])
    whole = qla(q, k, v, offsets, candidates, phi="silu", phi_out="silu")
    state = qla_state(k, v, offsets, candidates, phi="silu")
    rows = torch.tensor([[0, 1, 2], [4, 5, 6]])
    assert torch.allclose(qla_read(q[rows], state, phi="silu", phi_out="silu"), whole[rows], atol=1e-14)


def test_no_candidate_moves_another_row() -> None:
    q, k, v, offsets, candidates = inputs([(5, 3)])
    out = qla(q, k, v, offsets, candidates, phi="silu", phi_out="silu")
    for row in (0, 4, 5, 7):
        gradients = torch.autograd.grad(out[row].sum(), (q, k, v), retain_graph=True)
        assert all(bool((gradient[6] == 0).all()) for gradient in gradients)


def test_a_user_does_not_depend_on_its_batch() -> None:
    q, k, v, offsets, candidates = inputs([(40, 2), (3, 1), (100, 0)])
    together = qla(q, k, v, offsets, candidates, phi="silu", phi_out="silu")[42:46]
    alone = qla(
        q[42:46], k[42:46], v[42:46], torch.tensor([0, 4]), torch.tensor([1]), phi="silu", phi_out="silu"
    )
    torch.testing.assert_close(alone, together, rtol=0, atol=1e-15)


def test_without_sources_the_state_is_zero() -> None:
    _, k, v, offsets, candidates = inputs([(0, 2), (2, 0)])
    state = qla_state(k, v, offsets, candidates, phi="silu")
    assert bool((state[0] == 0).all())
    assert bool((state[1] != 0).any())


def test_activations_are_as_defined() -> None:
    x = torch.tensor([-2.0, 0.0, 0.5, 1.0, 3.0], dtype=torch.float64)
    expected = {
        "silu": x / (1 + (-x).exp()),
        "shifted_elu": torch.where(x >= 1, x, (x - 1).exp()),  # appendix B.1.5
        "identity": x,
        "relu": torch.where(x > 0, x, 0.0),
    }
    assert expected.keys() == PHI.keys()
    for name, value in expected.items():
        torch.testing.assert_close(PHI[name](x), value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shifted_elu_does_not_cancel_far_below_0(dtype: torch.dtype) -> None:
    x = torch.tensor([-60.0, -40.0, -17.0, -5.0, 0.0, 1.0, 1.5, 80.0], dtype=dtype, requires_grad=True)
    wanted = [math.exp(-61), math.exp(-41), math.exp(-18), math.exp(-6), math.exp(-1), 1.0, 1.5, 80.0]
    found = PHI["shifted_elu"](x)
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=dtype), rtol=1e-6, atol=0)
    (gradient,) = torch.autograd.grad(found.sum(), x)
    slopes = torch.tensor([min(1.0, one) for one in wanted], dtype=dtype)
    torch.testing.assert_close(gradient, slopes, rtol=1e-6, atol=0)


def test_blocks_are_sized_by_what_is_wider(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values of 128 beside keys of 1: a block's values are no larger than those of narrow ones."""
    lengths: list[int] = []
    blocks = reference.Chunks.blocks

    def noted(self: reference.Chunks, chunks: int, heads: int) -> list[reference.Block]:
        lengths.append(chunks)
        return blocks(self, chunks, heads)

    monkeypatch.setattr(reference.Chunks, "blocks", noted)
    offsets, none = torch.tensor([0, 5]), torch.tensor([0])
    for key_width, value_width in ((1, 128), (128, 1), (128, 128)):
        k, v = torch.zeros(5, 1, key_width), torch.zeros(5, 1, value_width)
        reference.state(k, v, offsets, none, "silu")
    assert len(set(lengths)) == 1
