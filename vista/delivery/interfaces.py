"""The three seams of delivery. Each has an embedded and a production implementation, chosen by URL, under
one contract suite.

A record is the bytes of `vista.summary.record`; its own header says which space, epoch, user and seq it
belongs to. Back ends may be shared by threads and by processes; after a fork they connect again, but those
on SQLite must be closed before it (SQLite's own rule). Every failure of a back end is a `BackendError` that
names its URL and a remedy.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Protocol

from pydantic import BeforeValidator, ConfigDict

from vista.config import Frozen


def _numbers(value: object) -> object:
    """A catalog may keep texts only."""
    return re.findall(r"\d+", value) if isinstance(value, str) else value


class Epoch(Frozen):
    """One full export of a space: one checkpoint, one time, an integer allocated when the export opened."""

    space: str
    epoch: int
    export_id: str
    as_of_us: int
    trained_until_us: int
    checkpoint: str
    codec: str
    buckets: int
    location: str = ""  # of the published attempt; empty while open
    rows: int = 0
    digest: str = ""
    published: bool = False
    withdrawn: bool = False
    copied_from: Annotated[tuple[int, ...], BeforeValidator(_numbers)] = ()  # epochs with records in this one


class Release(Frozen):
    """What serves: the one thing that is promoted or rolled back. `id` is unique; `previous` names the one
    before. Keys of a newer writer are ignored, wherever a release is kept."""

    model_config = ConfigDict(extra="ignore")

    id: str
    space: str
    epoch: int
    foundation: str
    downstream: str
    previous: str | None = None


class AuditLine(Frozen):
    """One operator action, kept for ever."""

    time_us: int
    actor: str
    action: str
    reason: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Applied:
    """What `Store.apply` did. `offset` is the stored offset afterwards; not `accepted` means nothing was
    written."""

    accepted: bool
    offset: int
    written: int = 0
    older: int = 0
    conflicts: int = 0  # equal seq, different bytes: the larger crc won
    retired: int = 0  # below the floor
    dead_letters: int = 0  # kept, not applied
    retirements: tuple[tuple[str, int], ...] = ()  # (space, epoch) announced by this batch: call `retire`


@dataclass(frozen=True, slots=True)
class EpochState:
    """What one bucket of a region holds of one epoch; `keys_digest` is `vista.summary.record.keys_digest` of
    the user ids."""

    users: int
    keys_digest: str
    barrier: bool
    oldest_as_of_us: int | None


@dataclass(frozen=True, slots=True)
class BucketState:
    """One bucket of a region: where it is in the log, which release has reached it, what it holds."""

    offset: int
    release: Release | None
    floors: Mapping[str, int]  # space -> epochs below this are retired
    epochs: Mapping[tuple[int, int], EpochState]  # by (space_id, epoch): records name their space by its id
    free_bytes: int  # that the region's store can still take, shared by its buckets
    log: str = ""  # `Log.identity` of the one that the offset is of; empty until it is known


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """Bytes from the log that could not be applied, as they came. `id` is the store's own."""

    id: str
    bucket: int
    next_offset: int  # of the batch that brought them
    reason: str
    data: bytes


LETTERS_AT_ONCE = 100
"""A writer of another format may leave more of them than fit into memory."""


class DeadLetters(Protocol):
    """What a region could not apply."""

    def count_dead_letters(self, bucket: int) -> int:
        """How many of them there are."""

    def dead_letters(self, bucket: int, after: DeadLetter | None = None) -> list[DeadLetter]:
        """What `apply` could not apply, kept until an operator deletes it: the `LETTERS_AT_ONCE` oldest, or
        those behind `after`."""

    def delete_dead_letters(self, bucket: int, letters: Sequence[DeadLetter]) -> int:
        """Delete these; returns how many of them were still there."""


