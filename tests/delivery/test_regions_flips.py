"""Promotions and rollbacks while summaries are read and updated."""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from delivery_samples import BUCKETS, SPACES, deliver_here, publish_epoch, record
from deployments import Deployment, Stream, region_process, until, update
from must_hold import Found

from vista.delivery.interfaces import Catalog, Release
from vista.delivery.reader import RegionReader
from vista.delivery.regions import Backends, open_backends
from vista.delivery.release import current_release, promote, rollback
from vista.delivery.sqlite_log import SqliteLog
from vista.errors import BackendError, SpaceMismatchError
from vista.summary.record import inspect, space_id

SPACE = SPACES[0]
USERS = 48
READ_EVERY_S = 0.05
BATCH = 16


@pytest.mark.must_hold(4)
def test_no_batch_mixes_epochs_while_releases_flip_under_streamed_updates(
    deployment: Deployment,
    tmp_path: Path,
    found: Found,
    full_size: bool,
) -> None:
    """Must hold 4: reads every 50 ms through promotions and rollbacks under streamed updates: no batch mixes
    epochs, no wrong-user vector, nothing is missing; `slowest` is the slowest rollback, regions included."""
    settings = deployment.settings
    for number in (1, 2):
        epoch = publish_epoch(
            tmp_path, users=USERS, as_of_us=1_000 * number, variant=number, catalog_url=settings.catalog_url
        )
        deliver_here(tmp_path, epoch, settings)
    with (
        region_process(deployment, "east", tmp_path) as east,
        region_process(deployment, "west", tmp_path) as west,
        region_process(deployment, "south", tmp_path) as south,
        open_backends(settings) as backends,
    ):
        flip(backends, 1)
        reads = Reads(backends)
        thread = threading.Thread(target=reads.run)
        began_s = time.monotonic()
        thread.start()
        with Stream(backends.log, USERS, (1, 2), pause_s=0.01).running() as stream:
            for _ in range(50 if full_size else 8):
                flip(backends, 2)
                reads.go_on()
                started_s = time.monotonic()
                done = rollback(backends, to=None, actor="test", reason="worse")
                found.slowest_s = max(found.slowest_s, round(time.monotonic() - started_s, 3))
                assert (done.changed, done.release.epoch, done.regions) == (True, 1, {})
                found.rounds += 2
                reads.go_on()
        reads.stop.set()
        thread.join()
        reading_s = time.monotonic() - began_s
        assert not full_size or reads.batches >= reading_s / READ_EVERY_S / 2, reading_s
        assert not reads.problems, reads.problems[:3]
        found.mixed, found.lost = reads.mixed, reads.missing
        assert (reads.mixed, reads.missing) == (0, 0)
        assert reads.epochs == {1, 2}, "batches of both epochs were read"
        assert stream.sent > 0
        assert not full_size or found.slowest_s < 1, "the slowest rollback"
        for worker in (east, west, south):
            until(lambda: is_at_end(backends), "every region is at the log's end")
            worker.stop()
    with open_backends(settings) as backends:
        for store in backends.stores.values():
            for (number, user), newest in stream.newest.items():
                assert store.get_many(SPACE, number, [user]) == [newest]


def is_at_end(backends: Backends) -> bool:
    return all(
        store.state(bucket).offset == backends.log.bounds(bucket)[1]
        for store in backends.stores.values()
        for bucket in range(BUCKETS)
    )


def flip(backends: Backends, epoch: int) -> None:
    current = current_release(backends.catalog)
    done = promote(
        backends, space=SPACE, epoch=epoch, foundation="f", downstream=f"d{epoch}", actor="test",
        reason="better", instead_of=None if current is None else current.id,
    )  # fmt: skip
    assert (done.changed, done.regions) == (True, {})


@dataclass
class Reads:
    """A scorer: loads what the release names, reads batches of that epoch, looks at every byte."""

    backends: Backends
    stop: threading.Event = field(default_factory=threading.Event)
    mixed: int = 0
    missing: int = 0
    batches: int = 0
    epochs: set[int] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)
    _readers: dict[str, RegionReader] = field(default_factory=dict)

    def run(self) -> None:
        due_s = time.monotonic()
        while not self.stop.wait(max(0.0, due_s - time.monotonic())):
            due_s += READ_EVERY_S
            users = [(5 * self.batches + step) % USERS for step in range(BATCH)]
            self._batch(_released(self.backends.catalog), users)
            self.batches += 1
        for reader in self._readers.values():
            reader.close()

    def go_on(self) -> None:
        """Wait for a whole batch, so that each release is read, however fast they come."""
        read = self.batches
        until(lambda: self.batches >= read + 2, "batches are read between the flips")

    def _batch(self, release: Release, users: list[int]) -> None:
        reader = self._readers.setdefault(release.id, RegionReader(self.backends.stores, release, BUCKETS))
        try:
            answers = reader.read(users)
        except SpaceMismatchError as error:
            self.mixed += 1
            self.problems.append(str(error))
            return
        self.epochs.add(release.epoch)
        for user, answer in zip(users, answers, strict=True):
            if answer.data is None:
                self.missing += 1
                self.problems.append(f"user {user}, epoch {release.epoch}: {answer.why}")
            elif answer.data != _wanted(answer.data, user, release.epoch):
                self.mixed += 1
                self.problems.append(f"user {user}, epoch {release.epoch}: other bytes than were written")


def _released(catalog: Catalog) -> Release:
    release = current_release(catalog)
    assert release is not None
    return release


def _wanted(data: bytes, user: int, epoch: int) -> bytes:
    """The very bytes that somebody wrote for this user and epoch with the record's own seq."""
    header = inspect(data)
    assert header.space_id == space_id(SPACE)
    if header.seq >= 1_000:
        return update(user, header.seq, epoch)
    return record(user, user, space=SPACE, epoch=epoch, as_of_us=1_000 * epoch, variant=epoch)


def test_a_stream_that_dies_fails_its_test(tmp_path: Path) -> None:
    """It would be a test without its load."""

    class Full(SqliteLog):
        def append(self, partition: int, records: Sequence[bytes]) -> int:
            if stream.sent:
                raise BackendError("the disk is full")
            return super().append(partition, records)

    stream = Stream(Full(f"sqlite:///{tmp_path}/log.db", BUCKETS), USERS, (1,), pause_s=0.0)
    with pytest.raises(BackendError, match="the disk is full"), stream.running():
        until(lambda: stream.sent, "it has begun")
