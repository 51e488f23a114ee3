"""The whole model in each slot: no leak, no dependence on chance, nothing undefined."""

import dataclasses
from typing import get_args

import numpy as np
import pytest
import torch
from model_batches import CONFIG, SPEC, make_batch
from torch import Tensor

from vista.config import Recipe
from vista.data.schema import Batch
from vista.model.embeddings import DenseFeatures
from vista.model.inputs import TensorBatch, length_features, tensors
from vista.model.ranker import Ranker, SlotName, loss
from vista.recipes import smoke

SLOTS: tuple[SlotName, ...] = get_args(SlotName)


def _ranker(slot: SlotName) -> Ranker:
    torch.manual_seed(0)
    return Ranker(CONFIG, SPEC, slot)


def _batch(batch: Batch) -> TensorBatch:
    return tensors(batch, "cpu")


def _logits(model: Ranker, batch: Batch) -> Tensor:
    with torch.no_grad():
        logits_CT: Tensor = model(_batch(batch)).logits_CT
    return logits_CT


@pytest.mark.parametrize("slot", SLOTS)
def test_a_candidate_does_not_move_another_logit(slot: SlotName) -> None:
    """Candidates do not see each other (section 3.3): the logit is bit-identical."""
    model = _ranker(slot).eval()
    batch = make_batch([9, 0, 40], [3, 2, 4])
    changed = dataclasses.replace(
        batch,
        candidate_item_C=batch.candidate_item_C.copy(),
        candidate_context_CK=batch.candidate_context_CK.copy(),
        candidate_dense_CF=batch.candidate_dense_CF.copy(),
    )
    changed.candidate_item_C[6] = (batch.candidate_item_C[6] + 1) % SPEC.num_items
    changed.candidate_context_CK[6] = (batch.candidate_context_CK[6] + 1) % 4
    changed.candidate_dense_CF[6] += 1
    before, after = _logits(model, batch), _logits(model, changed)
    others = torch.arange(9) != 6
    assert torch.equal(before[others], after[others])
    assert not torch.equal(before[6], after[6])


@pytest.mark.parametrize("slot", SLOTS)
def test_a_candidate_has_no_gradient_in_another_logit(slot: SlotName) -> None:
    """Backward, too: exactly 0. Only candidate 6 shows item 49."""
    model = _ranker(slot).eval()
    batch = make_batch([9, 0, 40], [3, 2, 4])
    batch.uih_item_L[batch.uih_item_L == 49] = 48
    batch.candidate_item_C[:] = 7
    batch.candidate_item_C[6] = 49
    logits_CT = model(_batch(batch)).logits_CT
    table = model.scorer.items.item.table.weight
    for candidate in range(9):
        (gradient,) = torch.autograd.grad(logits_CT[candidate].sum(), table, retain_graph=True)
        assert bool((gradient[49] == 0).all()) == (candidate != 6)


@pytest.mark.parametrize("slot", SLOTS)
def test_users_do_not_read_each_other(slot: SlotName) -> None:
    model = _ranker(slot).eval()
    batch = make_batch([9, 5, 40], [3, 2, 4])
    changed = dataclasses.replace(batch, uih_item_L=batch.uih_item_L.copy())
    changed.uih_item_L[9:14] = 3
    before, after = _logits(model, batch), _logits(model, changed)
    assert torch.equal(before[[0, 1, 2, 5, 6, 7, 8]], after[[0, 1, 2, 5, 6, 7, 8]])
    assert torch.equal(before[3:5], after[3:5]) == (slot == "no_history")


@pytest.mark.parametrize("slot", SLOTS)
@pytest.mark.parametrize(("lengths", "candidates"), [([], []), ([0], [2]), ([1, 0], [1, 0]), ([3], [0])])
def test_every_parameter_takes_part_in_every_step(
    slot: SlotName, lengths: list[int], candidates: list[int]
) -> None:
    """A rank's part of a batch may be empty; a parameter without gradient would stop the others."""
    model = _ranker(slot)
    batch = _batch(make_batch(lengths, candidates))
    output = model(batch)
    total = loss(output, batch.labels_CT)
    if output.reconstruction_loss is not None:
        total = total + output.reconstruction_loss
    total.backward()
    missing = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert missing == []
    assert all(bool(parameter.grad.isfinite().all()) for parameter in model.parameters())


def test_loss_is_the_sum_over_candidates_and_tasks() -> None:
    model = _ranker("no_history")
    batch = _batch(make_batch([0, 0], [3, 4]))
    p = model(batch).logits_CT.sigmoid()
    y = batch.labels_CT
    expected = -(y * p.log() + (1 - y) * (1 - p).log()).sum()
    torch.testing.assert_close(loss(model(batch), y), expected)


def test_a_task_s_weight_multiplies_its_loss() -> None:
    model = _ranker("no_history")
    batch = _batch(make_batch([0, 0], [3, 4]))
    output, y = model(batch), batch.labels_CT
    p = output.logits_CT.sigmoid()
    per_task_T = -(y * p.log() + (1 - y) * (1 - p).log()).sum(0)
    expected = 2 * per_task_T[0] + 0.5 * per_task_T[1]
    torch.testing.assert_close(loss(output, y, (2.0, 0.5)), expected)