class Store(DeadLetters, Protocol):
    """The key-value store of one region: a materialised view of the log."""

    def apply(
        self,
        bucket: int,
        expected_offset: int,
        next_offset: int,
        records: Sequence[bytes],
        log: str = "",
        *,
        new_log: bool = False,
    ) -> Applied:
        """Atomically write every record that is newer and set the bucket's offset to `next_offset`.

        Refuses, writing nothing, if the stored offset is not `expected_offset`. A `log`, the identity of the
        one that the offsets are of, is kept beside it; another one than is kept is refused too, unless it is
        a `new_log`. Of two records with one
        (space, epoch, user) the larger `Header.order` wins. Control records (barrier, release, retire) come
        the same way, in log order. Bytes that are no record of this bucket go to the dead letters.
        """

    def get_many(self, space: str, epoch: int, users: Sequence[int]) -> list[bytes | None]:
        """The records of `users`, in their order; None for a miss, a tombstone, a retired epoch."""

    def state(self, bucket: int, *, reading: bool = False) -> BucketState:
        """Offset, release, floors and epochs of a bucket; offset 0 for one that was never written. Whoever is
        `reading` waits for a store that is away no longer than `get_many` does."""

    def retire(self, space: str, epoch: int, at_most: int | None = None, bucket: int | None = None) -> int:
        """Delete, in slices, an epoch and the space's earlier ones from every bucket the log has told, or
        only from `bucket`. Returns the number of records deleted; it ends with the slice that reaches
        `at_most`, and with fewer nothing is left."""

    def close(self) -> None: ...


class Log(Protocol):
    """A durable, partitioned, ordered log; partition = bucket."""

    partitions: int

    def append(self, partition: int, records: Sequence[bytes]) -> int:
        """Append durably, in order. Returns the offset after the last one."""

    def broadcast(self, partitions: Iterable[int], record: bytes) -> None:
        """Append a control record durably to each of these partitions, without waiting for one after the
        other where the log can. After an error some may have it."""

    def read(self, partition: int, offset: int, max_bytes: int) -> list[tuple[int, bytes]]:
        """Records from `offset` on, with their offsets, at most `max_bytes` but at least one if there is
        one."""

    def identity(self) -> str:
        """What tells this log from one that was made anew under its URL; as of a second ago at most."""

    def bounds(self, partition: int) -> tuple[int, int]:
        """First offset still held, and the offset that the next record will get."""

    def subscribe(
        self,
        region: str,
        on_assigned: Callable[[Iterable[int]], None],
        on_revoked: Callable[[Iterable[int]], None],
    ) -> "Subscription":
        """Join the workers of a region; buckets are assigned to exactly one of the live ones, eventually."""

    def close(self) -> None: ...


class Subscription(Protocol):
    """A worker's membership."""

    def poll(self) -> None:
        """Keep the membership alive and deliver pending assignments and revocations through the callbacks."""

    def close(self) -> None: ...


class EpochCatalog(Protocol):
    """The table's catalog: which epochs exist."""

    def open_epoch(
        self,
        *,
        space: str,
        export_id: str,
        as_of_us: int,
        trained_until_us: int,
        checkpoint: str,
        codec: str,
        buckets: int,
    ) -> Epoch:
        """Allocate the next epoch number of `space` for `export_id`, or return the one it already has."""

    def publish(self, epoch: Epoch) -> Epoch:
        """Publish a whole epoch in one step. The first of several attempts at one export wins, for ever, and
        is returned to all. Raises `EpochError` for another export, or another number of rows, under a
        published number."""

    def list_epochs(self, space: str) -> list[Epoch]:
        """All epochs of a space, open and withdrawn ones too, by number."""

    def withdraw(self, space: str, epoch: int, audit: AuditLine) -> None:
        """Mark a published epoch as bad, for ever, and keep the audit line, in one step."""


class ReleaseCatalog(Protocol):
    """Which release serves, and what operators did."""

    def releases(self) -> list[Release]:
        """Every release there was, oldest first; the last one is current."""

    def swap_release(self, expected: str | None, new: Release, audit: AuditLine) -> None:
        """Compare-and-swap: if the current release's id is `expected` (None: there is none yet), make `new`
        current and keep the audit line, in one step. Raises `ReleaseConflictError` if another one is
        current."""

    def audit(self) -> list[AuditLine]:
        """Every operator action, oldest first."""

    def note(self, audit: AuditLine) -> None:
        """Keep the audit line of an action that changes nothing in the catalog."""


class Catalog(EpochCatalog, ReleaseCatalog, Protocol):
    """Both, in one place: a swap and its audit line are one step."""

    def close(self) -> None: ...
