"""Stage 1: what a summary depends on, and what it must not."""

import dataclasses

import numpy as np
import pytest
import torch
from model_batches import CONFIG, SPEC, make_batch
from torch import Tensor

from vista.config import ModelConfig
from vista.data.schema import Batch
from vista.model import recompute
from vista.model.attention import Packed
from vista.model.inputs import tensors
from vista.model.ranker import Ranker, loss
from vista.model.summariser import GAP_BUCKETS, Block, gap_buckets, reverse_positions

UIH = ("uih_item_L", "uih_category_L", "uih_action_L", "uih_value_L", "uih_time_us_L")

KINDS = [
    {"attention": "qla"},
    {"attention": "linear"},
    {"attention": "softmax"},
    {"attention": "silu"},
    {"causal": True},
    {"seeds_as": "candidates"},
    {"phi": "shifted_elu", "phi_out": "identity"},
]
every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(map(str, kind.values())))


def _vista(config: ModelConfig = CONFIG) -> Ranker:
    torch.manual_seed(0)
    return Ranker(config, SPEC, "vista").eval()


def _summary(model: Ranker, batch: Batch) -> Tensor:
    with torch.no_grad():
        return model.summarise(tensors(batch, "cpu"))


def _only(batch: Batch, user: int) -> Batch:
    """The batch of one user of `batch`, without candidates."""
    rows = slice(int(batch.seq_offsets[user]), int(batch.seq_offsets[user + 1]))
    one = make_batch([rows.stop - rows.start], [0])
    return dataclasses.replace(one, **{name: getattr(batch, name)[rows] for name in UIH})


@every_kind
def test_it_does_not_depend_on_who_shares_the_batch(kind: dict[str, object]) -> None:
    """Quadratic kernels get a neighbour of 3,000 events instead of 100,000."""
    model = _vista(CONFIG.model_copy(update=kind))
    linear = kind.get("attention", "qla") in ("qla", "linear")
    batch = make_batch([7, 100_000 if linear else 3_000, 0, 33], [0, 0, 0, 0])
    together = _summary(model, batch)
    for user in (0, 2, 3):
        alone = _summary(model, _only(batch, user))[0]
        torch.testing.assert_close(alone, together[user], rtol=0, atol=1e-6)


def _permuted(batch: Batch) -> Batch:
    order = np.random.default_rng(3).permutation(len(batch.uih_item_L))
    return dataclasses.replace(batch, **{name: getattr(batch, name)[order] for name in UIH[:-1]})


@every_kind
def test_without_positions_order_does_not_matter(kind: dict[str, object]) -> None:
    """A causal model sees order without being told."""
    batch = make_batch([60], [0])
    model = _vista(CONFIG.model_copy(update={"positions": False, **kind}))
    difference = (_summary(model, batch) - _summary(model, _permuted(batch))).abs().max()
    assert (difference < 1e-5) == ("causal" not in kind)


@every_kind
def test_with_positions_order_matters(kind: dict[str, object]) -> None:
    batch = make_batch([60], [0])
    model = _vista(CONFIG.model_copy(update=kind))
    assert (_summary(model, batch) - _summary(model, _permuted(batch))).abs().max() > 1e-3


@every_kind
def test_an_empty_history_has_a_summary(kind: dict[str, object]) -> None:
    summary = _summary(_vista(CONFIG.model_copy(update=kind)), make_batch([0, 5], [0, 0]))
    assert summary.shape == (2, CONFIG.seeds, CONFIG.width)
    assert bool(summary.isfinite().all())
    assert bool((summary[0] != summary[1]).any())


def test_a_summary_is_normalised() -> None:
    summary = _summary(_vista(), make_batch([3, 500], [0, 0]))
    torch.testing.assert_close(summary.square().mean(-1), torch.ones(2, CONFIG.seeds), rtol=1e-4, atol=0)


def test_the_history_s_length_reaches_the_summary() -> None:
    """The state is a mean: without the length features, the same event 5 or 500 times would look alike."""
    model = _vista(CONFIG.model_copy(update={"positions": False}))
    few, many = make_batch([5], [0]), make_batch([500], [0])
    same = {name: np.ones(500, np.int64) for name in UIH}
    few = dataclasses.replace(few, **{name: array[:5] for name, array in same.items()})
    many = dataclasses.replace(many, **same)
    assert (_summary(model, few) - _summary(model, many)).abs().max() > 1e-2


@every_kind
def test_the_last_layer_s_shortcut_is_the_whole_layer(kind: dict[str, object]) -> None:
    torch.manual_seed(0)
    block = Block(CONFIG.model_copy(update=kind))
    x_MD = torch.randn(12, CONFIG.width)
    seed_rows_BS = torch.tensor([[3, 4], [10, 11]])
    num_candidates = torch.tensor([2, 2] if "seeds_as" in kind else [0, 0])
    packed = Packed(torch.tensor([0, 5, 12]), num_candidates, seed_rows_BS)
    whole = block(x_MD, packed)
    torch.testing.assert_close(block.last(x_MD, packed), whole[seed_rows_BS])


def test_positions_count_back_from_the_newest_event() -> None:
    user_L = torch.tensor([0, 0, 0, 0, 2, 2])
    assert reverse_positions(torch.tensor([0, 4, 4, 6]), user_L, 3).tolist() == [2, 2, 1, 0, 1, 0]


def test_gaps_are_measured_to_the_user_s_previous_event() -> None:
    times = torch.tensor([5_000_000, 5_000_000, 6_000_000, 9_000_000, 2**62, 7, 8])
    users = torch.tensor([0, 0, 0, 0, 0, 1, 1])
    # first event, 0 s, 1 s, 3 s, a gap beyond the last bucket; then another user
    assert gap_buckets(times, users).tolist() == [0, 1, 2, 3, GAP_BUCKETS - 1, 0, 1]


@every_kind
@pytest.mark.parametrize(("lengths", "candidates"), [([], []), ([0], [2]), ([1, 0, 40], [1, 0, 2])])
def test_every_parameter_takes_part_in_every_step(
    kind: dict[str, object], lengths: list[int], candidates: list[int]
) -> None:
    """A rank's part of a batch may be empty; a parameter without gradient would stop the others."""
    model = _vista(CONFIG.model_copy(update=kind)).train()
    batch = tensors(make_batch(lengths, candidates), "cpu")
    output = model(batch)
    assert output.reconstruction_loss is not None
    (loss(output, batch.labels_CT) + output.reconstruction_loss).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    assert all(bool(parameter.grad.isfinite().all()) for parameter in model.parameters())


@every_kind
def test_many_rows_are_worked_on_in_parts(kind: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    """The same loss and gradients as in one piece: parts are added in another order, nothing else."""
    model = _vista(CONFIG.model_copy(update=kind)).train()
    batch = tensors(make_batch([9, 0, 40, 300], [3, 2, 4, 1]), "cpu")
    results = []
    for part_numbers in (recompute.PART_NUMBERS, 70 * CONFIG.width):
        monkeypatch.setattr(recompute, "PART_NUMBERS", part_numbers)
        model.zero_grad()
        output = model(batch)
        assert output.reconstruction_loss is not None
        total = loss(output, batch.labels_CT) + output.reconstruction_loss
        total.backward()
        results.append([total.detach(), *(parameter.grad for parameter in model.parameters())])
    for whole, parts in zip(*results, strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layers", [1, 3])
def test_every_layer_count_runs(layers: int) -> None:
    model = _vista(CONFIG.model_copy(update={"layers": layers}))
    assert bool(_summary(model, make_batch([4], [0])).isfinite().all())