def test_every_task_needs_a_weight() -> None:
    recipe = smoke("")
    model = recipe.model.model_copy(update={"task_weights": (1.0, 0.5)})
    with pytest.raises(ValueError, match="2 task_weights for the tasks label"):
        Recipe.model_validate(recipe.model_dump() | {"model": model.model_dump()})


def test_batch_norm_reads_the_batch_in_training_only() -> None:
    """In eval mode no candidate moves another's logit; a batch of one candidate can be trained on."""
    torch.manual_seed(0)
    model = Ranker(CONFIG.model_copy(update={"mlp_batch_norm": True}), SPEC, "din")
    batch = make_batch([9, 0, 40], [3, 2, 4])
    changed = dataclasses.replace(batch, candidate_item_C=batch.candidate_item_C.copy())
    changed.candidate_item_C[6] = (batch.candidate_item_C[6] + 1) % SPEC.num_items
    model.eval()
    assert torch.equal((_logits(model, batch) != _logits(model, changed)).any(1), torch.arange(9) == 6)
    model.train()
    assert bool((_logits(model, batch) != _logits(model, changed)).any(1).all())
    assert bool(_logits(model, make_batch([4], [1])).isfinite().all())


@pytest.mark.parametrize("slot", SLOTS)
def test_rows_beyond_the_tables_are_the_unseen_row(slot: SlotName) -> None:
    model = _ranker(slot).eval()
    batch = make_batch([9, 4], [3, 2])
    unseen, newer = (
        dataclasses.replace(
            batch,
            user_row_B=np.where([True, False], row, batch.user_row_B),
            uih_item_L=np.where(batch.uih_item_L > 25, row, batch.uih_item_L),
            uih_category_L=np.where(batch.uih_category_L > 3, row, batch.uih_category_L),
            candidate_item_C=np.where(batch.candidate_item_C > 25, row, batch.candidate_item_C),
            candidate_category_C=np.where(batch.candidate_category_C > 3, row, batch.candidate_category_C),
        )
        for row in (0, 1_000)
    )
    assert torch.equal(_logits(model, unseen), _logits(model, newer))


def test_id_dropout_trains_the_unseen_row_and_only_in_training() -> None:
    torch.manual_seed(0)
    model = Ranker(CONFIG.model_copy(update={"id_dropout": 0.5}), SPEC, "din")
    batch = _batch(make_batch([30], [10]))
    model(batch).logits_CT.sum().backward()
    assert bool((model.scorer.items.item.table.weight.grad[0] != 0).any())
    model.zero_grad()
    model.eval()
    model(batch).logits_CT.sum().backward()
    assert bool((model.scorer.items.item.table.weight.grad[0] == 0).all())


@pytest.mark.parametrize("change", ["use_user_id", "use_side_features", "use_dense_features"])
def test_what_is_switched_off_is_not_read(change: str) -> None:
    torch.manual_seed(0)
    model = Ranker(CONFIG.model_copy(update={change: False}), SPEC, "mean_pool").eval()
    full = _ranker("mean_pool").eval()
    batch = make_batch([9, 4], [3, 2])
    other = {
        "use_user_id": {"user_row_B": (batch.user_row_B + 1) % SPEC.num_users},
        "use_side_features": {
            "candidate_context_CK": (batch.candidate_context_CK + 1) % 4,
            "candidate_category_C": (batch.candidate_category_C + 1) % 7,
            "uih_category_L": (batch.uih_category_L + 1) % 7,
        },
        "use_dense_features": {"candidate_dense_CF": batch.candidate_dense_CF + np.float32([1, -2])},
    }[change]
    changed = dataclasses.replace(batch, **other)
    assert torch.equal(_logits(model, batch), _logits(model, changed))
    assert not torch.equal(_logits(full, batch), _logits(full, changed))


def test_length_features() -> None:
    model = _ranker("din")
    batch = make_batch([3, 0], [0, 0])
    batch.uih_action_L[:] = [1, 3, 0]  # click; click and like; neither
    found = length_features(model.uih(_batch(batch)))
    log = np.log1p
    expected = [[log(3), log(2), log(1), 3 / 5, 2 / 5], [0, 0, 0, 1 / 2, 1 / 2]]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float32))


def _trained(slot: SlotName) -> list[Tensor]:
    torch.manual_seed(1)
    model = Ranker(CONFIG.model_copy(update={"id_dropout": 0.1, "dropout": 0.1}), SPEC, slot)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(5):
        batch = _batch(make_batch([9, 0, 40], [3, 2, 4], seed=step))
        output = model(batch)
        total = loss(output, batch.labels_CT) + (output.reconstruction_loss or 0.0)
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
    return [parameter.detach() for parameter in model.parameters()]


@pytest.mark.parametrize("slot", SLOTS)
def test_training_is_deterministic_under_a_seed(slot: SlotName) -> None:
    assert all(torch.equal(a, b) for a, b in zip(_trained(slot), _trained(slot), strict=True))


def test_dense_features_have_unit_scale_and_rates_are_log_odds() -> None:
    dense = DenseFeatures(("item_log_count", "item_rate_click", "user_share_like"))
    found = dense(torch.tensor([[8.0, 0.5, 0.0], [0.0, 0.02, 1.0]]))
    expected = torch.tensor([[2.0, 0.0, -3.4534], [0.0, -1.9459, 3.4534]])  # 0 and 1 count as .001 and .999
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
