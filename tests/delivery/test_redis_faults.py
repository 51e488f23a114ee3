"""A region's Redis that is killed, wiped or restored from an old copy: the log heals it.

A store that went back in time says so by its offset, and its worker goes on from there.
"""

import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from delayed_link import delayed_link
from delivery_samples import BUCKETS, SPACES, content_digest, record, tombstone, users_of
from lossy_link import lossy_link
from must_hold import Found

from infra.processes import wait_until
from infra.redis import PRIMARY_NAME, Node, Redis, running_cluster, running_redis, running_sentinel
from infra.servers import HOST
from vista.delivery import redis_store, worker
from vista.delivery.control import barrier, release_record, retirement
from vista.delivery.interfaces import BucketState, Log, Release, Store
from vista.delivery.log import open_log
from vista.delivery.store import open_store
from vista.delivery.worker import Worker, drain
from vista.errors import BackendError
from vista.summary.record import inspect, keys_digest, space_id

SPACE = SPACES[0]
BATCH_BYTES = 2_000  # some 15 of these records: many batches, so that a kill falls between two of them
REPLICA_DELAY_S = 0.04
FAIL_OVER_S = 100.0  # 2-4 s on two idle cores, 40 s more if the Sentinels' votes were split
USERS_PER_BUCKET = 200
UPDATES = 600  # to every bucket, in every round


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "MAX_BATCH_BYTES", BATCH_BYTES)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    with closing(open_log(f"sqlite:///{tmp_path}/log.db", BUCKETS)) as opened:
        yield opened


def append_updates(log: Log, seed: int, count: int, epoch: int = 1) -> None:
    """To every bucket: records of its users with random seq; some are older, some equal, some tombstones."""
    choice = random.Random(seed)
    for bucket in range(BUCKETS):
        users = users_of(bucket, USERS_PER_BUCKET)
        drawn = [(choice.choice(users), choice.randrange(50), choice.random()) for _ in range(count)]
        batch = [
            tombstone(user, seq, epoch=epoch)
            if kind < 0.05
            else record(user, seq, epoch=epoch, variant=kind < 0.5)
            for user, seq, kind in drawn
        ]
        log.append(bucket, batch)


def states_of(store: Store) -> list[BucketState]:
    return [store.state(bucket) for bucket in range(BUCKETS)]


def missing(store: Store, log: Log, states: Sequence[BucketState]) -> int:
    """Users of whom the store does not hold the newest record up to its offset, and wrong sets of users."""
    wrong = 0
    for bucket, state in enumerate(states):
        newest: dict[int, bytes] = {}
        for offset, data in log.read(bucket, 0, 2**30):
            if offset < state.offset:
                user = inspect(data).user_id
                newest[user] = max(newest.get(user, data), data, key=lambda one: inspect(one).order)
        held = store.get_many(SPACE, 1, list(newest))
        for data, found in zip(newest.values(), held, strict=True):
            wrong += found != (None if inspect(data).tombstone else data)
        if newest:
            epoch = state.epochs[space_id(SPACE), 1]
            wrong += (epoch.users, epoch.keys_digest) != (len(newest), keys_digest(newest))
    return wrong


def offset_of(one: Worker) -> int:
    return sum(one.offset(bucket) for bucket in range(BUCKETS))


def step(one: Worker, deadline_s: float) -> bool:
    """A step of a worker that tries again while its store is out of reach."""
    while True:
        try:
            return one.step()
        except BackendError:
            assert time.monotonic() < deadline_s, "the store did not come back"


def kill_on_the_way(primary: Node, one: Worker, at: int) -> int:
    """kill -9 the primary while the worker goes on, once it was told that `at` records are in.

    Returns how many it was told of when the primary was gone.
    """
    pid, due, gone = primary.server.pid, threading.Event(), threading.Event()

    def kill() -> None:
        due.wait()
        os.kill(pid, signal.SIGKILL)
        gone.set()

    killer = threading.Thread(target=kill)
    killer.start()
    deadline_s, told = time.monotonic() + FAIL_OVER_S, 0
    while not gone.is_set():
        told = offset_of(one)
        if told >= at:
            due.set()
        step(one, deadline_s)
    killer.join()
    primary.server.stop()
    return told


