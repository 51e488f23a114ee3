"""A region's worker: reads the log from the offset that the region's store holds, and applies.

The store's offset is the fence. A worker whose idea of it is out of date (a zombie, a second worker of the
region, a restored or wiped store) is refused and goes on from the stored one.
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Iterable

from vista.config import Frozen
from vista.delivery.interfaces import Applied, Log, Store
from vista.errors import RegionNotReadyError

log = logging.getLogger(__name__)

MAX_BATCH_BYTES = 4 * 2**20
IDLE_S = 0.1
PROGRESS_S = 5.0


class WorkerReport(Frozen):
    """What a worker did: batches refused, and records by what became of them."""

    refused: int = 0
    written: int = 0
    older: int = 0
    conflicts: int = 0
    retired: int = 0
    dead_letters: int = 0


class Worker:
    """Moves records of one region from its log into its store, and counts them."""

    def __init__(self, region: str, source: Log, store: Store) -> None:
        self.region, self.source, self.store = region, source, store
        self._offsets: dict[int, int] = {}
        self._counts: Counter[str] = Counter()
        self._logged_s = time.monotonic()

    @property
    def report(self) -> WorkerReport:
        return WorkerReport(**self._counts)

    def assign(self, buckets: Iterable[int]) -> None:
        """Work on these buckets too, from their stored offsets."""
        self._offsets |= {bucket: self.store.state(bucket).offset for bucket in buckets}

    def revoke(self, buckets: Iterable[int]) -> None:
        """Leave these buckets to another worker."""
        for bucket in buckets:
            self._offsets.pop(bucket, None)

    def offset(self, bucket: int) -> int:
        """Where this worker is in a bucket."""
        return self._offsets[bucket]

    def step(self) -> bool:
        """Move at most one batch of every assigned bucket. Returns whether there was one.

        Raises `RegionNotReadyError` if the log does not hold what the store needs next.
        """
        moved = [self._pull(bucket) for bucket in list(self._offsets)]
        if time.monotonic() - self._logged_s > PROGRESS_S:
            self._logged_s = time.monotonic()
            log.info("region %s: %d records written", self.region, self._counts["written"])
        return any(moved)

    def _pull(self, bucket: int) -> bool:
        offset = self._offsets[bucket]
        first, end = self.source.bounds(bucket)
        if not first <= offset <= end:
            raise RegionNotReadyError(_unreachable(self.region, bucket, offset, first, end))
        if offset == end:
            return False
        records = self.source.read(bucket, offset, MAX_BATCH_BYTES)
        # The log is compacted: the records up to `end` may be gone.
        next_offset = records[-1][0] + 1 if records else end
        applied = self.store.apply(bucket, offset, next_offset, [data for _, data in records])
        self._offsets[bucket] = applied.offset
        self._count(bucket, applied)
        for space, epoch in applied.retirements:
            self.store.retire(space, epoch)
        return True

    def _count(self, bucket: int, applied: Applied) -> None:
        if not applied.accepted:
            self._counts["refused"] += 1
            log.info("region %s, bucket %d: goes on from offset %d", self.region, bucket, applied.offset)
        for name in ("written", "older", "conflicts", "retired", "dead_letters"):
            self._counts[name] += getattr(applied, name)
        if applied.dead_letters:
            log.warning(
                "region %s, bucket %d: %d records cannot be applied; they are kept as dead letters",
                self.region, bucket, applied.dead_letters,
            )  # fmt: skip


def drain(region: str, source: Log, store: Store) -> WorkerReport:
    """Bring every bucket of a region to where the log ends now."""
    worker = Worker(region, source, store)
    for bucket in range(source.partitions):
        end = source.bounds(bucket)[1]
        worker.assign([bucket])
        while worker.step() and worker.offset(bucket) < end:
            pass
        worker.revoke([bucket])
    return worker.report


def serve_region(region: str, source: Log, store: Store, stop: threading.Event) -> WorkerReport:
    """Follow the log until `stop` is set, sharing the region's buckets with its other live workers."""
    worker = Worker(region, source, store)
    subscription = source.subscribe(region, worker.assign, worker.revoke)
    try:
        while not stop.is_set():
            subscription.poll()
            if not worker.step():
                stop.wait(IDLE_S)
    finally:
        subscription.close()
    return worker.report


def _unreachable(region: str, bucket: int, offset: int, first: int, end: int) -> str:
    if offset < first:
        return (
            f"region {region}, bucket {bucket} needs offset {offset}, the log starts at {first}: it needs a "
            "backfill; empty its store and deliver the live epochs again"
        )
    return (
        f"region {region}, bucket {bucket} is at offset {offset}, the log ends at {end}: the log was "
        "replaced; empty the region's store, it refills from the log"
    )
