"""Backfill of an epoch: its table's records, as they are, into the log; a barrier ends every partition.

What has been appended is remembered per bucket, so that a backfill that was killed goes on. Appending a
bucket twice would be harmless (records have a total order), only slow.
"""

import logging
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from pydantic import NonNegativeInt, TypeAdapter

from vista.delivery.control import barrier
from vista.delivery.interfaces import Epoch, Log
from vista.runs import reading, write_whole
from vista.summary.table import read_bucket

log = logging.getLogger(__name__)

PROGRESS_S = 5.0
APPENDERS = 4
"""Buckets at once: a log may take one batch of a partition at a time."""

_BARRIERS = TypeAdapter(dict[int, NonNegativeInt])


def backfill(epoch: Epoch, target: Log, progress: Path) -> int:
    """Append every bucket that `progress` does not name. Returns the number of records appended.

    `progress` is a JSON file: where each bucket's barrier lies in the log, {"3": 1201}. Raises `StageError`
    if it is damaged, `EpochError`, `BackendError`.
    """
    barriers = _kept(progress)
    missing = [
        bucket
        for bucket in range(epoch.buckets)
        if not _holds_barrier(target, bucket, barriers.get(bucket), epoch)
    ]
    appended, logged_s = 0, time.monotonic()
    pool = ThreadPoolExecutor(APPENDERS)
    try:
        buckets = {pool.submit(_append, target, epoch, bucket): bucket for bucket in missing}
        for count, done in enumerate(as_completed(buckets), start=epoch.buckets - len(missing) + 1):
            records, barriers[buckets[done]] = done.result()
            appended += records
            write_whole(progress, _BARRIERS.dump_json(barriers).decode())
            if time.monotonic() - logged_s > PROGRESS_S:
                logged_s = time.monotonic()
                log.info("backfill: %d of %d buckets are in the log", count, epoch.buckets)
    finally:
        pool.shutdown(cancel_futures=True)
    return appended


def _kept(progress: Path) -> dict[int, int]:
    if not progress.exists():
        return {}
    with reading(progress, "delete it, then deliver again: what is in the log already does no harm twice"):
        return _BARRIERS.validate_json(progress.read_bytes())


def _append(target: Log, epoch: Epoch, bucket: int) -> tuple[int, int]:
    """The number of records appended, and the offset of the barrier behind them."""
    appended, waiting = 0, list[bytes]()
    for rows in read_bucket(epoch.location, bucket):
        if waiting:
            target.append(bucket, waiting)
        appended, waiting = appended + len(rows.records), rows.records
    return appended, target.append(bucket, [*waiting, barrier(epoch.space, epoch.epoch)]) - 1


def _holds_barrier(target: Log, bucket: int, offset: int | None, epoch: Epoch) -> bool:
    """Whether this epoch's barrier is where the progress file says: not so if the log was replaced since."""
    if offset is None or offset >= target.bounds(bucket)[1]:
        return False
    found = target.read(bucket, offset, max_bytes=1)
    return found[:1] == [(offset, barrier(epoch.space, epoch.epoch))]
