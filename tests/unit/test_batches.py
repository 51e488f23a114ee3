"""Packing, splitting over ranks, resuming: no example twice, none lost, none split."""

import threading
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from vista.config import DataConfig, GeneratedConfig, WindowConfig
from vista.data.batches import BatchPlan, batches, pack
from vista.data.dataset import Dataset
from vista.data.prepare import prepare_dataset
from vista.data.schema import Batch, Examples

DATA = DataConfig(
    source="generated", buckets=3, generated=GeneratedConfig(users=40, items=64, events_per_user=40, days=5)
)


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Examples:
    path = tmp_path_factory.mktemp("data") / "generated"
    prepare_dataset(DATA, path, WindowConfig())
    return Dataset.open(path).examples(0, 5)


def plan_of(examples: Examples, **changes: int) -> BatchPlan:
    values = {"max_tokens": 300, "max_candidates": 12, "max_uih": 25, "seed": 3, "epoch": 1} | changes
    return BatchPlan.make(examples, **values)  # type: ignore[arg-type]


def keys(batch: Batch) -> Counter[tuple[int, int]]:
    return Counter(zip(batch.user_id_B.tolist(), batch.cut_us_B.tolist(), strict=True))


def total(parts: list[Counter[tuple[int, int]]]) -> Counter[tuple[int, int]]:
    return sum(parts, Counter())


@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(1, 9)), max_size=60),
    st.integers(1, 60),
    st.integers(1, 20),
)
def test_groups_fill_both_limits_and_never_split(
    sizes: list[tuple[int, int]], max_tokens: int, max_candidates: int
) -> None:
    tokens = np.array([history + candidates for history, candidates in sizes], np.int64)
    candidates = np.array([candidates for _, candidates in sizes], np.int64)
    firsts = pack(tokens, candidates, max_tokens, max_candidates)
    assert firsts[0] == 0
    assert firsts[-1] == len(sizes)
    for low, high in pairwise(firsts):
        fits = tokens[low:high].sum() <= max_tokens and candidates[low:high].sum() <= max_candidates
        assert high == low + 1 or fits
        if high < len(sizes):  # one more would not fit: groups are as few as the order allows
            more = slice(low, high + 1)
            assert tokens[more].sum() > max_tokens or candidates[more].sum() > max_candidates


def test_an_epoch_holds_every_example_once(examples: Examples) -> None:
    seen = total([keys(batch) for batch in batches(plan_of(examples))])
    assert seen == Counter(zip(examples.user_id_E.tolist(), examples.cut_us_E.tolist(), strict=True))
    assert set(seen.values()) == {1}


def test_a_batch_is_the_newest_rows_of_each_user(examples: Examples) -> None:
    batch = plan_of(examples).batch(2)
    position = {
        key: place for place, key in enumerate(zip(examples.user_id_E, examples.cut_us_E, strict=True))
    }
    first_candidate = 0
    for place, key in enumerate(zip(batch.user_id_B, batch.cut_us_B, strict=True)):
        example = position[key]
        start, length = examples.history_start_E[example], examples.history_length_E[example]
        rows = np.arange(start + max(0, length - 25), start + length)
        mine = slice(batch.seq_offsets[place], batch.seq_offsets[place + 1])
        assert_array_equal(batch.uih_item_L[mine], examples.events.item_row_N[rows])
        assert_array_equal(batch.uih_action_L[mine], examples.events.action_mask_N[rows])
        assert_array_equal(batch.uih_time_us_L[mine], examples.events.event_time_us_N[rows])
        number = batch.num_candidates[place]
        ids = examples.candidate_start_E[example] + np.arange(number)
        shown = slice(first_candidate, first_candidate + number)
        assert_array_equal(batch.candidate_id_C[shown], ids)
        assert_array_equal(batch.labels_CT[shown], examples.candidates.labels_CT[ids])
        first_candidate += number
    assert first_candidate == len(batch.candidate_id_C)


@settings(max_examples=15)
@given(st.integers(0, 100), st.integers(0, 3))
def test_resuming_at_a_step_gives_the_same_rest(examples: Examples, step: int, epoch: int) -> None:
    plan = plan_of(examples, epoch=epoch)
    stop = min(step, plan.steps)
    seen = [keys(plan.batch(earlier)) for earlier in range(stop)]
    resumed = list(batches(plan_of(examples, epoch=epoch), start_step=stop))
    assert len(resumed) == plan.steps - stop
    assert total(seen + [keys(batch) for batch in resumed]) == total([keys(b) for b in batches(plan)])


@pytest.mark.parametrize("world_size", [2, 3, 7])
def test_ranks_share_every_global_batch(examples: Examples, world_size: int) -> None:
    plan = plan_of(examples)
    for step in range(plan.steps):
        whole = plan.batch(step)
        parts = [plan.batch(step, rank, world_size) for rank in range(world_size)]
        for name in ("user_id_B", "cut_us_B", "uih_item_L", "candidate_id_C", "labels_CT"):
            assert_array_equal(np.concatenate([getattr(part, name) for part in parts]), getattr(whole, name))


def test_ranks_get_about_the_same_tokens(examples: Examples) -> None:
    plan = plan_of(examples, max_tokens=2_000, max_candidates=1_000)
    tokens = [plan.batch(0, rank, 2).seq_offsets[-1] for rank in range(2)]
    assert abs(int(tokens[0]) - int(tokens[1])) <= 2 * 25


def test_order_depends_on_seed_and_epoch_only(examples: Examples) -> None:
    first = plan_of(examples)
    assert_array_equal(first.order_E, plan_of(examples).order_E)
    assert (first.order_E != plan_of(examples, epoch=2).order_E).any()
    assert (first.order_E != plan_of(examples, seed=4).order_E).any()


def test_without_examples_there_are_no_steps(examples: Examples) -> None:
    plan = plan_of(examples.where(np.zeros(len(examples), bool)))
    assert plan.steps == 0
    assert list(batches(plan)) == []


def test_closing_the_iterator_ends_its_thread(examples: Examples) -> None:
    stream = batches(plan_of(examples))
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name == "vista-ahead"]


def test_an_error_of_the_thread_reaches_the_consumer(examples: Examples) -> None:
    with pytest.raises(IndexError):
        list(batches(BatchPlan(examples, 5, np.array([10**6]), np.array([0, 1]), np.array([1]))))
