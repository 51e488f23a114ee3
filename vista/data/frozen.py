"""Examples whose histories are frozen at a boundary: what GAUC is measured on.

A user's later test rows know of the earlier ones, which moves the scores of one user against each other and
says nothing about the ranking of what could be shown at one moment.

C candidates, E examples, U users, N events.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from vista.data.dataset import Dataset
from vista.data.features import Asked, UsersPast, dense_features, items_past
from vista.data.schema import Examples


def frozen(dataset: Dataset, examples: Examples, boundary_us: int | None = None) -> Examples:
    """The same candidates under the same ids, all of a user's with one cut: `boundary_us`, or the user's
    first cut among `examples` if that is earlier or no boundary is given (splits by user).

    History and dense features are as of that cut; labels, context and days stay. Only the candidates of
    `examples` are frozen in `candidates`.
    """
    cut_us_E = _first_of_user(examples.user_id_E, examples.cut_us_E)
    length_E = _first_of_user(examples.user_id_E, examples.history_length_E)
    if boundary_us is not None:
        cut_us_E = np.minimum(cut_us_E, boundary_us)
        length_E = np.minimum(length_E, _events_before(examples, boundary_us))
    chosen_C = examples.candidate_ids()
    example_C = np.repeat(np.arange(len(examples)), examples.num_candidates_E)
    candidates = examples.candidates
    asked = Asked(
        user_start_E=examples.history_start_E,
        cut_position_E=examples.history_start_E + length_E,
        cut_us_E=cut_us_E,
        example_C=example_C,
        item_row_C=candidates.item_row_C[chosen_C],
        category_row_C=candidates.category_row_C[chosen_C],
    )
    items = items_past(dataset)
    users = UsersPast(examples.events, len(dataset.file.actions), items)
    dense_CF, history_length_C = candidates.dense_CF.copy(), candidates.history_length_C.copy()
    dense_CF[chosen_C] = dense_features(users, items, asked)
    history_length_C[chosen_C] = length_E[example_C]
    return replace(
        examples,
        cut_us_E=cut_us_E,
        history_length_E=length_E,
        candidates=replace(candidates, dense_CF=dense_CF, history_length_C=history_length_C),
    )


def _first_of_user(user_id_E: NDArray[np.int64], value_E: NDArray[np.int64]) -> NDArray[np.int64]:
    """[E] the smallest value of each example's user."""
    _, user_E = np.unique(user_id_E, return_inverse=True)
    smallest_U = np.full(user_E.max(initial=-1) + 1, np.iinfo(np.int64).max)
    np.minimum.at(smallest_U, user_E, value_E)
    smallest_E: NDArray[np.int64] = smallest_U[user_E]
    return smallest_E


def _events_before(examples: Examples, time_us: int) -> NDArray[np.int64]:
    """[E] how many events of the history are before a time."""
    before_N = np.append(0, np.cumsum(examples.events.event_time_us_N < time_us))
    end_E = examples.history_start_E + examples.history_length_E
    before_E: NDArray[np.int64] = before_N[end_E] - before_N[examples.history_start_E]
    return before_E
