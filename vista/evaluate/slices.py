"""Slices that every model is also measured on: history length, user activity, item age.

N candidates or users, G groups.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vista.data.dataset import Dataset
from vista.data.schema import DAY_US
from vista.errors import InputError

HISTORY_EDGES = (1, 10, 50, 100, 200)
ACTIVITY_EDGES = (1, 5, 20, 100)
AGE_DAYS_EDGES = (1, 7, 30)
ACTIVITY_DAYS = 7


@dataclass(frozen=True, slots=True)
class Groups:
    """A value of each row, cut at edges: `group_N` indexes `names`, which are in ascending order."""

    names: tuple[str, ...]
    group_N: NDArray[np.int64]

    @classmethod
    def cut(cls, values_N: NDArray[np.int64], edges: Sequence[int]) -> "Groups":
        """Group 0 holds what is below the first edge, group g what is below edge g, the last one the rest.

        >>> Groups.cut(np.array([0, 3, 10, 99]), (1, 10))
        Groups(names=('0', '1 .. 9', '10 and more'), group_N=array([0, 1, 2, 2]))
        """
        lows = (0, *edges[:-1])
        below = (
            str(low) if low == high - 1 else f"{low} .. {high - 1}"
            for low, high in zip(lows, edges, strict=True)
        )
        return cls((*below, f"{edges[-1]} and more"), np.searchsorted(edges, values_N, side="right"))

    def labels(self) -> tuple[str, ...]:
        """The name of every row's group."""
        return tuple(np.array(self.names)[self.group_N].tolist())


def candidate_slices(dataset: Dataset, chosen_N: NDArray[np.int64]) -> dict[str, NDArray[np.bool_]]:
    """Masks over the chosen candidates, by slice.

    Empty slices and those that would hold every candidate are left out. Raises `InputError` if none is
    chosen.
    """
    if not len(chosen_N):
        raise InputError("slices need at least one candidate: is the test day empty?")
    candidates = dataset.candidates
    first_day_us = dataset.day_start_us(int(candidates.day_C[chosen_N].min()))
    grouped = {
        "history": Groups.cut(candidates.history_length_C[chosen_N], HISTORY_EDGES),
        f"events in {ACTIVITY_DAYS} days": activity(dataset, candidates.user_id_C[chosen_N], first_day_us),
        "item age in days": item_age(dataset, chosen_N),
    }
    return {
        f"{slicing}: {name}": groups.group_N == group
        for slicing, groups in grouped.items()
        if len(np.unique(groups.group_N)) > 1
        for group, name in enumerate(groups.names)
        if (groups.group_N == group).any()
    }


def activity(dataset: Dataset, user_id_N: NDArray[np.int64], until_us: int) -> Groups:
    """Users by their events in the `ACTIVITY_DAYS` days before `until_us`."""
    events = dataset.events
    since_us = until_us - ACTIVITY_DAYS * DAY_US
    recent_N = (events.event_time_us_N >= since_us) & (events.event_time_us_N < until_us)
    row_N = dataset.users.rows_of(events.user_id_N[recent_N])
    number_R = np.bincount(row_N, minlength=len(dataset.users.id_R) + 1)
    return Groups.cut(number_R[dataset.users.rows_of(user_id_N)], ACTIVITY_EDGES)


def item_age(dataset: Dataset, chosen_N: NDArray[np.int64]) -> Groups:
    """Candidates by the whole days since anyone first met or was shown their item, up to their own time."""
    candidates = dataset.candidates
    first_seen_us_N = dataset.items.first_seen_us_R[candidates.item_row_C[chosen_N] - 1]
    age_N = (candidates.event_time_us_C[chosen_N] - first_seen_us_N) // DAY_US
    return Groups.cut(age_N, AGE_DAYS_EDGES)