def catch_up(one: Worker) -> None:
    deadline_s = time.monotonic() + FAIL_OVER_S
    while step(one, deadline_s):
        pass


def primary_of(redis: Redis) -> Node:
    port = redis.sentinels[0].ask("SENTINEL", "get-master-addr-by-name", PRIMARY_NAME).split()[1]
    return next(node for node in redis.nodes if node.port == int(port))


def is_level(primary: Node, replica: Node) -> bool:
    mine, its = (node.fields("INFO", "replication") for node in (replica, primary))
    return mine.get("master_link_status") == "up" and mine["slave_repl_offset"] >= its["master_repl_offset"]


@contextmanager
def following_slowly(primary: Node, replica: Node) -> Iterator[None]:
    """The replica has all that its primary has, and follows it with a delay."""
    with delayed_link(primary.port, REPLICA_DELAY_S) as port:
        replica.ask("REPLICAOF", HOST, str(port))
        assert wait_until(lambda: is_level(primary, replica), FAIL_OVER_S)
        yield


@pytest.mark.must_hold(6)
def test_a_primary_killed_while_its_replica_is_behind(
    tmp_path: Path, log: Log, full_size: bool, found: Found
) -> None:
    """Must hold 6. The new primary lacks what the worker had been told is in, and says so: there is no hole
    below its offset, and after the replay nothing is lost."""
    choice, went_back = random.Random(6), 0
    with running_sentinel(tmp_path / "redis") as redis, closing(open_store(redis.url, BUCKETS)) as store:
        for sentinel in redis.sentinels:  # so long they leave the replica its slow way
            sentinel.ask("SENTINEL", "SET", PRIMARY_NAME, "failover-timeout", "20000")
        one = Worker("east", log, store)
        one.assign(range(BUCKETS))
        for seed in range(10 if full_size else 2):
            primary = primary_of(redis)
            (replica,) = (node for node in redis.nodes if node is not primary)
            start = offset_of(one)
            append_updates(log, seed, UPDATES)
            with following_slowly(primary, replica):
                told = kill_on_the_way(primary, one, start + choice.randrange(UPDATES, 2 * UPDATES))
            states = states_of(store)
            went_back += sum(state.offset for state in states) < told
            found.add(lost=missing(store, log, states))
            primary.server.start()
            primary.server.wait()
            catch_up(one)
            found.add(lost=missing(store, log, states_of(store)))
            found.rounds += 1
        assert [state.offset for state in states_of(store)] == [log.bounds(b)[1] for b in range(BUCKETS)]
    assert went_back, "no failover lost anything: the test shows nothing"
    assert found.lost == 0


@pytest.mark.must_hold(6)
def test_a_primary_of_a_cluster_killed(tmp_path: Path, log: Log, full_size: bool, found: Found) -> None:
    """Must hold 6, without a delay and in a Cluster: the worker goes on where a replica took over."""
    with running_cluster(tmp_path / "redis") as redis, closing(open_store(redis.url, BUCKETS)) as store:
        one = Worker("east", log, store)
        one.assign(range(BUCKETS))
        for seed in range(5 if full_size else 1):
            start = offset_of(one)
            append_updates(log, seed, UPDATES)
            primary = redis.nodes[0] if seed % 2 == 0 else redis.nodes[3]
            if primary.fields("INFO", "replication")["role"] != "master":
                primary.ask("CLUSTER", "FAILOVER")
                assert wait_until(
                    lambda p=primary: p.fields("INFO", "replication")["role"] == "master", FAIL_OVER_S
                )
            kill_on_the_way(primary, one, start + UPDATES)
            found.add(lost=missing(store, log, states_of(store)))
            primary.server.start()
            primary.server.wait()
            catch_up(one)
            found.add(lost=missing(store, log, states_of(store)))
            found.rounds += 1
    assert found.lost == 0


