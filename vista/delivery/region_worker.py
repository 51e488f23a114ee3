"""A region's endless worker: it follows the log, shares the buckets with the region's other workers, waits
for back ends that went away, and holds back when the store's readers would suffer.

What fails at the start is a wrong setting and raised; what fails later is an outage and waited for.
"""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TypeVar

from prometheus_client import Histogram

from vista.data.schema import bucket_of
from vista.delivery.interfaces import BucketState, Log, Store, Subscription
from vista.delivery.worker import MIN_FREE_BYTES, Worker, WorkerReport
from vista.errors import BackendError, RegionNotReadyError

log = logging.getLogger(__name__)

IDLE_S = 0.1
LOOK_S = 5.0
"""A bucket's state is looked at so often: a store that was wiped while nothing came is found by it."""
LOOKING_S = 0.05
"""At most so long a round, for looking at states."""
FIRST_BACKOFF_S, MAX_BACKOFF_S = 0.1, 2.0
HOLD_S = 1.0
READS = 100


@dataclass(frozen=True, slots=True)
class Limits:
    """What a store must leave to its readers. Below `min_free_bytes` nothing is applied; while the 99th
    percentile of reads is above `max_read_p99_s`, one round a second."""

    min_free_bytes: int = MIN_FREE_BYTES
    max_read_p99_s: float = 0.05


