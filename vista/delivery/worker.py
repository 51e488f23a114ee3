"""Moves a region's records from the log, from the offset that the region's store holds, into that store.

The store's offset is the fence, with the identity of the log that it is of. A worker whose idea of it is out
of date (a zombie, a second worker of the region, a restored or wiped store) is refused and goes on from the
stored one; over another log than that only `repair` brings it.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Container, Iterable, Sequence

from vista.config import Frozen
from vista.delivery.control import header_of
from vista.delivery.interfaces import Applied, BucketState, Log, Store
from vista.errors import RegionNotReadyError

log = logging.getLogger(__name__)

MAX_BATCH_BYTES = 4 * 2**20
MIN_FREE_BYTES = 64 * 2**20
"""What is left to a store's readers: below, nothing but control records is applied."""
PROGRESS_S = 5.0
RETIRE_AT_ONCE = 10_000
"""Records that are deleted between batches: a whole epoch takes minutes."""


class WorkerReport(Frozen):
    """What a worker did: batches refused, and records by what became of them."""

    refused: int = 0
    written: int = 0
    older: int = 0
    conflicts: int = 0
    retired: int = 0
    dead_letters: int = 0


class Worker:
    """Moves batches of the buckets that it is given, and counts; `retire` then deletes what they retired. It
    raises what a back end raises."""

    def __init__(
        self,
        region: str,
        source: Log,
        store: Store,
        on_applied: Callable[[float], None] = lambda seconds: None,
        *,
        keeps_room: bool = False,
    ) -> None:
        """`on_applied` hears how many seconds each batch took the store. Who `keeps_room` raises, before
        summaries, if the store has less than its reserve; others look themselves."""
        self.region, self.source, self.store = region, source, store
        self.moved_bytes = 0
        self._on_applied, self._keeps_room = on_applied, keeps_room
        self._free_bytes = 0  # of the store, when it was last looked at
        self._looked_bytes = 0  # what had been moved then
        self._offsets: dict[int, int] = {}
        self._logs: dict[int, str] = {}  # of which each offset is; empty where the store does not know it yet
        self._ends: dict[int, int] = {}  # of the log, as last asked: asked again only when reached
        self._retirements: dict[tuple[int, str], int] = {}  # bucket, space -> epoch up to which it deletes
        self._counts: Counter[str] = Counter()

    @property
    def report(self) -> WorkerReport:
        return WorkerReport(**self._counts)

    def assign(self, buckets: Iterable[int]) -> None:
        """Work on these buckets too, from their stored offsets."""
        for bucket in buckets:
            self.resume(bucket, self.store.state(bucket))

    def resume(self, bucket: int, stored: BucketState) -> None:
        """Work on this bucket, from where the store says that it is. Who did before may have been killed
        behind a retirement."""
        self._offsets[bucket], self._logs[bucket] = stored.offset, stored.log
        self._ends.pop(bucket, None)
        self._free_bytes, self._looked_bytes = stored.free_bytes, self.moved_bytes
        for space, floor in stored.floors.items():
            self._note_retirement(bucket, space, floor - 1)

    def revoke(self, buckets: Iterable[int]) -> None:
        """Leave these buckets to another worker."""
        for bucket in buckets:
            self._offsets.pop(bucket, None)
            self._logs.pop(bucket, None)
            self._ends.pop(bucket, None)
            for space in [space for other, space in self._retirements if other == bucket]:
                del self._retirements[bucket, space]

    def is_at(self, bucket: int, stored: BucketState) -> bool:
        """Whether the store is where this worker has brought it."""
        return (self._offsets.get(bucket), self._logs.get(bucket)) == (stored.offset, stored.log)

    def offset(self, bucket: int) -> int | None:
        """Where this worker is in a bucket; None in one that it does not work on."""
        return self._offsets.get(bucket)

    def step(self) -> bool:
        """Move at most one batch of every assigned bucket. Returns whether there may be more to do.

        Raises `RegionNotReadyError` if the log does not hold what the store needs next.
        """
        moved = [self.pull(bucket) for bucket in list(self._offsets)]
        return self.retire() or any(moved)

    def retire(self, spared: Container[int] = ()) -> bool:
        """Delete some of what has been retired since in the buckets of this worker that are not `spared`.
        Returns whether more may be left there."""
        left = RETIRE_AT_ONCE
        for (bucket, space), epoch in list(self._retirements.items()):
            if bucket in spared:
                continue
            left -= self.store.retire(space, epoch, left, bucket)
            if left <= 0:
                return True
            del self._retirements[bucket, space]
        return False

    def pull(self, bucket: int) -> bool:
        """Move one batch of an assigned bucket. Returns whether there was one; raises as `step`."""
        offset = self._offsets[bucket]
        if offset >= self._ends.get(bucket, 0):
            self._ends[bucket] = self._checked_end(bucket, offset, at_least=0)
        end = self._ends[bucket]
        if offset == end:
            return False
        records = self.source.read(bucket, offset, MAX_BATCH_BYTES)
        if not records or records[0][0] != offset:  # compacted, or cut off: nothing is applied over a hole
            self._checked_end(bucket, offset, at_least=end)
        next_offset = records[-1][0] + 1 if records else end
        if self._keeps_room:
            self._check_room(bucket, [data for _, data in records])
        read_of, started_s = self.source.identity(), time.monotonic()
        applied = self.store.apply(bucket, offset, next_offset, [data for _, data in records], read_of)
        self._on_applied(time.monotonic() - started_s)
        self._count(bucket, applied)
        self.moved_bytes += sum(len(data) for _, data in records)
        if applied.accepted:
            self._offsets[bucket], self._logs[bucket] = applied.offset, read_of
            for space, epoch in applied.retirements:
                self._note_retirement(bucket, space, epoch)
        else:
            self.resume(bucket, self.store.state(bucket))
        return True

    def _note_retirement(self, bucket: int, space: str, epoch: int) -> None:
        self._retirements[bucket, space] = max(epoch, self._retirements.get((bucket, space), epoch))

    def _checked_end(self, bucket: int, offset: int, *, at_least: int) -> int:
        kept, found = self._logs[bucket], self.source.identity()
        first, end = self.source.bounds(bucket)
        if kept not in ("", found):
            problem = f"is at offset {offset} of log {kept}, this is log {found}: the log was replaced"
        elif offset < first:
            problem = f"needs offset {offset}, the log starts at {first}: it needs a backfill"
        elif end < max(offset, at_least):
            problem = f"is at offset {offset}, the log ends at {end}: the log was replaced"
        else:
            return end
        raise RegionNotReadyError(
            f"region {self.region}, bucket {bucket} {problem}; "
            "run `python -m vista repair --reason ...`, it refills the region from the table"
        )

    def _check_room(self, bucket: int, records: Sequence[bytes]) -> None:
        if self.moved_bytes - self._looked_bytes >= MIN_FREE_BYTES // 4:
            self._free_bytes, self._looked_bytes = self.store.state(bucket).free_bytes, self.moved_bytes
        if self._free_bytes < MIN_FREE_BYTES and not all(map(_is_control, records)):
            check_room(self.region, bucket, self._free_bytes)

    def _count(self, bucket: int, applied: Applied) -> None:
        self._counts["refused"] += not applied.accepted
        for name in ("written", "older", "conflicts", "retired", "dead_letters"):
            self._counts[name] += getattr(applied, name)
        if applied.dead_letters:
            log.warning(
                "region %s, bucket %d: %d records cannot be applied; they are kept as dead letters",
                self.region, bucket, applied.dead_letters,
            )  # fmt: skip


