"""Sampled negatives for sources that know positives only: uniform over the items known at the cut.

Never an item that the user has in the history, nor one that the user has as a positive later in the same
split. A draw depends on (seed, user, arrival number, which negative) only, so it does not depend on buckets.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vista.data.digest import mix
from vista.data.schema import Events

MAX_DRAWS = 64
"""A negative that is refused so often is left out: the user has nearly every item."""


@dataclass(frozen=True, slots=True)
class Positives:
    """P candidates to sample for. `split_P` numbers the part of the data set (training, test ...)."""

    position_P: NDArray[np.int64]
    cut_position_P: NDArray[np.int64]
    known_items_P: NDArray[np.int64]
    split_P: NDArray[np.int64]


class _Members:
    """Is (group, item) among the given pairs?"""

    def __init__(self, group_N: NDArray[np.int64], item_row_N: NDArray[np.int32], items: int) -> None:
        self.items = items + 1
        self.keys = np.unique(group_N * self.items + item_row_N)

    def has(self, group_P: NDArray[np.int64], item_row_P: NDArray[np.int64]) -> NDArray[np.bool_]:
        key_P = group_P * self.items + item_row_P
        place_P = np.minimum(np.searchsorted(self.keys, key_P), len(self.keys) - 1)
        found: NDArray[np.bool_] = self.keys[place_P] == key_P
        return found


def sample_negatives(
    events: Events, positives: Positives, *, items: int, per_positive: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns for each negative its positive (position among the P, rising) and its item row."""
    user_start_N = events.user_starts()
    first_N = _first_of_item(user_start_N, events.item_row_N, items)
    history = _FirstPositions(user_start_N[first_N], events.item_row_N[first_N], first_N, items)
    position_P = positives.position_P
    splits = int(positives.split_P.max(initial=0)) + 1
    later = _Members(
        user_start_N[position_P] * splits + positives.split_P, events.item_row_N[position_P], items
    )
    source = np.repeat(np.arange(len(position_P)), per_positive)
    which = np.tile(np.arange(per_positive), len(position_P))
    item = np.zeros(len(source), np.int64)
    open_ = np.flatnonzero(positives.known_items_P[source] > 0)
    for draw in range(MAX_DRAWS):
        place_P = source[open_]
        row = position_P[place_P]
        drawn = mix(
            seed, events.user_id_N[row].view(np.uint64), events.seq_N[row].view(np.uint64), which[open_], draw
        )
        candidate = 1 + (drawn % positives.known_items_P[place_P].astype(np.uint64)).astype(np.int64)
        refused = history.before(user_start_N[row], candidate, positives.cut_position_P[place_P])
        refused |= later.has(user_start_N[row] * splits + positives.split_P[place_P], candidate)
        item[open_[~refused]] = candidate[~refused]
        open_ = open_[refused]
    return source[item > 0], item[item > 0]


def _first_of_item(
    user_start_N: NDArray[np.int64], item_row_N: NDArray[np.int32], items: int
) -> NDArray[np.int64]:
    """Positions of the first event of every (user, item)."""
    first: NDArray[np.int64] = np.unique(user_start_N * (items + 1) + item_row_N, return_index=True)[1]
    return first


class _FirstPositions:
    """Where a user first met an item; the pairs come sorted."""

    def __init__(
        self,
        user_start_N: NDArray[np.int64],
        item_row_N: NDArray[np.int32],
        position_N: NDArray[np.int64],
        items: int,
    ) -> None:
        self.items = items + 1
        self.keys = user_start_N * self.items + item_row_N
        self.positions = position_N

    def before(
        self, user_start_P: NDArray[np.int64], item_row_P: NDArray[np.int64], cut_P: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """Did the user meet the item before the cut position?"""
        key_P = user_start_P * self.items + item_row_P
        place_P = np.minimum(np.searchsorted(self.keys, key_P), len(self.keys) - 1)
        met: NDArray[np.bool_] = (self.keys[place_P] == key_P) & (self.positions[place_P] < cut_P)
        return met
