"""Dense features by hand, at serving as in training, and negatives that nobody has."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from vista.config import DataConfig, GeneratedConfig, WindowConfig
from vista.data.batches import gather
from vista.data.dataset import Dataset
from vista.data.features import (
    NEVER_S,
    RECENT_EVENTS,
    Asked,
    ItemsPast,
    UsersPast,
    dense_features,
    dense_names,
    serving_batch,
)
from vista.data.negatives import Positives, sample_negatives
from vista.data.prepare import prepare_dataset
from vista.data.schema import Events


def table(rows: list[tuple[int, int, int, int, int, int]]) -> Events:
    """Rows of user, time in seconds, item, category, action, label; sorted by user and time."""
    user, time_s, item, category, action, label = (np.array(column) for column in zip(*rows, strict=True))
    return Events(
        user_id_N=user,
        item_row_N=item.astype(np.int32),
        category_row_N=category.astype(np.int32),
        action_mask_N=action.astype(np.uint32),
        value_bucket_N=np.zeros(len(user), np.int32),
        event_time_us_N=time_s * 1_000_000,
        seq_N=np.arange(len(user)),
        labels_NT=label.astype(np.uint8)[:, None],
    )


EVENTS = table(
    [
        (1, 10, 5, 1, 1, 1),
        (1, 20, 6, 1, 0, 0),
        (1, 30, 5, 2, 1, 255),
        (1, 40, 6, 1, 0, 1),
        (2, 15, 5, 1, 0, 1),
        (2, 30, 5, 1, 0, 0),
    ]
)


def features_of(position: int, events: Events = EVENTS) -> dict[str, float]:
    """Of the event at `position`, with its own time as the cut."""
    place = np.array([position])
    asked = Asked(
        user_start_E=events.user_starts()[place],
        cut_position_E=place,
        cut_us_E=events.event_time_us_N[place],
        example_C=np.zeros(1, np.int64),
        item_row_C=events.item_row_N[place],
        category_row_C=events.category_row_N[place],
    )
    items = ItemsPast(
        events.item_row_N, events.event_time_us_N, events.labels_NT, items=int(events.item_row_N.max())
    )
    row = dense_features(UsersPast(events, 1, items), items, asked)[0]
    return dict(zip(dense_names(["click"], ["like"]), row.tolist(), strict=True))


def test_features_by_hand() -> None:
    found = features_of(3)  # user 1 at 40 s: item 6, category 1
    everything = (2 + 10 * 0.5) / (4 + 10)  # 1, 0, 1, 0 before; the event without a label does not count
    user = (1 + 10 * everything) / (2 + 10)
    residuals = (
        0.5 - 7 / 12
    )  # 1 - 0.5 at 10 s: nothing known; 0 - (2 + 10 * 0.5) / (2 + 10) at 20 s: 1, 1 before
    expected = {
        "item_log_count": np.log1p(1),
        "item_rate_click": (0 + 10 * everything) / (1 + 10),
        "user_log_count": np.log1p(3),
        "user_rate_click": user,
        "user_share_like": 2 / (3 + 10),
        "user_category_log_count": np.log1p(2),
        "user_category_rate_click": (1 + 10 * user) / (2 + 10),
        "user_item_log_count": np.log1p(1),
        "recency_log_s": np.log1p(10),
        "user_residual_click": residuals / (2 + 10),
        "user_category_residual_click": residuals / (2 + 10),
    }
    for newest in RECENT_EVENTS:
        expected[f"user_newest_{newest}_rate_click"] = (1 + 2 * user) / (2 + 2)
        expected[f"user_newest_{newest}_residual_click"] = residuals / (2 + 2)
    assert found == pytest.approx(expected, rel=1e-5)  # residuals have 20 bits


def test_the_first_event_of_all_knows_nothing() -> None:
    found = features_of(0)
    assert found.pop("recency_log_s") == pytest.approx(np.log1p(NEVER_S))
    assert {value for name, value in found.items() if "_rate_" in name} == {0.5}
    assert not any(value for name, value in found.items() if "rate" not in name)


def test_only_the_newest_events_count_as_recent() -> None:
    """A user whose last 5 of 30 events are 0 after 25 times 1."""
    events = table([(1, 10 * place, 1 + place, 0, 0, int(place < 25)) for place in range(31)])
    found = features_of(30, events)
    rates = [found[f"user_newest_{newest}_rate_click"] for newest in RECENT_EVENTS]
    residuals = [found[f"user_newest_{newest}_residual_click"] for newest in RECENT_EVENTS]
    user = found["user_rate_click"]
    assert rates == pytest.approx([(p + 2 * user) / (n + 2) for p, n in ((0, 5), (15, 20), (25, 30))])
    assert residuals == sorted(residuals)
    assert residuals[0] < -0.5


def test_another_users_event_at_the_same_time_is_not_the_past() -> None:
    assert features_of(5)["item_log_count"] == pytest.approx(np.log1p(2))  # 10 s and 15 s, not 30 s


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    path = tmp_path_factory.mktemp("data") / "generated"
    size = GeneratedConfig(users=30, items=64, events_per_user=40, days=5)
    prepare_dataset(DataConfig(source="generated", buckets=3, generated=size), path, WindowConfig())
    return Dataset.open(path)


def test_serving_gives_the_features_of_training(dataset: Dataset) -> None:
    examples = dataset.examples(2, 5)
    for example in (0, 7, len(examples) - 1):
        ids = examples.candidate_start_E[example] + np.arange(examples.num_candidates_E[example])
        rows = dataset.candidates.item_row_C[ids]
        user, cut_us = int(examples.user_id_E[example]), int(examples.cut_us_E[example])
        batch = serving_batch(dataset, user, dataset.items.id_R[rows - 1].tolist(), cut_us, recent_tail=3)
        assert_array_equal(batch.candidate_dense_CF, dataset.candidates.dense_CF[ids])
        assert_array_equal(batch.candidate_item_C, rows)
        assert_array_equal(batch.candidate_category_C, dataset.candidates.category_row_C[ids])
        tail = gather(examples, np.array([example]), 3)
        for name in ("seq_offsets", "uih_item_L", "uih_action_L", "uih_value_L", "uih_time_us_L"):
            assert_array_equal(getattr(batch, name), getattr(tail, name))
        assert (batch.uih_time_us_L < cut_us).all()


def test_serving_an_unknown_user_and_item_gives_unseen_rows(dataset: Dataset) -> None:
    batch = serving_batch(dataset, -5, [10**12], dataset.day_start_us(4), recent_tail=3)
    assert batch.seq_offsets.tolist() == [0, 0]
    assert (batch.user_row_B.tolist(), batch.candidate_item_C.tolist()) == ([0], [0])
    assert np.isfinite(batch.candidate_dense_CF).all()


def few_items(items: int, seed: int) -> Events:
    random = np.random.default_rng(seed)
    rows = [
        (user, place, int(random.integers(1, items + 1)), 0, 0, 1) for user in range(4) for place in range(9)
    ]
    return table(rows)


@settings(max_examples=30)
@given(st.integers(12, 30), st.integers(0, 99))
def test_negatives_are_in_no_history_and_no_later_positive_of_the_split(items: int, seed: int) -> None:
    events = few_items(items, seed)
    position_P = np.arange(36)
    split_P = (events.event_time_us_N >= 5_000_000).astype(np.int64)
    known_P = np.full(36, items)
    positives = Positives(position_P, position_P, known_P, split_P)
    source, item = sample_negatives(events, positives, items=items, per_positive=2, seed=seed)
    assert len(source) > 36  # most positives find some
    for place, row in zip(source, item, strict=True):
        mine = events.user_id_N == events.user_id_N[place]
        history = events.item_row_N[mine & (np.arange(36) < place)]
        later = events.item_row_N[mine & (split_P == split_P[place])]
        assert row not in history
        assert row not in later
        assert 1 <= row <= items
    again = sample_negatives(events, positives, items=items, per_positive=2, seed=seed)
    assert_array_equal(again[1], item)


def test_negatives_are_known_at_the_cut_and_do_not_depend_on_other_users() -> None:
    events = few_items(20, 0)
    position_P = np.arange(36)
    split_P = np.zeros(36, np.int64)
    positives = Positives(position_P, position_P, np.full(36, 15), split_P)
    source, item = sample_negatives(events, positives, items=20, per_positive=3, seed=1)
    assert item.max() <= 15
    only = events.take(np.arange(9, 18))  # user 1 in a bucket of its own
    own = Positives(np.arange(9), np.arange(9), np.full(9, 15), np.zeros(9, np.int64))
    own_source, own_item = sample_negatives(
        replace(only, seq_N=events.seq_N[9:18]), own, items=20, per_positive=3, seed=1
    )
    mine = (source >= 9) & (source < 18)
    assert_array_equal(own_source, source[mine] - 9)
    assert_array_equal(own_item, item[mine])


def test_an_item_that_everybody_has_leaves_no_negative() -> None:
    events = table([(1, place, 1, 0, 0, 1) for place in range(3)])
    positives = Positives(np.arange(3), np.arange(3), np.ones(3, np.int64), np.zeros(3, np.int64))
    assert len(sample_negatives(events, positives, items=1, per_positive=1, seed=0)[0]) == 0
