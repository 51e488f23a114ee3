"""Shuffle the future: whatever happens at or after a cut leaves history and features bit-identical.

Small event tables drawn by hypothesis, the three modes of `history_cut`, and a planted copy of the label that
a cut off by one would show.
"""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from vista.config import DataConfig, HistoryCut
from vista.data.examples import Cuts, cut_examples
from vista.data.features import Asked, ItemsPast, UsersPast, dense_features
from vista.data.schema import DAY_US, NO_LABEL, Days, Events

MODES: tuple[HistoryCut, ...] = ("event", "session", "day")
DAYS = Days(0)
ACTIONS = 2
ITEMS = 5
HOUR_US = 3_600_000_000

Row = tuple[int, int, int, int, int, int]  # user, time, item, category, action, label


def events_of(rows: list[Row]) -> Events:
    """A table whose `seq` is the order of `rows` within each user."""
    seq, seen = [], dict[int, int]()
    for row in rows:
        seq.append(seen.setdefault(row[0], 0))
        seen[row[0]] += 1
    user, time, item, category, action, label = (
        np.array(column, np.int64) for column in zip(*rows, strict=True)
    )
    order = np.lexsort((np.array(seq), time, user))
    return Events(
        user_id_N=user[order],
        item_row_N=item[order].astype(np.int32),
        category_row_N=category[order].astype(np.int32),
        action_mask_N=action[order].astype(np.uint32),
        value_bucket_N=(item[order] % 3).astype(np.int32),
        event_time_us_N=time[order],
        seq_N=np.array(seq)[order],
        labels_NT=label[order].astype(np.uint8)[:, None],
    )


