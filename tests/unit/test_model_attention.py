"""The kernels of the summariser's blocks, against their formulas written down user by user."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor

from vista.config import ModelConfig
from vista.model.attention import Packed, attention_of
from vista.model.padding import PaddedGroups

HEADS, WIDTH, SEEDS = 2, 3, 2
LENGTHS = [5, 0, 40, 1, 17]


def _packed(num_candidates: int) -> tuple[Packed, tuple[Tensor, ...]]:
    """q, k, v in float64 of users with LENGTHS events and two seeds."""
    draw = torch.Generator().manual_seed(0)
    ends_B = (torch.tensor(LENGTHS) + SEEDS).cumsum(0)
    seed_rows_BS = ends_B.unsqueeze(1) + torch.arange(-SEEDS, 0)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), ends_B])
    packed = Packed(offsets, torch.full_like(ends_B, num_candidates), seed_rows_BS)
    shape = (int(ends_B[-1]), HEADS, WIDTH)
    return packed, tuple(
        torch.randn(shape, generator=draw, dtype=torch.float64, requires_grad=True) for _ in range(3)
    )


def _qla(q: Tensor, k: Tensor, v: Tensor, n: int) -> Tensor:
    return F.silu(q) @ F.silu(F.silu(k).T @ v / n)


def _no_phi(q: Tensor, k: Tensor, v: Tensor, n: int) -> Tensor:
    return q.relu() @ (k.relu().T @ v / n)


def _linear(q: Tensor, k: Tensor, v: Tensor, n: int) -> Tensor:
    scores = (F.elu(q) + 1) @ (F.elu(k) + 1).T  # eq. 1
    return scores / scores.sum(1, keepdim=True) @ v


def _softmax(q: Tensor, k: Tensor, v: Tensor, n: int) -> Tensor:
    return (q @ k.T / WIDTH**0.5).softmax(1) @ v


def _silu(q: Tensor, k: Tensor, v: Tensor, n: int) -> Tensor:
    return F.silu(q @ k.T) @ v / n


FORMULAS: list[tuple[ModelConfig, Callable[[Tensor, Tensor, Tensor, int], Tensor]]] = [
    (ModelConfig(), _qla),
    (ModelConfig(phi="relu", phi_out="identity"), _no_phi),
    (ModelConfig(attention="linear"), _linear),
    (ModelConfig(attention="softmax"), _softmax),
    (ModelConfig(attention="silu"), _silu),
]
IDS = ["qla", "qla without phi_out", "linear", "softmax", "silu"]


@pytest.mark.parametrize(("config", "formula"), FORMULAS, ids=IDS)
def test_it_is_its_formula_with_its_gradients(
    config: ModelConfig, formula: Callable[[Tensor, Tensor, Tensor, int], Tensor]
) -> None:
    packed, (q, k, v) = _packed(0)
    parts = zip(*(x.split([length + SEEDS for length in LENGTHS]) for x in (q, k, v)), strict=True)
    expected = torch.cat(
        [
            torch.stack([formula(q[:, h], k[:, h], v[:, h], len(q)) for h in range(HEADS)], dim=1)
            for q, k, v in parts
        ]
    )
    found = attention_of(config).rows(q, k, v, packed)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)  # fp64, other orders of summation
    weights = torch.randn(found.shape, dtype=found.dtype, generator=torch.Generator().manual_seed(1))
    wanted = torch.autograd.grad((expected * weights).sum(), (q, k, v))
    for gradient, other in zip(torch.autograd.grad((found * weights).sum(), (q, k, v)), wanted, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "config",
    [
        *(config for config, _ in FORMULAS),
        ModelConfig(causal=True),
        ModelConfig(seeds_as="candidates"),
        ModelConfig(causal=True, seeds_as="candidates"),
    ],
    ids=[*IDS, "causal", "seeds as candidates", "both"],
)
def test_the_seeds_alone_read_what_they_read_among_all_rows(config: ModelConfig) -> None:
    packed, (q, k, v) = _packed(SEEDS if config.seeds_as == "candidates" else 0)
    attention = attention_of(config)
    whole = attention.rows(q, k, v, packed)[packed.seed_rows_BS]
    found = attention.seeds(q[packed.seed_rows_BS], k, v, packed)
    torch.testing.assert_close(found, whole, rtol=1e-12, atol=1e-12)  # fp64
    wanted = torch.autograd.grad(whole.sum(), (q, k, v))
    for gradient, other in zip(torch.autograd.grad(found.sum(), (q, k, v)), wanted, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-12, atol=1e-12)


def _gradients_of_row(config: ModelConfig, row: int) -> tuple[Tensor, Tensor]:
    """Which rows' keys the given row of the third user reads, as packed rows; whose values."""
    packed, (q, k, v) = _packed(SEEDS if config.seeds_as == "candidates" else 0)
    out = attention_of(config).rows(q, k, v, packed)[packed.seq_offsets[2] + row]
    key, value = torch.autograd.grad(out.sum(), (k, v))
    return key.abs().sum((1, 2)).nonzero().squeeze(1), value.abs().sum((1, 2)).nonzero().squeeze(1)