def check_room(region: str, bucket: int, free_bytes: int) -> None:
    """Raises `RegionNotReadyError` if a bucket's store is to be spared, as its endless worker does."""
    if free_bytes < MIN_FREE_BYTES:
        raise RegionNotReadyError(
            f"region {region}, bucket {bucket}: its store has {free_bytes:,} bytes free, {MIN_FREE_BYTES:,} "
            "are its reserve: retire an epoch (`python -m vista retire --space S --epoch N --reason ...`) or "
            "enlarge the store"
        )


def _is_control(data: bytes) -> bool:
    header = header_of(data)
    return header is not None and bool(header.control)


def drain(region: str, source: Log, store: Store, deadline_s: float | None = None) -> WorkerReport:
    """Bring every bucket of a region to where the log ends now, and delete what is retired.

    Raises `RegionNotReadyError` if the log does not hold what the store needs, if that has no room for
    summaries (releases and retirements get through), or after `deadline_s` seconds.
    What is not deleted by then is left to the next one.
    """
    worker, started_s = Worker(region, source, store, keeps_room=True), time.monotonic()
    logged_s = started_s
    for bucket in range(source.partitions):
        end = source.bounds(bucket)[1]
        worker.assign([bucket])
        while worker.pull(bucket) and (offset := worker.offset(bucket) or 0) < end:
            if time.monotonic() - logged_s > PROGRESS_S:
                logged_s = time.monotonic()
                log.info("region %s: %d records written", region, worker.report.written)
            if deadline_s is not None and time.monotonic() - started_s > deadline_s:
                raise RegionNotReadyError(
                    f"region {region}, bucket {bucket} is {end - offset:,} records behind after "
                    f"{deadline_s:g} s: its worker goes on"
                )
    while worker.retire() and (deadline_s is None or time.monotonic() - started_s < deadline_s):
        pass
    return worker.report


def write_beside(
    store: Store, bucket: int, offset: int, to: tuple[int, str] | None, records: Sequence[bytes]
) -> tuple[int, int]:
    """Apply beside a worker that may move the offset meanwhile; that stays where it is, or goes `to` an
    offset of a log. Returns offset and records written."""
    while True:
        next_offset, of_log = (offset, "") if to is None else to
        applied = store.apply(bucket, offset, next_offset, records, of_log, new_log=True)
        if applied.accepted:
            return applied.offset, applied.written
        offset = applied.offset