LIMITS = Limits()
_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a bucket stands still: until an operator repairs the region, or until a back end answers again."""

    needs_backfill: bool
    reason: str
    delay_s: float
    retry_s: float


class RegionWorker:
    """One worker of one region. What others read of it is replaced where it grows or shrinks."""

    def __init__(
        self,
        region: str,
        source: Log,
        store: Store,
        apply_seconds: Histogram,
        read_seconds: Histogram,
        limits: Limits = LIMITS,
    ) -> None:
        self.region, self.source, self.store = region, source, store
        self.assigned: frozenset[int] = frozenset()
        self.states: dict[int, BucketState] = {}
        self.dead_letters: dict[int, int] = {}
        self.faults: dict[int, Fault] = {}
        self.log_fault = ""
        self.held_back = ""
        self._worker = Worker(region, source, store, apply_seconds.observe)
        self._read_seconds, self._limits = read_seconds, limits
        self._looked_s: dict[int, float] = {}
        self._looked_bytes = 0  # what had been moved at the last look
        self._free_bytes: float = math.inf  # the least of all states at the round's start and of looks since
        self._users: dict[int, int] = {}  # bucket -> a user in it
        self._tried_users = 0
        self._reads_s: deque[float] = deque(maxlen=READS)
        self._hold_until_s = 0.0

    @property
    def report(self) -> WorkerReport:
        return self._worker.report

    def offsets(self) -> dict[int, int]:
        """Where each assigned bucket is, as far as known."""
        found = {bucket: self._worker.offset(bucket) for bucket in self.assigned}
        return {bucket: offset for bucket, offset in found.items() if offset is not None}

    def follow(self, stop: threading.Event) -> WorkerReport:
        """Work until `stop` is set; then finish the batch in hand and leave the region's workers.

        Raises `BackendError` if log or store cannot be reached at the start.
        """
        self.store.state(0)
        subscription = self.source.subscribe(self.region, self._assign, self._revoke)
        subscription.poll()
        try:
            while not stop.is_set():
                self._poll(subscription)
                if not self._round(stop):
                    stop.wait(IDLE_S)
        finally:
            try:
                subscription.close()
            except BackendError as error:
                log.warning("region %s: the others take over when this membership expires: %s",
                            self.region, error)  # fmt: skip
        return self.report

    def _assign(self, buckets: Iterable[int]) -> None:
        self.assigned |= frozenset(buckets)

    def _revoke(self, buckets: Iterable[int]) -> None:
        gone = frozenset(buckets)
        self.assigned -= gone
        self._worker.revoke(gone)
        self.states = {bucket: state for bucket, state in self.states.items() if bucket not in gone}
        self.faults = {bucket: fault for bucket, fault in self.faults.items() if bucket not in gone}
        self.dead_letters = {bucket: kept for bucket, kept in self.dead_letters.items() if bucket not in gone}

    def _poll(self, subscription: Subscription) -> None:
        try:
            subscription.poll()
        except BackendError as error:
            if not self.log_fault:
                log.warning("region %s: its buckets may go to other workers: %s", self.region, error)
            self.log_fault = str(error)
        else:
            self.log_fault = ""

    def _round(self, stop: threading.Event) -> bool:
        """One batch of every bucket that may have one. Returns whether there may be more to do."""
        self._free_bytes = min((state.free_bytes for state in self.states.values()), default=math.inf)
        self.held_back = self._pressure()
        moved = False
        for bucket in () if self.held_back else sorted(self.assigned - self.faults.keys()):
            moved |= self._guarded(bucket, self._pull)
            if stop.is_set() or self._fails(bucket) or self._room_is_short():
                break
        if not self.held_back:
            self._retry(stop)
        retires = self._retire()
        self._look_around(stop)
        return moved or retires

    def _fails(self, bucket: int) -> bool:
        """Whether its back end does not answer. Each round ends there: one that hangs costs a time-out, and
        the membership is kept alive."""
        return bucket in self.faults and not self.faults[bucket].needs_backfill

    def _retry(self, stop: threading.Event) -> None:
        """Try the buckets that stand still."""
        for _, bucket in sorted((fault.retry_s, bucket) for bucket, fault in self.faults.items()):
            fault = self.faults[bucket]
            if stop.is_set() or fault.retry_s > time.monotonic():
                break
            self._guarded(bucket, self._pull)
            if self._fails(bucket):
                break

    def _retire(self) -> bool:
        """Also while it is held back: deleting makes room. Returns whether more is left to delete now."""
        try:
            return self._worker.retire(spared=set(filter(self._fails, self.faults)))
        except BackendError as error:  # tried again in the next round
            log.warning("region %s: not all that is retired is deleted yet: %s", self.region, error)
            return False

    def _look_around(self, stop: threading.Event) -> None:
        until_s = time.monotonic() + LOOKING_S
        for bucket in sorted(self.assigned - self.faults.keys(), key=self._looked):
            now_s = time.monotonic()
            if self._looked(bucket) + LOOK_S > now_s or now_s > until_s or stop.is_set():
                break
            self._guarded(bucket, self._look)

    def _looked(self, bucket: int) -> float:
        return self._looked_s.get(bucket, 0.0)

    def _guarded(self, bucket: int, action: Callable[[int], bool]) -> bool:
        try:
            moved = action(bucket)
        except (BackendError, RegionNotReadyError) as error:
            self._fail(bucket, error)
            return False
        self._mend(bucket)
        return moved

    def _pull(self, bucket: int) -> bool:
        if bucket in self.faults or self._worker.offset(bucket) is None:
            self._look(bucket)
            if self._room_is_short():
                return False
        moved = self._worker.pull(bucket)
        if moved:
            # of a store that fills fast, time alone would look when the reserve is gone
            if self._worker.moved_bytes - self._looked_bytes >= self._limits.min_free_bytes // 4:
                self._look(bucket)
            self._read(bucket)
        return moved

    def _look(self, bucket: int) -> bool:
        """Read the bucket's state; go on from its offset if the store was wiped, restored or repaired. Its
        dead letters may be of others that apply the log beside this worker."""
        self._looked_s[bucket], self._looked_bytes = time.monotonic(), self._worker.moved_bytes
        state = self.store.state(bucket)
        self.states = _with(self.states, bucket, state)
        self._free_bytes = min(self._free_bytes, state.free_bytes)
        if not self._worker.is_at(bucket, state):
            self._worker.resume(bucket, state)
        self.dead_letters = _with(self.dead_letters, bucket, self.store.count_dead_letters(bucket))
        return False

    def _read(self, bucket: int) -> None:
        """What a reader of this bucket waits for now, behind what was just applied."""
        release = self.states[bucket].release
        space, epoch = ("", 0) if release is None else (release.space, release.epoch)
        user = self._user_of(bucket)
        started_s = time.monotonic()
        self.store.get_many(space, epoch, [user])
        self._reads_s.append(time.monotonic() - started_s)
        self._read_seconds.observe(self._reads_s[-1])

    def _user_of(self, bucket: int) -> int:
        """The first one, searched for all buckets together."""
        while bucket not in self._users:
            found = bucket_of(self._tried_users, self.source.partitions)
            self._users.setdefault(found, self._tried_users)
            self._tried_users += 1
        return self._users[bucket]

    def _pressure(self) -> str:
        """Why the store must be spared now; empty if it need not be."""
        if short := self._room_is_short():
            return short
        now_s = time.monotonic()
        if now_s < self._hold_until_s:
            return self.held_back
        if len(self._reads_s) < READS:
            return ""
        p99_s = sorted(self._reads_s)[READS * 99 // 100 - 1]
        if p99_s <= self._limits.max_read_p99_s:
            return ""
        # Once a second it goes on all the same: if it is not this worker that slows the store down, lag alone
        # would grow.
        self._hold_until_s = now_s + HOLD_S
        self._reads_s.clear()
        return (
            f"reads take {p99_s * 1e3:.1f} ms (p99), {self._limits.max_read_p99_s * 1e3:g} ms are the limit"
        )

    def _room_is_short(self) -> str:
        if self._free_bytes >= self._limits.min_free_bytes:
            return ""
        return (
            f"the store has {self._free_bytes:,} bytes free, {self._limits.min_free_bytes:,} are its reserve"
        )

    def _fail(self, bucket: int, error: Exception) -> None:
        needs_backfill, before = isinstance(error, RegionNotReadyError), self.faults.get(bucket)
        if not any(fault.needs_backfill == needs_backfill for fault in self.faults.values()):
            log.warning("region %s stands still in some buckets: %s", self.region, error)
        delay_s = FIRST_BACKOFF_S if before is None else min(MAX_BACKOFF_S, 2 * before.delay_s)
        fault = Fault(needs_backfill, str(error), delay_s, retry_s=time.monotonic() + delay_s)
        self.faults = self.faults | {bucket: fault}
        self.states = {other: state for other, state in self.states.items() if other != bucket}

    def _mend(self, bucket: int) -> None:
        if bucket not in self.faults:
            return
        now_s = time.monotonic()  # where one bucket goes on, the others may too
        self.faults = {
            other: replace(fault, delay_s=FIRST_BACKOFF_S, retry_s=now_s)
            for other, fault in self.faults.items()
            if other != bucket
        }
        if not self.faults:
            log.info("region %s goes on in every bucket", self.region)


def _with(found: dict[int, _Value], bucket: int, value: _Value) -> dict[int, _Value]:
    """With this value; a copy only if it grows, which whoever iterates over it could not bear."""
    if bucket not in found:
        return found | {bucket: value}
    found[bucket] = value
    return found