@pytest.mark.parametrize(
    ("config", "row", "read"),
    [
        (ModelConfig(), 7, range(42)),
        (ModelConfig(causal=True), 7, range(8)),
        (ModelConfig(causal=True), 41, range(42)),
        (ModelConfig(seeds_as="candidates"), 7, range(40)),
        (ModelConfig(seeds_as="candidates"), 41, [*range(40), 41]),
    ],
)
def test_who_reads_whom(config: ModelConfig, row: int, read: range | list[int]) -> None:
    """The third user has 40 events and then its two seeds, 42 rows from packed row 9 on."""
    keys, values = _gradients_of_row(config, row)
    assert keys.tolist() == values.tolist() == [9 + place for place in read]


@pytest.mark.parametrize("change", [{"phi": "relu"}, {"causal": True}, {"seeds_as": "candidates"}])
@pytest.mark.parametrize("attention", ["linear", "softmax", "silu"])
def test_a_variant_of_qla_is_refused_elsewhere(attention: str, change: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=f"attention '{attention}' has no {next(iter(change))}"):
        ModelConfig.model_validate({"attention": attention} | change)


def test_padding_doubles_the_rows_at_most_and_is_undone() -> None:
    lengths = torch.tensor([5, 0, 40, 1, 17, 33, 700])
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    padded = PaddedGroups(offsets)
    rows = torch.randn(int(offsets[-1]), 2, 3)
    parts = padded.pad(rows)
    assert torch.equal(padded.unpad(parts), rows)
    assert [tuple(part.shape[:2]) for part in parts] == [(3, 5), (1, 17), (2, 40), (1, 700)]
    for group, part in zip(padded.groups, parts, strict=True):
        assert torch.equal(group.known_GW.sum(1), lengths[group.users_G])
        assert bool((part[~group.known_GW] == 0).all())


def test_nobody_is_one_empty_group() -> None:
    padded = PaddedGroups(torch.tensor([0]))
    (part,) = padded.pad(torch.zeros(0, 3))
    assert part.shape == (0, 2, 3)
    assert padded.unpad([part]).shape == (0, 3)


@pytest.mark.parametrize("lowest", [-20.0, -200.0])
def test_linear_attention_has_a_denominator_however_low_its_inputs_are(lowest: float) -> None:
    """elu + 1 in float32 is 0 below -17, and a row of zeros divided by their sum is NaN."""
    packed, qkv = _packed(num_candidates=0)
    q, k, v = (x.detach().float().requires_grad_() for x in qkv)
    out = attention_of(ModelConfig(attention="linear")).rows(q + lowest, k + lowest, v, packed)
    assert out.isfinite().all()
    assert out.abs().max() <= v.abs().max() * (1 + 1e-5), "a mean of values"
    assert all(one.isfinite().all() for one in torch.autograd.grad(out.sum(), (q, k, v)))