@st.composite
def tables(draw: st.DrawFn) -> list[Row]:
    """Few users, items and hours, so that equal times, sessions and repeated items are frequent."""
    row = st.tuples(
        st.integers(0, 2),
        st.integers(0, 3 * 24 * 4).map(lambda quarter: quarter * HOUR_US // 4),
        st.integers(1, 4),
        st.integers(0, 2),
        st.integers(0, 3),
        st.sampled_from([0, 1, NO_LABEL]),
    )
    return draw(st.lists(row, min_size=1, max_size=40))


@dataclass(frozen=True)
class Seen:
    """All that a model is given of one candidate."""

    cut_us: int
    uih: tuple[tuple[int, ...], ...]
    features: tuple[float, ...]


def config_of(mode: HistoryCut, limit: int = 10_000) -> DataConfig:
    return DataConfig(source="generated", history_cut=mode, max_candidates_per_user=limit)


def uih(events: Events, start: int, end: int) -> tuple[tuple[int, ...], ...]:
    columns = (
        events.item_row_N, events.category_row_N, events.action_mask_N, events.value_bucket_N,
        events.event_time_us_N, events.seq_N,
    )  # fmt: skip
    return tuple(zip(*(column[start:end].tolist() for column in columns), strict=True))


def seen_of(events: Events, cuts: Cuts) -> dict[tuple[int, int], Seen]:
    """By (user, seq) of the candidate."""
    example_C = cuts.example_C
    asked = Asked(
        user_start_E=cuts.user_start_E,
        cut_position_E=cuts.cut_position_E,
        cut_us_E=cuts.cut_us_E,
        example_C=example_C,
        item_row_C=events.item_row_N[cuts.position_C],
        category_row_C=events.category_row_N[cuts.position_C],
    )
    items = ItemsPast(events.item_row_N, events.event_time_us_N, events.labels_NT, ITEMS)
    dense_CF = dense_features(UsersPast(events, ACTIONS, items), items, asked)
    return {
        (int(events.user_id_N[row]), int(events.seq_N[row])): Seen(
            int(cuts.cut_us_E[example_C[place]]),
            uih(events, cuts.user_start_E[example_C[place]], cuts.cut_position_E[example_C[place]]),
            tuple(dense_CF[place].tolist()),
        )
        for place, row in enumerate(cuts.position_C)
    }


def with_changed_future(events: Events, user: int, cut_us: int, position: int, seed: int) -> Events:
    """Everything at or after the cut relabelled and shuffled: `user`'s events from `position` on, the others'
    from `cut_us` on. Times and arrival numbers stay, or it would not be the same cut."""
    random = np.random.default_rng(seed)
    other = (events.user_id_N != user) & (events.event_time_us_N >= cut_us)
    own = (events.user_id_N == user) & (np.arange(len(other)) >= position)
    future = np.flatnonzero(other | own)
    shuffled = random.permutation(future)
    changed = replace(
        events,
        item_row_N=events.item_row_N.copy(),
        category_row_N=events.category_row_N.copy(),
        action_mask_N=events.action_mask_N.copy(),
        value_bucket_N=events.value_bucket_N.copy(),
        labels_NT=events.labels_NT.copy(),
    )
    changed.item_row_N[future] = events.item_row_N[shuffled]
    changed.category_row_N[future] = events.category_row_N[shuffled]
    changed.action_mask_N[future] = random.integers(0, 4, len(future))
    changed.value_bucket_N[future] = random.integers(0, 4, len(future))
    labelled = future[events.labels_NT[future, 0] != NO_LABEL]
    changed.labels_NT[labelled, 0] = 1 - events.labels_NT[labelled, 0]
    return changed


def same_candidate(events: Events, changed: Events, row: int) -> Events:
    """The candidate itself stays what it is: its item is known, its label and actions are not."""
    changed.item_row_N[row] = events.item_row_N[row]
    changed.category_row_N[row] = events.category_row_N[row]
    return changed


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=40)
@given(rows=tables(), seed=st.integers(0, 1_000))
def test_changing_the_future_changes_nothing(mode: HistoryCut, rows: list[Row], seed: int) -> None:
    events = events_of(rows)
    cuts = cut_examples(events, DAYS, config_of(mode))
    before = seen_of(events, cuts)
    for place, row in enumerate(cuts.position_C):
        example = cuts.example_C[place]
        user, cut_us = int(events.user_id_N[row]), int(cuts.cut_us_E[example])
        changed = with_changed_future(events, user, cut_us, int(cuts.cut_position_E[example]), seed)
        changed = same_candidate(events, changed, row)
        key = (user, int(events.seq_N[row]))
        assert seen_of(changed, cut_examples(changed, DAYS, config_of(mode)))[key] == before[key]


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=40)
@given(rows=tables())
def test_deleting_the_future_changes_nothing(mode: HistoryCut, rows: list[Row]) -> None:
    events = events_of(rows)
    cuts = cut_examples(events, DAYS, config_of(mode))
    before = seen_of(events, cuts)
    for place, row in enumerate(cuts.position_C):
        cut_us, position = cuts.cut_us_E[cuts.example_C[place]], cuts.cut_position_E[cuts.example_C[place]]
        own_N = events.user_id_N == events.user_id_N[row]
        past_N = np.where(own_N, np.arange(len(own_N)) < position, events.event_time_us_N < cut_us)
        past_N[row] = True
        left = events.take(np.flatnonzero(past_N))
        key = (int(events.user_id_N[row]), int(events.seq_N[row]))
        after = seen_of(left, cut_examples(left, DAYS, config_of(mode)))[key]
        assert (after.uih, after.features[:-1]) == (before[key].uih, before[key].features[:-1])
        if after.cut_us == before[key].cut_us:  # else the session's first event was deleted: a later cut
            assert after == before[key]


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=60)
@given(rows=tables())
def test_histories_are_what_a_plain_loop_gives(mode: HistoryCut, rows: list[Row]) -> None:
    events = events_of(rows)
    seen = seen_of(events, cut_examples(events, DAYS, config_of(mode)))
    table = list(
        zip(events.user_id_N.tolist(), events.event_time_us_N.tolist(), events.seq_N.tolist(), strict=True)
    )
    assert len(seen) == int((events.labels_NT != NO_LABEL).sum())
    for (user, seq), one in seen.items():
        own = [(time, number) for who, time, number in table if who == user]
        place = next(place for place, (_, number) in enumerate(own) if number == seq)
        first = place
        if mode == "session":
            while (
                first
                and own[first][0] - own[first - 1][0] <= 1_800_000_000
                and (own[first][0] // DAY_US == own[first - 1][0] // DAY_US)
            ):
                first -= 1
        if mode == "day":
            first = sum(time < own[place][0] // DAY_US * DAY_US for time, _ in own)
        assert [row[-1] for row in one.uih] == [number for _, number in own[:first]]
        assert one.cut_us == (own[place][0] // DAY_US * DAY_US if mode == "day" else own[first][0])


def leaks(events: Events, cuts: Cuts) -> float:
    """How often the newest event of the history carries the candidate's own label in its action."""
    label_C = events.labels_NT[cuts.position_C, 0]
    newest_C = cuts.cut_position_E[cuts.example_C] - 1
    return float((events.action_mask_N[newest_C] & 1 == label_C).mean())


def one_per_hour(number: int) -> Events:
    """One user, each event with a label and a copy of it in the action."""
    label = np.random.default_rng(0).integers(0, 2, number)
    return events_of(
        [(0, hour * HOUR_US, 1 + hour % 5, 0, int(label[hour]), int(label[hour])) for hour in range(number)]
    )


def test_a_planted_label_copy_stays_hidden_and_an_off_by_one_cut_shows_it() -> None:
    events = one_per_hour(2_000)
    cuts = cut_examples(events, DAYS, config_of("event"))
    assert abs(leaks(events, cuts) - 0.5) < 0.05
    off_by_one = replace(cuts, cut_position_E=cuts.cut_position_E + 1)  # <= in place of <
    assert leaks(events, off_by_one) == 1.0


def test_shuffling_the_future_catches_a_cut_that_is_off_by_one() -> None:
    events = one_per_hour(50)
    changed = same_candidate(events, with_changed_future(events, 0, 30 * HOUR_US, 30, 1), 30)
    cuts = cut_examples(events, DAYS, config_of("event"))
    off_by_one = replace(cuts, cut_position_E=cuts.cut_position_E + 1, cut_us_E=cuts.cut_us_E + HOUR_US)
    assert seen_of(changed, cuts)[0, 30] == seen_of(events, cuts)[0, 30]
    assert seen_of(changed, off_by_one)[0, 30] != seen_of(events, off_by_one)[0, 30]


def test_an_item_past_that_is_off_by_one_would_be_caught() -> None:
    """The item's rate at the candidate's own time must not hold the candidate's own label."""
    events = events_of([(user, HOUR_US * (user + 1), 1, 0, 0, 1) for user in range(30)])
    items = ItemsPast(events.item_row_N, events.event_time_us_N, events.labels_NT, ITEMS)
    count, sums = items.before(events.item_row_N, items.places(events.event_time_us_N))
    assert_array_equal(count, np.arange(30))
    assert_array_equal(sums, np.stack([np.arange(30)] * 2, axis=1))
    late, _ = items.before(events.item_row_N, items.places(events.event_time_us_N + 1))
    assert_array_equal(late, np.arange(1, 31))


def test_the_newest_candidates_of_a_user_are_kept() -> None:
    events = events_of([(user, hour * HOUR_US, 1, 0, 0, 1) for user in (4, 9) for hour in range(7)])
    cuts = cut_examples(events, DAYS, config_of("event", limit=3))
    assert cuts.position_C.tolist() == [4, 5, 6, 11, 12, 13]


def test_a_session_ends_with_a_gap_or_at_midnight() -> None:
    minute = 60_000_000
    times = [0, 10 * minute, 40 * minute, 71 * minute, DAY_US - minute, DAY_US + minute]
    events = events_of([(1, time, 1, 0, 0, 1) for time in times])
    cuts = cut_examples(events, DAYS, config_of("session"))
    assert cuts.cut_us_E.tolist() == [0, 71 * minute, DAY_US - minute, DAY_US + minute]
    assert cuts.num_candidates_E.tolist() == [3, 1, 1, 1]
    assert cuts.cut_position_E.tolist() == [0, 3, 4, 5]
