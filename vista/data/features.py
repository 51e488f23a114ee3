"""Dense point-in-time features: counts, smoothed rates, recency, each from events strictly before the cut.

A user's own past is everything at positions before the cut; an item's past is the events of all users whose
time is strictly smaller than the cut's. A rate is over events with a label, smoothed towards what is known
without it: the item's and the user's towards the rate of everything before the cut, the (user, category)
pair's and the user's newest events' towards the user's. A residual is how much more often a user's events
were positive than their items had been until then: it tells a generous user from popular items. Nothing is
fitted.

N events, C candidates, T tasks, A actions, V = T + 1 sums (positives per task, labelled events), W = V + T
(and residuals per task, in units of `RESIDUAL_UNIT`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from vista.data.batches import gather
from vista.data.dataset import Dataset
from vista.data.schema import NO_LABEL, Batch, Candidates, Events, Examples, places

Whole = TypeVar("Whole", np.int32, np.int64)

SMOOTHING = 10.0
"""Pseudo-events in every rate and share."""

RECENT_SMOOTHING = 2.0
"""The same for a user's newest events, of which there are few."""

RECENT_EVENTS = (5, 20, 50)
"""A user drifts: rates and residuals of the newest events too."""

RESIDUAL_UNIT = 2.0**-20
"""Residuals are summed as whole numbers of this, so that no sum depends on who shares the bucket."""

NEVER_S = 365 * 86_400.0
"""Recency of a user without events, and its upper limit."""


def dense_names(tasks: Sequence[str], actions: Sequence[str]) -> tuple[str, ...]:
    """Names of the columns of `dense_features`."""
    return (
        "item_log_count",
        *(f"item_rate_{task}" for task in tasks),
        "user_log_count",
        *(f"user_rate_{task}" for task in tasks),
        *(f"user_share_{action}" for action in actions),
        "user_category_log_count",
        *(f"user_category_rate_{task}" for task in tasks),
        "user_item_log_count",
        *(f"user_residual_{task}" for task in tasks),
        *(f"user_category_residual_{task}" for task in tasks),
        *(
            f"user_newest_{events}_{kind}_{task}"
            for events in RECENT_EVENTS
            for kind in ("rate", "residual")
            for task in tasks
        ),
        "recency_log_s",
    )


def label_values(labels_NT: NDArray[np.uint8]) -> NDArray[np.int32]:
    """[N, V] of each event: 1 if it is a positive of a task, 1 if it has a label."""
    labelled_N1 = labels_NT[:, :1] != NO_LABEL
    return np.concatenate([labels_NT == 1, labelled_N1], axis=1, dtype=np.int32, casting="unsafe")


def running_sums(values_NW: NDArray[Whole]) -> NDArray[Whole]:
    """[N + 1, W] sums of the values before each event."""
    sums = np.zeros((len(values_NW) + 1, values_NW.shape[1]), values_NW.dtype)
    np.cumsum(values_NW, axis=0, out=sums[1:])
    return sums


class _Groups:
    """Events sorted by (group, order): how many of a group lie in a range of orders, and their sums."""

    def __init__(
        self, group_N: NDArray[np.int32], order_N: NDArray[np.int64], values_NW: NDArray[Any]
    ) -> None:
        self.stride = len(order_N) + 1
        key_N = group_N.astype(np.int64) * self.stride + order_N
        sorted_N = np.argsort(key_N)
        self.key_N = key_N[sorted_N]
        self.sums = running_sums(values_NW.take(sorted_N, axis=0))

    def places(self, group_C: NDArray[np.int32], order_C: NDArray[np.int64]) -> NDArray[np.int64]:
        """How many events lie before each (group, order); an order is at most the number of events."""
        return places(self.key_N, group_C.astype(np.int64) * self.stride + order_C)

    def between(
        self, group_C: NDArray[np.int32], low_C: NDArray[np.int64], high_C: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[Any]]:
        """Counts [C] and sums [C, W] of the events with low <= order < high."""
        first_C, last_C = self.places(group_C, low_C), self.places(group_C, high_C)
        return last_C - first_C, self.sums.take(last_C, axis=0) - self.sums.take(first_C, axis=0)


