"""HSTU's attention against a loop over users, with and without a bias that has parameters."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from ragged import ACROSS_CHUNKS, NO_CANDIDATES, RAGGED, assert_same_with_gradients, inputs
from torch import Tensor

from kernels import PairBias, silu_attention

# More pairs of chunks than a block holds, and more rows than one group.
LONG = [(800, 5), (0, 3), *[(80, 1)] * 50]


def _one_user_at_a_time(
    q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, num_candidates: Tensor, causal: bool, bias: PairBias
) -> Tensor:
    outs = []
    for user in range(offsets.numel() - 1):
        rows = torch.arange(int(offsets[user]), int(offsets[user + 1]))
        n = rows.numel() - int(num_candidates[user])
        i, j = rows[:, None], rows[None, :]
        reads = (j < offsets[user] + n) & ((j <= i) if causal else True) | (i == j)
        score = torch.einsum("ihd,jhd->ijh", q[rows], k[rows]) + bias(i, j)
        weight = torch.where(reads.unsqueeze(-1), F.silu(score), 0.0)
        outs.append(torch.einsum("ijh,jhe->ihe", weight, v[rows]) / max(1, n))
    return torch.cat(outs)


def _distance_bias() -> tuple[PairBias, Tensor]:
    table = torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    table.requires_grad_()
    return lambda i, j: table[(i - j).abs().clamp(max=5)], table


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("users", [RAGGED, ACROSS_CHUNKS, NO_CANDIDATES, LONG])
def test_equals_a_loop_over_users_with_its_gradients(users: list[tuple[int, int]], causal: bool) -> None:
    q, k, v, offsets, candidates = inputs(users)
    bias, table = _distance_bias()
    out = silu_attention(q, k, v, offsets, candidates, causal=causal, bias=bias)
    expected = _one_user_at_a_time(q, k, v, offsets, candidates, causal, bias)
    assert_same_with_gradients(out, expected, (q, k, v, table))


@pytest.mark.parametrize("causal", [True, False])
def test_without_bias(causal: bool) -> None:
    q, k, v, offsets, candidates = inputs(ACROSS_CHUNKS)
    out = silu_attention(q, k, v, offsets, candidates, causal=causal)
    expected = _one_user_at_a_time(
        q, k, v, offsets, candidates, causal, lambda i, j: (i * j * 0).unsqueeze(-1)
    )
    assert_same_with_gradients(out, expected, (q, k, v))


@pytest.mark.parametrize(
    ("causal", "users"), [*itertools.product([True, False], [RAGGED, [(1, 0)], [(0, 3)]])]
)
def test_gradcheck(causal: bool, users: list[tuple[int, int]]) -> None:
    q, k, v, offsets, candidates = inputs(users)
    bias, table = _distance_bias()

    def op(q: Tensor, k: Tensor, v: Tensor, table: Tensor) -> Tensor:
        return silu_attention(q, k, v, offsets, candidates, causal=causal, bias=bias)

    assert torch.autograd.gradcheck(op, (q, k, v, table))


@pytest.mark.parametrize("causal", [True, False])
def test_no_candidate_moves_another_row(causal: bool) -> None:
    q, k, v, offsets, candidates = inputs([(5, 3)])
    out = silu_attention(q, k, v, offsets, candidates, causal=causal)
    for row in (0, 4, 5, 7):
        gradients = torch.autograd.grad(out[row].sum(), (q, k, v), retain_graph=True)
        assert all(bool((gradient[6] == 0).all()) for gradient in gradients)


def test_a_user_does_not_depend_on_its_batch() -> None:
    q, k, v, offsets, candidates = inputs([(1500, 2), (700, 3), (4000, 0)])
    mine = slice(1502, 2205)
    together = silu_attention(q, k, v, offsets, candidates, causal=True)[mine]
    alone = silu_attention(q[mine], k[mine], v[mine], torch.tensor([0, 703]), torch.tensor([3]), causal=True)
    torch.testing.assert_close(alone, together, rtol=0, atol=1e-15)  # matrix products of other batch sizes


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("damaged", [1, 2])
def test_nobody_reads_a_candidate_even_one_that_is_not_finite(causal: bool, damaged: int) -> None:
    *qkv, offsets, candidates = inputs([(40, 3), (5, 0)])
    wanted = silu_attention(*qkv, offsets, candidates, causal=causal)
    changed = [x.detach().clone() for x in qkv]
    changed[damaged][41] = math.nan
    found = silu_attention(*changed, offsets, candidates, causal=causal)
    others = torch.arange(48) != 41
    assert torch.equal(found[others], wanted[others])
    assert found[41].isnan().all()
