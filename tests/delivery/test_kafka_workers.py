"""A region's workers share a topic: killed, stopped and woken up again, too many or none."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from delivery_samples import SPACES, content_digest, record
from kafka_topics import new_topic, plain_url
from must_hold import Found
from region_threads import RegionThread

from infra.kafka import Kafka
from infra.processes import wait_until
from vista.data.schema import bucket_of
from vista.delivery.interfaces import Log, Store
from vista.delivery.log import open_log
from vista.delivery.region_worker import LIMITS
from vista.delivery.store import open_store
from vista.delivery.worker import drain

BUCKETS = 8
WAIT_S = 240.0
SPAWN = multiprocessing.get_context("spawn")  # a worker is a process of its own, with clients of its own
EPOCHS = [(SPACES[0], 1)]


@pytest.mark.must_hold(7)
def test_workers_that_are_killed_or_become_zombies_leave_every_key_right(
    kafka: Kafka, found: Found, full_size: bool, tmp_path: Path
) -> None:
    """Must hold 7: kill -9 of a consumer, rebalances, two consumers of one region at once, a zombie."""
    users, kills = (20_000, 20) if full_size else (2_000, 2)
    everyone = range(users)
    newest = dict.fromkeys(everyone, 0)
    log_url, store_url = plain_url(kafka, new_topic()), f"sqlite:///{tmp_path}/east.db"
    with closing(open_log(log_url, BUCKETS)) as log, closing(open_store(store_url, BUCKETS)) as store:
        with ThreadPoolExecutor(1) as pool, workers(log_url, store_url) as region:
            send(log, everyone, 0)
            for number in range(1, kills + 1):
                before, quarter = applied(store), everyone[number % 4 :: 4]
                newest |= dict.fromkeys(quarter, number)
                sending = pool.submit(send, log, quarter, number)
                region.start(2)
                assert wait_until(lambda before=before: applied(store) > before + users // 50, WAIT_S, 0.01)
                region.signal(0, signal.SIGKILL)
                sending.result(WAIT_S)
            region.start(2)
            # stopped while it writes, it would keep the embedded store locked
            assert wait_until(lambda: applied(store) == end_of(log), WAIT_S)
            region.signal(0, signal.SIGSTOP)  # its buckets go to the other one ...
            drain("east", log, store)  # beside a consumer that no group knows of
            newest |= dict.fromkeys(everyone[::2], 10**6)
            send(log, everyone[::2], 10**6)
            assert wait_until(lambda: applied(store) == end_of(log), WAIT_S)
            region.signal(0, signal.SIGCONT)  # ... and it wakes up with offsets of long ago
            newest |= dict.fromkeys(everyone[1::2], 10**6)
            send(log, everyone[1::2], 10**6)
            assert wait_until(lambda: applied(store) == end_of(log), WAIT_S)
        with closing(open_store(f"sqlite:///{tmp_path}/told.db", BUCKETS)) as told:
            for bucket, mine in by_bucket(everyone).items():
                told.apply(bucket, 0, 1, [record(user, newest[user]) for user in mine])
            for user in everyone:
                held, right = (one.get_many(SPACES[0], 1, [user])[0] for one in (store, told))
                found.add(lost=held is None, mixed=held is not None and held != right)
            assert content_digest(store, everyone, EPOCHS) == content_digest(told, everyone, EPOCHS)
    found.rounds = kills
    assert (found.lost, found.mixed) == (0, 0)


class Region:
    """The processes of a region's workers."""

    def __init__(self, log_url: str, store_url: str) -> None:
        self.urls = log_url, store_url
        self.processes: list[multiprocessing.process.BaseProcess] = []

    def start(self, live: int) -> None:
        """Bring the number of live workers to `live`."""
        self.processes = [one for one in self.processes if one.is_alive()]
        for _ in range(live - len(self.processes)):
            self.processes.append(SPAWN.Process(target=work, args=self.urls, daemon=True))
            self.processes[-1].start()

    def signal(self, index: int, number: int) -> None:
        os.kill(self.processes[index].pid or 0, number)
        if number == signal.SIGKILL:
            self.processes[index].join()


@contextmanager
def workers(log_url: str, store_url: str) -> Iterator[Region]:
    region = Region(log_url, store_url)
    try:
        yield region
    finally:
        for process in region.processes:
            process.kill()
            process.join()


def work(log_url: str, store_url: str) -> None:
    """One worker, until it is killed."""
    with closing(open_log(log_url, BUCKETS)) as log, closing(open_store(store_url, BUCKETS)) as store:
        RegionThread("east", log, store, LIMITS, "").worker.follow(threading.Event())


def send(log: Log, users: Iterable[int], seq: int) -> None:
    """A record of each user, in small appends."""
    for bucket, mine in by_bucket(users).items():
        for start in range(0, len(mine), 50):
            log.append(bucket, [record(user, seq) for user in mine[start : start + 50]])


def by_bucket(users: Iterable[int]) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {bucket: [] for bucket in range(BUCKETS)}
    for user in users:
        found[bucket_of(user, BUCKETS)].append(user)
    return found


def applied(store: Store) -> int:
    """Where the region is, summed over its buckets."""
    return sum(store.state(bucket).offset for bucket in range(BUCKETS))


def end_of(log: Log) -> int:
    """Where the log ends, summed over its partitions."""
    return sum(log.bounds(bucket)[1] for bucket in range(BUCKETS))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_worker_does_not_outlive_the_thread_that_stays_in_the_group(
    kafka: Kafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alone it would believe in its last assignment for ever, while the group gives its buckets away."""

    def fails(_timeout_ms: float) -> None:
        raise ValueError("a fault of the client")

    with closing(open_log(plain_url(kafka, new_topic()), 2)) as log:
        subscription = log.subscribe("east", lambda _: None, lambda _: None)
        monkeypatch.setattr(subscription._consumer, "poll", fails)  # type: ignore[attr-defined]
        with pytest.raises(RuntimeError, match="has ended"):
            wait_until(lambda: subscription.poll(), 60.0)
        subscription.close()