class ItemsPast:
    """The events of all users by item and time; `items` is the largest row. About 40 bytes per event."""

    def __init__(
        self,
        item_row_N: NDArray[np.int32],
        time_us_N: NDArray[np.int64],
        labels_NT: NDArray[np.uint8],
        items: int,
    ) -> None:
        sorted_N = np.argsort(time_us_N)  # no cut parts events of one time: their order is of no matter
        self.time_us_N = time_us_N[sorted_N]
        values_NV = label_values(labels_NT.take(sorted_N, axis=0))
        self.sums = running_sums(values_NV)
        self.items = _Groups(item_row_N[sorted_N], np.arange(len(sorted_N)), values_NV)
        self.starts_R = np.searchsorted(self.items.key_N, np.arange(items + 1) * self.items.stride)
        self.sums_RV = self.items.sums[self.starts_R]

    def places(self, cut_us_E: NDArray[np.int64]) -> NDArray[np.int64]:
        """How many events lie strictly before each cut."""
        return places(self.time_us_N, cut_us_E)

    def prior(self, place_E: NDArray[np.int64]) -> NDArray[np.float64]:
        """[E, T] the rates of the first `place_E` events."""
        sums_EV = self.sums.take(place_E, axis=0)
        return _rates(sums_EV, np.full((len(place_E), sums_EV.shape[1] - 1), 0.5), SMOOTHING)

    def before(
        self, item_row_C: NDArray[np.int32], place_C: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """Count and sums of the item among the first `place_C` events."""
        last_C = self.items.places(item_row_C, place_C)
        sums_CV = self.items.sums.take(last_C, axis=0) - self.sums_RV.take(item_row_C, axis=0)
        return last_C - self.starts_R[item_row_C], sums_CV


class UsersPast:
    """The events of a bucket by position: the past of its users. `items` is the past of all users' items."""

    def __init__(self, events: Events, actions: int, items: ItemsPast) -> None:
        self.events = events
        values_NV = label_values(events.labels_NT)
        values_NW = np.concatenate([values_NV, _residuals(events, values_NV, items)], axis=1)
        self.sums = running_sums(values_NW)
        bits_NA = (events.action_mask_N[:, None] >> np.arange(actions, dtype=np.uint32)) & 1
        self.action_sums = running_sums(bits_NA.astype(np.int32))
        position_N = np.arange(len(events.user_id_N))
        self.categories = _Groups(events.category_row_N, position_N, values_NW)
        self.items = _Groups(events.item_row_N, position_N, values_NV[:, :0])


def _residuals(events: Events, values_NV: NDArray[np.int32], items: ItemsPast) -> NDArray[np.int64]:
    """[N, T] label - rate of the item before the event, in units of `RESIDUAL_UNIT`; 0 without a label."""
    place_N = items.places(events.event_time_us_N)
    _, item_NV = items.before(events.item_row_N, place_N)
    rate_NT = _rates(item_NV, items.prior(place_N), SMOOTHING)
    residual_NT = np.where(values_NV[:, -1:] == 1, values_NV[:, :-1] - rate_NT, 0.0)
    units_NT: NDArray[np.int64] = np.rint(residual_NT / RESIDUAL_UNIT).astype(np.int64)
    return units_NT


@dataclass(frozen=True, slots=True)
class Asked:
    """C candidates of E examples to compute features for. An example's user has the events from `user_start`
    on, and those before `cut_position` of the bucket precede its cut."""

    user_start_E: NDArray[np.int64]
    cut_position_E: NDArray[np.int64]
    cut_us_E: NDArray[np.int64]
    example_C: NDArray[np.int64]
    item_row_C: NDArray[np.int32]
    category_row_C: NDArray[np.int32]


def dense_features(users: UsersPast, items: ItemsPast, asked: Asked) -> NDArray[np.float32]:
    """[C, F] in the order of `dense_names`."""
    start_E, cut_E, example_C = asked.user_start_E, asked.cut_position_E, asked.example_C
    tasks = items.sums.shape[1] - 1
    place_E = items.places(asked.cut_us_E)
    prior_ET = items.prior(place_E)
    count_E = cut_E - start_E
    user_EW = users.sums[cut_E] - users.sums[start_E]
    rate_ET = _rates(user_EW[:, : tasks + 1], prior_ET, SMOOTHING)
    shares_EA = (users.action_sums[cut_E] - users.action_sums[start_E]) / (count_E + SMOOTHING)[:, None]
    item_count_C, item_CV = items.before(asked.item_row_C, place_E[example_C])
    start_C, cut_C = start_E[example_C], cut_E[example_C]
    pair_count_C, pair_CW = users.categories.between(asked.category_row_C, start_C, cut_C)
    seen_C, _ = users.items.between(asked.item_row_C, start_C, cut_C)
    columns = [
        np.log1p(item_count_C)[:, None],
        _rates(item_CV, prior_ET[example_C], SMOOTHING),
        np.log1p(count_E)[example_C, None],
        rate_ET[example_C],
        shares_EA[example_C],
        np.log1p(pair_count_C)[:, None],
        _rates(pair_CW[:, : tasks + 1], rate_ET[example_C], SMOOTHING),
        np.log1p(seen_C)[:, None],
        _mean_residuals(user_EW, tasks, SMOOTHING)[example_C],
        _mean_residuals(pair_CW, tasks, SMOOTHING),
    ]
    for events in RECENT_EVENTS:
        newest_EW = users.sums[cut_E] - users.sums[np.maximum(start_E, cut_E - events)]
        columns.append(_rates(newest_EW[:, : tasks + 1], rate_ET, RECENT_SMOOTHING)[example_C])
        columns.append(_mean_residuals(newest_EW, tasks, RECENT_SMOOTHING)[example_C])
    columns.append(_recency(users.events, asked)[example_C, None])
    return np.concatenate(columns, axis=1, dtype=np.float32)


def _rates(sums_NV: NDArray[Any], prior_NT: NDArray[np.float64], smoothing: float) -> NDArray[np.float64]:
    rates: NDArray[np.float64] = (sums_NV[:, :-1] + smoothing * prior_NT) / (sums_NV[:, -1:] + smoothing)
    return rates


def _mean_residuals(sums_NW: NDArray[np.int64], tasks: int, smoothing: float) -> NDArray[np.float64]:
    labelled_N1 = sums_NW[:, tasks : tasks + 1]
    means: NDArray[np.float64] = sums_NW[:, tasks + 1 :] * RESIDUAL_UNIT / (labelled_N1 + smoothing)
    return means


def _recency(events: Events, asked: Asked) -> NDArray[np.float64]:
    """[E] log(1 + seconds) from the user's newest event before the cut to the cut."""
    known_E = asked.cut_position_E > asked.user_start_E
    gap_s_E = np.full(len(known_E), NEVER_S)
    newest_us_E = events.event_time_us_N[asked.cut_position_E[known_E] - 1]
    gap_s_E[known_E] = np.minimum((asked.cut_us_E[known_E] - newest_us_E) / 1e6, NEVER_S)
    recency_E: NDArray[np.float64] = np.log1p(gap_s_E)
    return recency_E


def serving_batch(
    dataset: Dataset, user_id: int, item_ids: Sequence[int], cut_us: int, recent_tail: int
) -> Batch:
    """One user with the newest `recent_tail` events before `cut_us` and the candidates `item_ids`, with the
    dense features that training would give at `cut_us`, context 0 and label 0.

    Unknown users and items get the unseen row and the features of an empty past. `candidate_id_C` counts
    from 0.
    """
    every = dataset.events
    mine = np.flatnonzero(every.user_id_N == user_id)
    own = every.take(mine[every.event_time_us_N[mine] < cut_us])
    item_row_C = dataset.items.rows_of(np.asarray(item_ids, np.int64))
    category_row_C = dataset.item_category_R[item_row_C]
    zero = np.zeros(1, np.int64)
    zeros_C = np.zeros(len(item_row_C), np.int64)
    asked = Asked(
        user_start_E=zero,
        cut_position_E=zero + len(own.user_id_N),
        cut_us_E=zero + cut_us,
        example_C=zeros_C,
        item_row_C=item_row_C,
        category_row_C=category_row_C,
    )
    items = items_past(dataset)
    dense_CF = dense_features(UsersPast(own, len(dataset.file.actions), items), items, asked)
    candidates = Candidates(
        user_id_C=zeros_C + user_id,
        item_row_C=item_row_C,
        category_row_C=category_row_C,
        event_time_us_C=zeros_C + cut_us,
        day_C=dataset.days.of(zeros_C + cut_us).astype(np.int32),
        history_length_C=zeros_C + len(own.user_id_N),
        labels_CT=np.zeros((len(zeros_C), len(dataset.info.tasks)), np.float32),
        context_CK=np.zeros((len(zeros_C), len(dataset.file.context)), np.int32),
        dense_CF=dense_CF,
    )
    return gather(_one_example(dataset, user_id, cut_us, own, candidates), zero, recent_tail)


def items_past(dataset: Dataset) -> ItemsPast:
    """The past of a whole data set's items."""
    every = dataset.events
    return ItemsPast(every.item_row_N, every.event_time_us_N, every.labels_NT, len(dataset.items.id_R))


def _one_example(
    dataset: Dataset, user_id: int, cut_us: int, events: Events, candidates: Candidates
) -> Examples:
    zero = np.zeros(1, np.int64)
    return Examples(
        user_id_E=zero + user_id,
        user_row_E=dataset.users.rows_of(zero + user_id).astype(np.int64),
        day_E=dataset.days.of(zero + cut_us).astype(np.int32),
        cut_us_E=zero + cut_us,
        history_start_E=zero,
        history_length_E=zero + len(events.user_id_N),
        candidate_start_E=zero,
        num_candidates_E=zero + len(candidates.user_id_C),
        events=events,
        candidates=candidates,
    )
