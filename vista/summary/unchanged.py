"""Users whose events are what they were: their records are copied from an earlier epoch, not computed.

A summary is a function of the checkpoint and of the events that it reads, not of the clock: positions count
from the user's newest event, gaps lie between events, an event's weight halves with its age at the newest
one. So a record's body may be copied if it was made from the same inputs, and the digest of these lies beside
it in the table. It covers what is read: the newest `max_uih` events as the model gets them, in their order.

Shape suffixes: B users, L packed rows of their histories.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import fields, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from vista.data.batches import rows_where
from vista.data.schema import Batch, HistoryBatch
from vista.errors import EpochError, RecordError
from vista.summary.record import Header, inspect
from vista.summary.table import read_bucket, whole_shard


def inputs_digests(batch: Batch, made_by: str) -> NDArray[np.int64]:
    """[B] digests of 64 bits of what each user's record is made from: these events, by `made_by`.

    `made_by` names the checkpoint, the codec, the code.
    """
    columns = [getattr(batch, field.name) for field in fields(Batch) if field.name.startswith("uih_")]
    rows = np.stack(columns, axis=1).astype("<i8")  # [L, columns]
    key = hashlib.sha256(made_by.encode()).digest()
    digests = [
        hashlib.blake2b(rows[first:end].tobytes(), digest_size=8, key=key).digest()
        for first, end in pairwise(batch.seq_offsets.tolist())
    ]
    return np.frombuffer(b"".join(digests), "<i8").astype(np.int64)


class EarlierRecords:
    """One bucket of an earlier epoch, looked through once, in the order of its users."""

    def __init__(self, location: str | None, bucket: int, space_id: int) -> None:
        """An epoch that is not given, or whose files were deleted, holds nothing."""
        self._location, self._space_id = location, space_id
        self._rows: Iterator[tuple[int, int, bytes]] = iter(())
        self._epochs: set[int] = set()
        shard = None if location is None else whole_shard(location, bucket)
        self._before = () if shard is None else shard.copied_from
        if location is not None and shard is not None:
            self._rows = _rows(location, bucket)
        self._next = next(self._rows, None)

    def take(self, user: int, inputs_digest: int) -> bytes | None:
        """The record of `user`, if it holds a summary made from the same inputs. Users come in rising order.

        Raises `EpochError` for a record that is damaged or of another user.
        """
        while self._next is not None and self._next[0] < user:
            self._next = next(self._rows, None)
        if self._next is None or self._next[:2] != (user, inputs_digest):
            return None
        data = self._next[2]
        header = self._header(user, data)
        if header.tombstone:
            return None
        self._epochs |= {header.epoch, *self._before}
        return data

    @property
    def taken_from(self) -> list[int]:
        """The epoch of the records that were taken, and those that it may have them from."""
        return sorted(self._epochs)

    def _header(self, user: int, data: bytes) -> Header:
        try:
            header = inspect(data)
        except RecordError as error:
            raise EpochError(
                f"user {user} in {self._location}: {error}; withdraw the epoch and export again"
            ) from error
        if (header.user_id, header.space_id) != (user, self._space_id):
            raise EpochError(
                f"user {user} in {self._location}: the record is of user {header.user_id}, or of another "
                "space; withdraw the epoch and export again"
            )
        return header


def users_where(part: HistoryBatch, mask_B: NDArray[np.bool_]) -> HistoryBatch:
    """The users of `mask_B` alone, with their histories."""
    mask_L = np.repeat(mask_B, np.diff(part.batch.seq_offsets))
    kept = rows_where(part.batch, mask_L)
    batch = replace(
        kept,
        user_id_B=kept.user_id_B[mask_B],
        user_row_B=kept.user_row_B[mask_B],
        cut_us_B=kept.cut_us_B[mask_B],
        seq_offsets=np.append(kept.seq_offsets[:-1][mask_B], kept.seq_offsets[-1]),
        num_candidates=kept.num_candidates[mask_B],
    )
    return HistoryBatch(
        batch=batch,
        seq_B=part.seq_B[mask_B],
        event_time_us_B=part.event_time_us_B[mask_B],
        seq_L=part.seq_L[mask_L],
        whole_until_B=part.whole_until_B[mask_B],
    )


def _rows(location: str, bucket: int) -> Iterator[tuple[int, int, bytes]]:
    """Users, digests of their inputs and records; nothing of a shard that does not hold digests."""
    for rows in read_bucket(location, bucket):
        if rows.inputs_digest_B is not None:
            yield from zip(rows.user_id_B.tolist(), rows.inputs_digest_B.tolist(), rows.records, strict=True)
