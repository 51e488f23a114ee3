"""Summaries as of a cut: the join that must not see the future.

Shape suffixes: B rows asked for, N users of an epoch, P payload bytes, S seeds, D width, E epochs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vista.errors import EpochError, LeakError, SpaceMismatchError
from vista.summary.codec import dequantise
from vista.summary.record import Codec, Record, decode, space_id
from vista.summary.table import read_bucket


class TableEpoch(Protocol):
    """What the join needs to know of a published epoch; `vista.delivery.interfaces.Epoch` is one."""

    @property
    def space(self) -> str: ...
    @property
    def epoch(self) -> int: ...
    @property
    def as_of_us(self) -> int: ...
    @property
    def trained_until_us(self) -> int: ...
    @property
    def buckets(self) -> int: ...
    @property
    def location(self) -> str: ...
    @property
    def published(self) -> bool: ...
    @property
    def withdrawn(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class _EpochRows:
    """One epoch in memory, still quantised, in order of user id."""

    user_id_N: NDArray[np.int64]
    event_time_us_N: NDArray[np.int64]
    payload_NP: NDArray[np.uint8]
    codec: Codec
    seeds: int
    width: int


class SummaryReader:
    """Looks summaries up by user and cut. An epoch is loaded when it is first needed, and then kept."""

    def __init__(self, epochs: Sequence[TableEpoch]) -> None:
        """Epochs of one space; open and withdrawn ones are left out.

        Raises `EpochError` if none is left, `SpaceMismatchError` for several spaces, `LeakError` for an epoch
        whose model was trained on events after its `as_of_us`.
        """
        usable = [epoch for epoch in epochs if epoch.published and not epoch.withdrawn]
        if not usable:
            raise EpochError(f"none of {len(epochs)} epochs is published and not withdrawn: export one first")
        spaces = sorted({epoch.space for epoch in usable})
        if len(spaces) > 1:
            raise SpaceMismatchError(f"epochs of the spaces {', '.join(spaces)}: a model reads one space")
        for epoch in usable:
            if epoch.trained_until_us > epoch.as_of_us:
                raise LeakError(
                    f"epoch {epoch.epoch} of {epoch.space} is as of {epoch.as_of_us}, but its model was "
                    f"trained until {epoch.trained_until_us}: it could not exist then; withdraw the epoch"
                )
        self.space = spaces[0]
        self._epochs = sorted(usable, key=lambda epoch: (epoch.as_of_us, epoch.epoch))
        self._as_of_us_E = np.array([epoch.as_of_us for epoch in self._epochs], np.int64)
        self._loaded: dict[int, _EpochRows] = {}
        newest = self._rows(len(self._epochs) - 1)
        self.seeds, self.width = newest.seeds, newest.width

    def lookup(
        self, user_ids_B: NDArray[np.int64], cut_us_B: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.int64]]:
        """Summaries [B, S, D], found or not, and `as_of_us`, of the newest epoch at or before each cut.

        A miss (no epoch so early, or a user that the epoch does not hold) is zeros, False, -1. Raises
        `LeakError` if a row's summary is not from before its cut.
        """
        summary_BSD = np.zeros((len(user_ids_B), self.seeds, self.width), np.float32)
        found_B = np.zeros(len(user_ids_B), np.bool_)
        as_of_us_B = np.full(len(user_ids_B), -1, np.int64)
        epoch_B = np.searchsorted(self._as_of_us_E, cut_us_B, side="right") - 1
        for index in np.unique(epoch_B[epoch_B >= 0]).tolist():
            rows = self._rows(index)
            asked = np.flatnonzero(epoch_B == index)
            at = np.searchsorted(rows.user_id_N, user_ids_B[asked])
            at = np.minimum(at, len(rows.user_id_N) - 1)
            hit = rows.user_id_N[at] == user_ids_B[asked]
            asked, at = asked[hit], at[hit]
            summary_BSD[asked] = dequantise(rows.payload_NP[at], rows.codec, rows.seeds, rows.width)
            found_B[asked] = True
            as_of_us_B[asked] = self._as_of_us_E[index]
            _assert_past(user_ids_B[asked], cut_us_B[asked], as_of_us_B[asked], rows.event_time_us_N[at])
        return summary_BSD, found_B, as_of_us_B

    def _rows(self, index: int) -> _EpochRows:
        if index not in self._loaded:
            rows = _load(self._epochs[index])
            first = next(iter(self._loaded.values()), rows)
            if (rows.seeds, rows.width) != (first.seeds, first.width):
                raise SpaceMismatchError(
                    f"epoch {self._epochs[index].epoch} of {self.space} has {rows.seeds} x {rows.width}, "
                    f"another one {first.seeds} x {first.width}: a change of shape starts a new space"
                )
            self._loaded[index] = rows
        return self._loaded[index]


def _assert_past(
    user_ids_B: NDArray[np.int64],
    cut_us_B: NDArray[np.int64],
    as_of_us_B: NDArray[np.int64],
    event_time_us_B: NDArray[np.int64],
) -> None:
    future_B = (as_of_us_B > cut_us_B) | (event_time_us_B >= as_of_us_B)
    if future_B.any():
        row = int(np.argmax(future_B))
        raise LeakError(
            f"user {user_ids_B[row]}: the summary is as of {as_of_us_B[row]} with an event at "
            f"{event_time_us_B[row]}, the cut is {cut_us_B[row]}: withdraw the epoch and export again"
        )


def _assert_of(epoch: TableEpoch, user_id_N: NDArray[np.int64], records: Sequence[Record]) -> None:
    expected_space = space_id(epoch.space)
    for user, record in zip(user_id_N.tolist(), records, strict=True):
        if record.space_id != expected_space:
            raise SpaceMismatchError(f"user {user}: the record in {epoch.location} is not of {epoch.space}")
        found = (record.epoch, record.as_of_us, record.user_id)
        if found != (epoch.epoch, epoch.as_of_us, user):
            raise EpochError(
                f"user {user} in {epoch.location}: the record holds (epoch, as_of_us, user) {found}, not "
                f"{(epoch.epoch, epoch.as_of_us, user)}; withdraw the epoch and export again"
            )


def _load(epoch: TableEpoch) -> _EpochRows:
    records: list[Record] = []
    users: list[NDArray[np.int64]] = []
    for bucket in range(epoch.buckets):
        for rows in read_bucket(epoch.location, bucket):
            users.append(rows.user_id_B)
            records.extend(decode(data) for data in rows.records)
    user_id_N = np.concatenate([np.empty(0, np.int64), *users])
    _assert_of(epoch, user_id_N, records)
    shapes = {(record.codec, record.seeds, record.width) for record in records}
    if len(shapes) != 1:
        raise EpochError(f"{epoch.location} holds {len(shapes)} codecs and shapes: an epoch has one")
    ((codec, seeds, width),) = shapes
    order = np.argsort(user_id_N)
    payload_NP = np.frombuffer(b"".join(record.payload for record in records), np.uint8)
    event_time_us_N = np.array([record.event_time_us for record in records], np.int64)
    return _EpochRows(
        user_id_N=user_id_N[order],
        event_time_us_N=event_time_us_N[order],
        payload_NP=payload_NP.reshape(len(records), -1)[order],
        codec=codec,
        seeds=seeds,
        width=width,
    )
