"""Bringing a region back to what the table and the log say: replayed where the log reaches, else refilled
from the table.

A refill goes through the store's fence like everything else, so a worker may go on beside it. Where the log
no longer holds what a bucket needs next (kept too short, or lost), the offset is moved only together with the
barriers that end the refill: nothing is served over a hole.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from vista.delivery.audit import audit_line
from vista.delivery.backfill import backfill
from vista.delivery.control import barrier, release_record
from vista.delivery.interfaces import Epoch, Log, Release, Store
from vista.delivery.regions import Backends
from vista.delivery.release import announce, current_release
from vista.delivery.verify import Finding, Verdict, verify_region
from vista.delivery.worker import MAX_BATCH_BYTES, check_room, drain, write_beside
from vista.errors import BackendError, RegionNotReadyError
from vista.summary.table import read_bucket

log = logging.getLogger(__name__)

MENDED_BY = {
    "unreadable": "left as it is until its store answers",
    "out_of_reach": "refilled from the table",
    "incomplete": "replayed from the log, then refilled from the table",
    "damaged": "left as it is: empty its store, then repair it again",
    "dead_letters": "left as they are: `python -m vista dead-letters` shows them",
}
NOT_MENDED = "still so: repair it again, once its store and the log answer"


def repair(
    backends: Backends,
    epochs: Sequence[Epoch],
    *,
    all_bytes: bool,
    actor: str,
    reason: str,
    new_log: bool = False,
) -> list[str]:
    """Mend what `verify` finds in these regions, and announce the release to them. Returns what was found,
    and what became of it. A `new_log`, or one that a region has not seen, gets the epochs first: a store that
    is wiped later fills from it.

    The audit has a line when it begins, and one with what is left when it has ended. Raises
    `RegionNotReadyError` with what is left, dead letters excepted.
    """
    before = verify_all(backends, epochs, all_bytes=all_bytes)
    found = [finding for verdict in before for finding in verdict.findings]
    texts = "; ".join(finding.text for finding in found[:5])
    backends.catalog.note(audit_line("repair", actor, reason, before=texts, after=counted(found)))
    release = current_release(backends.catalog)
    if new_log or any(_is_of_another_log(verdict, backends.log) for verdict in before):
        fill_log(backends.log, epochs, release)
    for verdict in before:
        try:
            _repair_region(backends, verdict, epochs, all_bytes=all_bytes)
        except (BackendError, RegionNotReadyError) as error:
            log.warning("region %s: %s", verdict.region, error)
    behind = {} if release is None else announce(backends, release)
    again = [
        finding
        for verdict in verify_all(backends, epochs, all_bytes=all_bytes)
        for finding in verdict.findings
    ]
    untold = [f"region {name} {why}" for name, why in behind.items()]
    texts = "; ".join([*(finding.text for finding in again), *untold][:5])
    after = f"left: {texts}" if texts else "nothing is left"
    backends.catalog.note(audit_line("repair", actor, reason, before=counted(found), after=after))
    left = [_why_left(finding) for finding in again if finding.what != "dead_letters"] + untold
    if left:
        raise RegionNotReadyError("\n".join(["these are left:", *left]))
    return plan(found)


def counted(findings: Sequence[object]) -> str:
    """How many there are, in words."""
    return f"{len(findings)} finding{'s' * (len(findings) != 1)}"


def plan(findings: Sequence[Finding]) -> list[str]:
    """What a repair does about each finding, in words."""
    return [f"{finding.text}: {MENDED_BY[finding.what]}" for finding in findings]


def _why_left(finding: Finding) -> str:
    is_tried = finding.what in ("out_of_reach", "incomplete")
    return f"{finding.text}: {NOT_MENDED if is_tried else MENDED_BY[finding.what]}"


def verify_all(backends: Backends, epochs: Sequence[Epoch], *, all_bytes: bool) -> list[Verdict]:
    """The verdicts on all regions, nearest first."""
    return [
        verify_region(name, store, backends.log, epochs, all_bytes=all_bytes)
        for name, store in backends.stores.items()
    ]


def fill_log(target: Log, epochs: Sequence[Epoch], release: Release | None) -> None:
    """Append these epochs from their tables, with their barriers, and the release behind them."""
    with TemporaryDirectory() as folder:
        for number, epoch in enumerate(epochs):
            appended = backfill(epoch, target, Path(folder) / f"{number}.json")
            log.info("epoch %d of %s: %d records appended to the new log", epoch.epoch, epoch.space, appended)
    if release is not None:
        target.broadcast(range(target.partitions), release_record(release))


def refill_out_of_reach(
    stores: Mapping[str, Store], source: Log, epochs: Sequence[Epoch], release: Release | None
) -> None:
    """Refill every bucket that needs what the log has let go, and tell it of the release, whose record went
    with that. To go on with another log is left to `repair`."""
    told = [] if release is None else [release_record(release)]
    for name, store in stores.items():
        for bucket in range(source.partitions):
            first, now = source.bounds(bucket)[0], store.state(bucket)
            if first and now.offset < first and now.log in ("", source.identity()):
                refill(name, store, bucket, epochs, (first, source.identity()), told)


def refill(
    region: str,
    store: Store,
    bucket: int,
    epochs: Sequence[Epoch],
    to: tuple[int, str] | None = None,
    told: Sequence[bytes] = (),
) -> None:
    """Write a bucket of these epochs from their tables, their barriers and what else it is to be told; with
    that move `to` an offset of a log. What the store has newer stays. Raises `RegionNotReadyError` if it has
    less room than its reserve."""
    state = store.state(bucket)
    check_room(region, bucket, state.free_bytes)
    offset, written = state.offset, 0
    for epoch in epochs:
        for records in _batches(epoch, bucket):
            offset, count = write_beside(store, bucket, offset, None, records)
            written += count
    barriers = [barrier(epoch.space, epoch.epoch) for epoch in epochs]
    write_beside(store, bucket, offset, to, [*barriers, *told])
    log.info("region %s, bucket %d: %d records written from the table", region, bucket, written)


def _is_of_another_log(verdict: Verdict, source: Log) -> bool:
    buckets = () if verdict.state is None else verdict.state.buckets
    return any(bucket.log not in ("", source.identity()) for bucket in buckets)


def _repair_region(backends: Backends, verdict: Verdict, epochs: Sequence[Epoch], *, all_bytes: bool) -> None:
    name = verdict.region
    store = backends.stores[name]
    for finding in verdict.findings:
        if finding.what == "out_of_reach":
            first = backends.log.bounds(finding.bucket)[0]
            refill(name, store, finding.bucket, epochs, (first, backends.log.identity()))
    drain(name, backends.log, store)
    again = verify_region(name, store, backends.log, epochs, all_bytes=all_bytes)
    for finding in again.findings:
        if finding.what == "incomplete" and finding.epoch is not None:
            refill(name, store, finding.bucket, [finding.epoch])


def _batches(epoch: Epoch, bucket: int) -> Iterator[list[bytes]]:
    batch: list[bytes] = []
    size = 0
    for rows in read_bucket(epoch.location, bucket):
        for data in rows.records:
            if batch and size + len(data) > MAX_BATCH_BYTES:
                yield batch
                batch, size = [], 0
            batch.append(data)
            size += len(data)
    if batch:
        yield batch
