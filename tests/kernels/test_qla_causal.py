"""The causal op against a loop over rows, and by finite differences."""

import itertools
import math
from typing import get_args

import pytest
import torch
from ragged import ACROSS_CHUNKS, NO_CANDIDATES, RAGGED, assert_same_with_gradients, inputs
from torch import Tensor

from kernels import PHI, Phi, qla, qla_causal

PHIS: tuple[Phi, ...] = get_args(Phi)


def _one_row_at_a_time(
    q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, num_candidates: Tensor, phi: Phi, phi_out: Phi
) -> Tensor:
    f = PHI[phi]
    outs = []
    for user, head in itertools.product(range(offsets.numel() - 1), range(q.shape[1])):
        first, last = int(offsets[user]), int(offsets[user + 1])
        ends = last - int(num_candidates[user])
        for i in range(first, last):
            read = slice(first, min(i + 1, ends))
            n = max(1, read.stop - read.start)
            out = f(q[i, head]) @ PHI[phi_out](f(k[read, head]).T @ v[read, head] / n)
            if i >= ends:
                out = out + f(q[i, head]).dot(f(k[i, head])) / n * v[i, head]
            outs.append((i, head, out))
    outs.sort(key=lambda row: row[:2])
    return torch.stack([out for _, _, out in outs]).unflatten(0, (q.shape[0], q.shape[1]))


@pytest.mark.parametrize("users", [RAGGED, ACROSS_CHUNKS, NO_CANDIDATES, [(1100, 3), (0, 0), (40, 0)]])
@pytest.mark.parametrize(("phi", "phi_out"), [*zip(PHIS, PHIS, strict=True), ("silu", "identity")])
def test_equals_a_loop_over_rows_with_its_gradients(
    users: list[tuple[int, int]], phi: Phi, phi_out: Phi
) -> None:
    q, k, v, offsets, candidates = inputs(users)
    out = qla_causal(q, k, v, offsets, candidates, phi=phi, phi_out=phi_out)
    expected = _one_row_at_a_time(q, k, v, offsets, candidates, phi, phi_out)
    assert_same_with_gradients(out, expected, (q, k, v))


@pytest.mark.parametrize("phi", PHIS)
@pytest.mark.parametrize("users", [RAGGED, NO_CANDIDATES, [(1, 0)], [(0, 3)]])
def test_gradcheck(users: list[tuple[int, int]], phi: Phi) -> None:
    q, k, v, offsets, candidates = inputs(users)

    def op(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return qla_causal(q, k, v, offsets, candidates, phi=phi, phi_out="silu")

    assert torch.autograd.gradcheck(op, (q, k, v))


def test_nothing_moves_an_earlier_row() -> None:
    q, k, v, offsets, candidates = inputs([(5, 3)])
    out = qla_causal(q, k, v, offsets, candidates, phi="silu", phi_out="silu")
    for row in range(8):
        gradients = torch.autograd.grad(out[row].sum(), (q, k, v), retain_graph=True)
        for later in range(row + 1, 8):
            assert all(bool((gradient[later] == 0).all()) for gradient in gradients)
    candidate = torch.autograd.grad(out[7].sum(), (k, v))
    assert all(bool((gradient[5:7] == 0).all()) for gradient in candidate)


def test_the_last_source_and_the_candidates_read_what_they_read_in_qla() -> None:
    q, k, v, offsets, candidates = inputs([(40, 2)])
    causal = qla_causal(q, k, v, offsets, candidates, phi="silu", phi_out="silu")
    full = qla(q, k, v, offsets, candidates, phi="silu", phi_out="silu")
    torch.testing.assert_close(causal[39:], full[39:], rtol=1e-12, atol=1e-12)


def test_a_user_does_not_depend_on_its_batch() -> None:
    q, k, v, offsets, candidates = inputs([(1500, 2), (700, 3), (40, 0)])
    together = qla_causal(q, k, v, offsets, candidates, phi="silu", phi_out="silu")[1502:2205]
    mine = slice(1502, 2205)
    alone = qla_causal(
        q[mine], k[mine], v[mine], torch.tensor([0, 703]), torch.tensor([3]), phi="silu", phi_out="silu"
    )
    assert torch.equal(alone, together)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("damaged", [1, 2])
def test_what_is_not_finite_stays_with_its_user(value: float, damaged: int) -> None:
    """The first user's chunks are scanned beside those of the others."""
    users = [(70, 2), (40, 1), (33, 0), (5, 0)]
    *clean, offsets, candidates = inputs(users)
    changed = [x.detach().clone() for x in clean]
    changed[damaged][3] = value
    wanted, found = (
        (out := qla_causal(*qkv, offsets, candidates, phi="silu", phi_out="silu"), *gradients(out, qkv))
        for qkv in (clean, [x.requires_grad_() for x in changed])
    )
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one[72:], other[72:])
    assert not found[0][:72].isfinite().all()


def gradients(out: Tensor, qkv: list[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(out[72:].sum(), qkv)
