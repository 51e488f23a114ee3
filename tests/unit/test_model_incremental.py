"""Summaries that follow every event: equal to recomputation, whatever comes twice, late or out of turn."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from model_batches import CONFIG, SPEC, make_batch
from numpy.typing import NDArray
from torch import Tensor

from vista.config import DeliveryConfig, ModelConfig, Recipe, RefreshConfig
from vista.data.batches import rows_where
from vista.data.schema import Batch
from vista.errors import InputError
from vista.model import incremental as incremental_module
from vista.model.incremental import Incremental, SummaryState
from vista.model.inputs import tensors
from vista.model.ranker import Ranker
from vista.recipes import incremental, recipe_of

ONE_LAYER = CONFIG.model_copy(update={"layers": 1, "positions": False})
FADING = ONE_LAYER.model_copy(update={"half_life_s": 86_400.0})  # events are spread over 11 days
EXACT = {"rtol": 0.0, "atol": 1e-5}  # the limit for an exact update; numbers of a summary are about 1
both = pytest.mark.parametrize("config", [ONE_LAYER, FADING], ids=["all alike", "decay"])


def follower(config: ModelConfig = ONE_LAYER, max_uih: int = 10_000) -> Incremental:
    torch.manual_seed(0)
    return Incremental(Ranker(config, SPEC, "vista"), max_uih)


def arrivals(batch: Batch, seed: int = 1) -> NDArray[np.int64]:
    """Arrival numbers of the rows, which are in order of time: most come in that order, some late."""
    draw = np.random.default_rng(seed)
    late_L = np.arange(batch.seq_offsets[-1]) + draw.integers(0, 4, batch.seq_offsets[-1])
    seqs = [np.argsort(np.argsort(late_L[low:high], kind="stable")) for low, high in spans_of(batch)]
    return np.concatenate([np.zeros(0, np.int64), *seqs])


def spans_of(batch: Batch) -> list[tuple[int, int]]:
    return list(zip(batch.seq_offsets[:-1].tolist(), batch.seq_offsets[1:].tolist(), strict=True))


def recomputed(model: Ranker, batch: Batch) -> Tensor:
    with torch.inference_mode():
        return model.summarise(tensors(batch, "cpu"))


def given(
    follower: Incremental,
    state: SummaryState,
    batch: Batch,
    seq_L: NDArray[np.int64],
    mask_L: NDArray[np.bool_],
) -> SummaryState:
    return follower.update(state, rows_where(batch, mask_L), seq_L[mask_L])


def assert_follows(following: Incremental, state: SummaryState, batch: Batch) -> None:
    torch.testing.assert_close(following.summary(state), recomputed(following.model, batch), **EXACT)


@both
def test_a_thousand_events_one_by_one_equal_recomputation(config: ModelConfig) -> None:
    """Users with different pasts, one without, all at once."""
    batch = make_batch([1_300, 1_050, 1_000], [0, 0, 0])
    seq_L = arrivals(batch)
    start_B = np.array([300, 50, 0])
    following = follower(config)
    begun_L = seq_L < np.repeat(start_B, np.diff(batch.seq_offsets))
    state = given(following, following.empty(3), batch, seq_L, begun_L)
    assert_follows(following, state, rows_where(batch, begun_L))
    after_L = seq_L - np.repeat(start_B, np.diff(batch.seq_offsets))
    for number in range(1_000):
        state = given(following, state, batch, seq_L, after_L == number)
    assert_follows(following, state, batch)
    assert state.seq_B.tolist() == [1_299, 1_049, 999]
    assert (following.summary(state) - following.summary(following.empty(3))).abs().max() > 0.1


@both
def test_all_at_once_equals_one_by_one(config: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """All at once in several parts, whose ends lie within a user and between two."""
    monkeypatch.setattr(incremental_module, "PART_ROWS", 10)
    batch = make_batch([40, 0, 7], [0, 0, 0])
    seq_L, following = arrivals(batch), follower(config)
    whole = following.update(following.empty(3), batch, seq_L)
    steps = following.empty(3)
    for number in range(40):
        steps = given(following, steps, batch, seq_L, seq_L == number)
    for field in dataclasses.fields(SummaryState):
        # fp64 sums of the same terms in another order; keys and values are fp32 in batches of other sizes
        torch.testing.assert_close(
            getattr(whole, field.name), getattr(steps, field.name), rtol=1e-5, atol=1e-6
        )


@both
def test_what_is_held_already_is_skipped(config: ModelConfig) -> None:
    """A log delivers at least once: again from the start, and the same event twice in one batch."""
    batch = make_batch([30, 5], [0, 0])
    seq_L, following = arrivals(batch), follower(config)
    state = given(following, following.empty(2), batch, seq_L, seq_L < 4)
    twice = make_batch([60, 10], [0, 0])
    row_L = np.concatenate([np.tile(np.arange(low, high), 2) for low, high in spans_of(batch)])
    names = [name for name in Batch.__dataclass_fields__ if name.startswith("uih_")]
    twice = dataclasses.replace(twice, **{name: getattr(batch, name)[row_L] for name in names})
    state = following.update(state, twice, seq_L[row_L])
    assert_follows(following, state, batch)
    again = following.update(state, batch, seq_L)
    for field in dataclasses.fields(SummaryState):
        assert torch.equal(getattr(again, field.name), getattr(state, field.name))


def test_half_a_life_is_half_a_weight() -> None:
    """Decay against its definition, with weights as whole repetitions of events."""
    batch = make_batch([3], [0])
    batch.uih_time_us_L[:] = np.array([0, 86_400, 2 * 86_400]) * 1_000_000
    following, plain = follower(FADING), follower()
    faded = following.update(following.empty(1), batch, np.arange(3))
    assert faded.weight_B.tolist() == [0.25 + 0.5 + 1]
    row_L = np.array([0, 1, 1, 2, 2, 2, 2])
    names = [name for name in Batch.__dataclass_fields__ if name.startswith("uih_")]
    repeated = dataclasses.replace(
        make_batch([7], [0]), **{name: getattr(batch, name)[row_L] for name in names}
    )
    counted = plain.update(plain.empty(1), repeated, np.arange(7))
    torch.testing.assert_close(faded.kv_BHDE, counted.kv_BHDE / 4, rtol=1e-5, atol=1e-6)  # fp32 keys


def test_old_events_fade() -> None:
    """After fifty half-lives a past hardly differs from any other past of as many events."""
    batch, other = make_batch([20], [0]), make_batch([20], [0], seed=3)
    other = dataclasses.replace(other, uih_action_L=batch.uih_action_L)
    for one in (batch, other):
        one.uih_time_us_L[:-1], one.uih_time_us_L[-1] = 0, 50 * 86_400 * 1_000_000
    for name in ("uih_item_L", "uih_category_L", "uih_value_L"):
        getattr(other, name)[-1] = getattr(batch, name)[-1]
    fading, plain = follower(FADING).model, follower().model
    assert (recomputed(fading, batch) - recomputed(fading, other)).abs().max() < 1e-5
    assert (recomputed(plain, batch) - recomputed(plain, other)).abs().max() > 1e-2


def test_users_do_not_mix() -> None:
    batch = make_batch([9, 4], [0, 0])
    seq_L, following = arrivals(batch), follower()
    first_L = np.repeat([True, False], [9, 4])
    one = given(following, following.empty(2), batch, seq_L, first_L)
    assert torch.equal(following.summary(one)[1], following.summary(following.empty(2))[1])


@pytest.mark.parametrize("seqs", [[1, 2, 3], [0, 1, 3], [0, 0, 2]])
def test_an_event_that_is_missing_is_named(seqs: Sequence[int]) -> None:
    """Or the state would say that it holds what it does not."""
    following = follower()
    missing = next(number for number in range(4) if number not in seqs)
    came = min(number for number in seqs if number > missing)
    with pytest.raises(InputError, match=f"user 0: event {came} came before event {missing}: "):
        following.update(following.empty(1), make_batch([3], [0]), np.array(seqs))


def test_a_history_that_is_cut_off_is_refused() -> None:
    following = follower(max_uih=3)
    state = following.update(following.empty(2), make_batch([0, 3], [0, 0]), np.arange(3))
    with pytest.raises(InputError, match=r"user 1 has 4 events, .* newest 3: .*larger max_uih"):
        following.update(state, make_batch([0, 1], [0, 0]), np.array([3]))


@pytest.mark.parametrize(
    ("changes", "users", "named"),
    [
        ({}, 2, r"seq_B is \(1,\), this model's of 2 users \(2,\)"),
        ({"heads": 4}, 1, r"kv_BHDE is \(1, 2, 8, 8\), this model's of 1 users \(1, 4, 4, 4\)"),
    ],
)
def test_the_state_of_another_model_is_refused(changes: dict[str, object], users: int, named: str) -> None:
    state = follower().empty(1)
    other = follower(ONE_LAYER.model_copy(update=changes))
    with pytest.raises(InputError, match=f"the state's {named}: give the states of its own checkpoint"):
        other.update(state, make_batch([1] * users, [0] * users), np.zeros(users, np.int64))


OBSTACLES = [
    ({"layers": 2}, "layers is 2, not 1"),
    ({"positions": True}, "positions is True, not False"),
    ({"attention": "softmax"}, "attention is softmax, not qla"),
    ({"attention": "linear"}, "attention is linear, not qla"),
    ({"causal": True}, "causal is True, not False"),
    ({"seeds_as": "candidates"}, "seeds_as is candidates, not sources"),
]


@pytest.mark.parametrize(("changes", "named"), OBSTACLES)
def test_a_model_whose_summaries_are_no_sum_is_refused(changes: dict[str, object], named: str) -> None:
    config = ONE_LAYER.model_copy(update=changes)
    with pytest.raises(InputError, match=f"an event cannot be added to these summaries: {named}"):
        Incremental(Ranker(config, SPEC, "vista"), 100)
    values = incremental("").model_dump()
    values["model"] |= changes
    with pytest.raises(ValueError, match=f"an event cannot be added to these summaries: {named}"):
        Recipe.model_validate(values)


def test_the_recipe_is_refused_before_it_runs() -> None:
    with pytest.raises(InputError, match="layers is 2, not 1"):
        recipe_of(RefreshConfig(recipe="incremental", layers=2))
    recipe = recipe_of(RefreshConfig(recipe="incremental"))
    assert recipe.delivery == DeliveryConfig(states=True)


def test_decay_is_for_one_layer() -> None:
    with pytest.raises(ValueError, match="half_life_s 60: layers is 2, not 1"):
        ModelConfig(layers=2, half_life_s=60)
    ModelConfig(half_life_s=60)  # positions may stay: only updates per event need them out