def wipe(redis: Redis, copy: Path) -> None:
    redis.wipe()


def lose_everything(redis: Redis, copy: Path) -> None:
    """Functions too: nothing is on disk."""
    server = redis.nodes[0].server
    server.kill()
    server.start()
    server.wait()


def restore(redis: Redis, copy: Path) -> None:
    server = redis.nodes[0].server
    server.kill()
    shutil.copy(copy, server.place / "dump.rdb")
    server.start()
    server.wait()


def summaries(redis: Redis) -> int:
    return len(redis.nodes[0].ask("KEYS", "s:*").splitlines())


def assert_like_embedded(store: Store, log: Log, path: Path) -> None:
    """The store answers what an embedded one does that has read the same log."""
    with closing(open_store(f"sqlite:///{path}/reference.db", BUCKETS)) as reference:
        drain("reference", log, reference)
        for bucket in range(BUCKETS):
            mine, its = store.state(bucket), reference.state(bucket)
            assert (mine.offset, mine.release, mine.floors) == (its.offset, its.release, its.floors)
            assert mine.epochs == its.epochs
            users, epochs = users_of(bucket, USERS_PER_BUCKET), [(SPACE, epoch) for epoch in (1, 2)]
            assert content_digest(store, users, epochs) == content_digest(reference, users, epochs)


@pytest.mark.must_hold(13)
@pytest.mark.parametrize("fault", [wipe, lose_everything, restore])
def test_a_store_that_went_back_heals_and_a_retired_epoch_stays_away(
    tmp_path: Path, log: Log, found: Found, fault
) -> None:
    """Must hold 13, the store's part: a wiped store, a new server, one restored from an old copy."""
    release = Release(id="r-1", space=SPACE, epoch=1, foundation="f", downstream="d")
    with running_redis(tmp_path / "redis") as redis, closing(open_store(redis.url, BUCKETS)) as store:
        (node,) = redis.nodes
        one = Worker("east", log, store)
        one.assign(range(BUCKETS))
        append_updates(log, 1, UPDATES)
        catch_up(one)
        node.ask("SAVE")
        copy = shutil.move(node.server.place / "dump.rdb", tmp_path / "old.rdb")
        append_updates(log, 2, UPDATES, epoch=2)
        for bucket in range(BUCKETS):
            log.append(
                bucket, [barrier(SPACE, 1), barrier(SPACE, 2), release_record(release), retirement(SPACE, 1)]
            )
        catch_up(one)
        assert_like_embedded(store, log, tmp_path)
        kept = summaries(redis)
        fault(redis, Path(copy))
        assert sum(state.offset for state in states_of(store)) < offset_of(one)
        append_updates(log, 1, UPDATES)  # of the retired epoch, as a late backfill sends it
        catch_up(one)
        assert one.report.refused == BUCKETS
        assert_like_embedded(store, log, tmp_path)
        assert summaries(redis) == kept
        found.rounds += 1


def test_a_worker_that_is_gone_amid_a_batch_leaves_no_byte_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its connection may end anywhere in the transaction: Redis drops what has come."""
    monkeypatch.setattr(redis_store, "PATIENCE_S", 0.05)
    batch = [record(user) for user in users_of(0, 20)]
    with running_redis(tmp_path / "redis") as redis:
        (node,) = redis.nodes
        for arriving in range(0, 5_000, 100):
            with lossy_link(node.port, b"MSET", arriving) as link:
                url = redis.url.replace(f":{node.port}", f":{link.port}")
                with closing(open_store(url, BUCKETS)) as store, pytest.raises(BackendError, match="closed"):
                    store.apply(0, 0, len(batch), batch)
            assert link.lost
            assert node.ask("KEYS", "s:*") == ""
        done = node.fields("INFO", "commandstats")  # of the commands that were called
        assert "cmdstat_multi" in done
        assert "cmdstat_exec" not in done
        with closing(open_store(redis.url, BUCKETS)) as store:
            assert store.apply(0, 0, len(batch), batch).written == len(batch)
