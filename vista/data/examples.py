"""Cutting examples: which events precede a candidate, in the three modes of `history_cut`.

N events of a bucket, sorted by (user, time, seq); E examples; C candidates.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vista.config import DataConfig
from vista.data.schema import DAY_US, NO_LABEL, Days, Events


@dataclass(frozen=True, slots=True)
class Cuts:
    """E examples of one bucket and their C candidates, which are consecutive per example.

    The history of an example is the events at positions user_start .. cut_position - 1; `position_C` is the
    event that a candidate is (a sampled negative: the event of its positive).
    """

    user_start_E: NDArray[np.int64]
    cut_position_E: NDArray[np.int64]
    cut_us_E: NDArray[np.int64]
    day_E: NDArray[np.int64]
    num_candidates_E: NDArray[np.int64]
    position_C: NDArray[np.int64]

    @property
    def example_C(self) -> NDArray[np.int64]:
        """The example of each candidate."""
        return np.repeat(np.arange(len(self.day_E)), self.num_candidates_E)


def cut_examples(events: Events, days: Days, config: DataConfig) -> Cuts:
    """Group a bucket's candidates (rows with labels) by their cut.

    event: each candidate alone, after the events strictly before its own (time, seq). session: the
    candidates of one session, after the events before the session's first one; a session ends with a gap
    of more than `session_gap_s` or at midnight. day: the candidates of one day, after the events before
    00:00. Of a user with more than `max_candidates_per_user` the newest are kept.
    """
    user_start_N = events.user_starts()
    position_C = _newest(np.flatnonzero(events.labels_NT[:, 0] != NO_LABEL), user_start_N, config)
    day_C = days.of(events.event_time_us_N[position_C])
    cut_C, cut_us_C = {"event": _event, "session": _session, "day": _day}[config.history_cut](
        events, user_start_N, days, config, position_C
    )
    first_C = np.ones(len(position_C), bool)
    first_C[1:] = (cut_C[1:] != cut_C[:-1]) | (cut_us_C[1:] != cut_us_C[:-1])
    first_C[1:] |= user_start_N[position_C[1:]] != user_start_N[position_C[:-1]]
    first_E = np.flatnonzero(first_C)
    return Cuts(
        user_start_E=user_start_N[position_C[first_E]],
        cut_position_E=cut_C[first_E],
        cut_us_E=cut_us_C[first_E],
        day_E=day_C[first_E],
        num_candidates_E=np.diff(np.append(first_E, len(position_C))),
        position_C=position_C,
    )


def _newest(
    position_C: NDArray[np.int64], user_start_N: NDArray[np.int64], config: DataConfig
) -> NDArray[np.int64]:
    user_C = user_start_N[position_C]
    last_C = np.searchsorted(user_C, user_C, side="right")
    return position_C[last_C - np.arange(len(position_C)) <= config.max_candidates_per_user]


_Cut = tuple[NDArray[np.int64], NDArray[np.int64]]


def _event(
    events: Events,
    user_start_N: NDArray[np.int64],
    days: Days,
    config: DataConfig,
    position_C: NDArray[np.int64],
) -> _Cut:
    return position_C, events.event_time_us_N[position_C]


def _session(
    events: Events,
    user_start_N: NDArray[np.int64],
    days: Days,
    config: DataConfig,
    position_C: NDArray[np.int64],
) -> _Cut:
    time_us_N = events.event_time_us_N
    gap = np.diff(time_us_N) > config.session_gap_s * 1_000_000
    cut_C = _group_starts(user_start_N, gap | (np.diff(days.of(time_us_N)) != 0), position_C)
    return cut_C, time_us_N[cut_C]


def _day(
    events: Events,
    user_start_N: NDArray[np.int64],
    days: Days,
    config: DataConfig,
    position_C: NDArray[np.int64],
) -> _Cut:
    day_N = days.of(events.event_time_us_N)
    cut_C = _group_starts(user_start_N, np.diff(day_N) != 0, position_C)
    return cut_C, days.origin_us + day_N[position_C] * DAY_US


def _group_starts(
    user_start_N: NDArray[np.int64], parts: NDArray[np.bool_], position_C: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Where each candidate's group starts: at the user's first event, or where `parts` [N - 1] parts an event
    from the one before it."""
    first_N = user_start_N == np.arange(len(user_start_N))
    first_N[1:] |= parts
    starts_C: NDArray[np.int64] = np.flatnonzero(first_N)[np.cumsum(first_N)[position_C] - 1]
    return starts_C
