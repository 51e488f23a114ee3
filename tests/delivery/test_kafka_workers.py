"""A region's workers share a topic: killed, stopped and woken up again, too many or none."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from delivery_samples import SPACES, content_digest, record
from kafka_topics import new_topic, plain_url

from infra.kafka import Kafka
from infra.processes import wait_until
from vista.data.schema import bucket_of
from vista.delivery.interfaces import Log, Store
from vista.delivery.log import open_log
from vista.delivery.store import open_store
from vista.delivery.worker import drain, serve_region

if TYPE_CHECKING:
    from conftest import Found

BUCKETS = 8
WAIT_S = 240.0
SPAWN = multiprocessing.get_context("spawn")  # a worker is a process of its own, with clients of its own
EPOCHS = [(SPACES[0], 1)]


def test_workers_that_are_killed_or_become_zombies_leave_every_key_right(
    kafka: Kafka, found: "Found", full_size: bool, tmp_path: Path
) -> None:
    """Must hold 7: kill -9 of a consumer, rebalances, two consumers of one region at once, a zombie."""
    users, kills = (20_000, 20) if full_size else (2_000, 2)
    log_url, store_url = plain_url(kafka, new_topic()), f"sqlite:///{tmp_path}/east.db"
    with closing(open_log(log_url, BUCKETS)) as log, closing(open_store(store_url, BUCKETS)) as store:
        with ThreadPoolExecutor(1) as pool, workers(log_url, store_url) as region:
            sending = pool.submit(send, log, users, kills + 2)
            for _ in range(kills):
                region.start(2)
                before = applied(store)
                assert wait_until(lambda before=before: applied(store) > before + users // 50, WAIT_S)
                region.signal(0, signal.SIGKILL)
            region.start(2)
            region.signal(0, signal.SIGSTOP)  # its buckets go to the others ...
            drain("east", log, store)  # a consumer that no group knows of
            sending.result(WAIT_S)
            end = sum(log.bounds(bucket)[1] for bucket in range(BUCKETS))
            assert wait_until(lambda: applied(store) == end, WAIT_S)
            log.append(0, [record(user, 10**6) for user in users_in(0, users)])
            region.signal(0, signal.SIGCONT)  # ... and it wakes up with offsets of long ago
            end = sum(log.bounds(bucket)[1] for bucket in range(BUCKETS))
            assert wait_until(lambda: applied(store) == end, WAIT_S)
        with closing(open_store(f"sqlite:///{tmp_path}/told.db", BUCKETS)) as told:
            expect(told, users, kills + 2)
            for user in range(users):
                held, right = (one.get_many(SPACES[0], 1, [user])[0] for one in (store, told))
                found.lost += held is None
                found.mixed += held is not None and held != right
            assert content_digest(store, range(users), EPOCHS) == content_digest(told, range(users), EPOCHS)
    found.rounds = kills
    assert (found.lost, found.duplicated, found.mixed) == (0, 0, 0)


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
        serve_region("east", log, store, threading.Event())


def send(log: Log, users: int, rounds: int) -> None:
    """Every user once a round, each time newer."""
    for number in range(rounds):
        for bucket in range(BUCKETS):
            mine = [record(user, number) for user in users_in(bucket, users)]
            for start in range(0, len(mine), 50):
                log.append(bucket, mine[start : start + 50])


def expect(store: Store, users: int, rounds: int) -> None:
    """What the region must hold: the newest of every user, and what came last in bucket 0."""
    for bucket in range(BUCKETS):
        newest = 10**6 if bucket == 0 else rounds - 1
        store.apply(bucket, 0, 1, [record(user, newest) for user in users_in(bucket, users)])


def users_in(bucket: int, users: int) -> list[int]:
    return [user for user in range(users) if bucket_of(user, BUCKETS) == bucket]


def applied(store: Store) -> int:
    """Where the region is, summed over its buckets."""
    return sum(store.state(bucket).offset for bucket in range(BUCKETS))
