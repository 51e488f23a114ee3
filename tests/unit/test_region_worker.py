"""A region's endless worker over embedded back ends: outages, holes, wiped stores, stores to be spared."""

import logging
import os
import sqlite3
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from delivery_samples import BUCKETS, SPACES, publish_epoch, record, settings_of, users_of
from region_threads import RegionThread, region_thread

from vista.config import Settings
from vista.delivery import sqlite, sqlite_store, worker
from vista.delivery.audit import audit_line
from vista.delivery.backfill import backfill
from vista.delivery.catalog import open_catalog
from vista.delivery.control import barrier, release_record, retirement
from vista.delivery.interfaces import Release
from vista.delivery.lag import MAX_SAMPLES, Ends, Lag
from vista.delivery.log import open_log
from vista.delivery.region_health import RegionHealth, served
from vista.delivery.region_worker import LIMITS, Limits
from vista.delivery.sqlite_log import SqliteLog
from vista.delivery.sqlite_store import SqliteStore
from vista.delivery.worker import drain
from vista.errors import BackendError, InputError

SPACE = SPACES[0]
DAY_S = 86_400.0


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return settings_of(tmp_path)


@pytest.fixture
def log(settings: Settings) -> SqliteLog:
    return SqliteLog(settings.log_url, BUCKETS)


@pytest.fixture
def store(settings: Settings) -> SqliteStore:
    return SqliteStore(settings.region_urls["east"], BUCKETS)


def until(condition: Callable[[], object], seconds: float = 120.0) -> None:
    deadline_s = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def is_at_end(log: SqliteLog, store: SqliteStore, buckets: range = range(BUCKETS)) -> bool:
    return all(store.state(bucket).offset == log.bounds(bucket)[1] for bucket in buckets)


def ten_then_retired(bucket: int, epoch: int) -> list[bytes]:
    """Ten summaries of an epoch, and its retirement."""
    return [*(record(user, epoch=epoch) for user in users_of(bucket, 10)), retirement(SPACE, epoch)]


def held(store: SqliteStore) -> int:
    with store._database.read() as connection:
        (count,) = connection.execute("SELECT COUNT(*) FROM summaries").fetchone()
    return int(count)


def fill(log: SqliteLog, seq: int = 0) -> None:
    for bucket in range(BUCKETS):
        log.append(bucket, [record(user, seq) for user in users_of(bucket, 10)])


def test_it_follows_the_log_counts_and_leaves_when_told(log: SqliteLog, store: SqliteStore) -> None:
    fill(log)
    log.append(1, [b"garbage"])
    with region_thread("east", log, store) as running:
        until(lambda: is_at_end(log, store))
        fill(log, seq=1)
        until(lambda: is_at_end(log, store))
    assert running.report is not None
    assert (running.report.written, running.report.dead_letters) == (2 * 10 * BUCKETS, 1)
    with log._database.read() as connection:
        assert connection.execute("SELECT COUNT(*) FROM members").fetchone() == (0,), "it has left"


def test_dead_letters_are_those_that_the_store_keeps_whoever_applied_them(
    log: SqliteLog, store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stage or an operator's command may bring the region to the log's end before its worker does."""
    monkeypatch.setattr("vista.delivery.region_worker.LOOK_S", 0.2)
    for bucket in (0, 3):
        log.append(bucket, [b"garbage"])
    drain("east", log, store)
    with region_thread("east", log, store) as running:
        until(lambda: running.monitor.health().dead_letters == 2)
        offset = store.state(1).offset
        store.apply(1, offset, offset, [b"garbage"])
        until(lambda: running.registry.get_sample_value("vista_dead_letters", {"region": "east"}) == 3)
        for bucket in range(BUCKETS):
            store.delete_dead_letters(bucket, store.dead_letters(bucket))
        until(lambda: running.monitor.health().dead_letters == 0)
    assert running.report is not None
    assert running.report.dead_letters == 0


def test_it_deletes_what_its_forerunner_was_killed_before_deleting_also_while_room_is_short(
    log: SqliteLog, store: SqliteStore
) -> None:
    for bucket in range(BUCKETS):
        assert store.apply(bucket, 0, 11, ten_then_retired(bucket, 1)).accepted
        log.append(bucket, ten_then_retired(bucket, 1))

    assert held(store) == 10 * BUCKETS
    with region_thread("east", log, store, Limits(min_free_bytes=2**62)) as running:
        until(lambda: running.worker.held_back)
        until(lambda: held(store) == 0)


def test_a_shard_that_is_away_keeps_no_other_from_deleting(log: SqliteLog, store: SqliteStore) -> None:
    """Neither the buckets of the worker that has a bucket there, nor those of the region's other worker."""
    for bucket in range(BUCKETS):
        assert store.apply(bucket, 0, 11, ten_then_retired(bucket, 1)).accepted
        log.append(bucket, ten_then_retired(bucket, 1))
    state, retire = store.state, store.retire

    def away(bucket: int | None) -> None:
        if bucket in (None, 3):
            raise BackendError("shard 3 is away")

    broken = pytest.MonkeyPatch()
    broken.setattr(store, "state", lambda bucket: away(bucket) or state(bucket))
    broken.setattr(store, "retire", lambda *of: away(of[3] if len(of) > 3 else None) or retire(*of))
    with region_thread("east", log, store) as first, region_thread("east", log, store) as second:
        until(lambda: len(first.worker.assigned) == len(second.worker.assigned) == BUCKETS // 2)
        until(lambda: held(store) == 10)
        assert [len(one.worker.faults) for one in (first, second)] in ([0, 1], [1, 0])
        broken.undo()
        until(lambda: held(store) == 0)


def test_the_log_is_followed_while_an_epoch_is_deleted(
    log: SqliteLog, store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deleting one takes minutes: rollbacks and updates do not wait for it."""
    monkeypatch.setattr(worker, "RETIRE_AT_ONCE", 1)
    monkeypatch.setattr(sqlite_store, "RETIRE_SLICE", 1)
    log.append(1, ten_then_retired(1, 1))
    delete, followed = store.retire, list[bool]()

    def retire(space: str, epoch: int, at_most: int | None = None, bucket: int | None = None) -> int:
        followed.append(is_at_end(log, store))
        log.append(2, [record(users_of(2, 1)[0], len(followed), epoch=2)])
        return delete(space, epoch, at_most, bucket)

    monkeypatch.setattr(store, "retire", retire)
    with region_thread("east", log, store):
        until(lambda: len(followed) == 11)
        until(lambda: is_at_end(log, store))
    assert len(followed) == 11, "one by one, and once more to find nothing"
    assert all(followed), "what was appended meanwhile was applied before the next one"


def test_who_waits_for_a_region_for_a_time_does_not_wait_for_deletions(
    log: SqliteLog, store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "RETIRE_AT_ONCE", 1)
    monkeypatch.setattr(sqlite_store, "RETIRE_SLICE", 1)
    log.append(1, ten_then_retired(1, 1))
    drain("east", log, store, deadline_s=30.0)
    assert store.retire(SPACE, 1) == 0, "there was time"
    log.append(1, ten_then_retired(1, 2))
    with monkeypatch.context() as slow:
        slow.setattr(store, "retire", lambda space, epoch, at_most, bucket: time.sleep(0.1) or at_most)
        drain("east", log, store, deadline_s=0.5)
    assert is_at_end(log, store)
    drain("east", log, store)
    assert store.retire(SPACE, 2) == 0, "the next one has deleted them"


def test_a_hole_stops_its_bucket_alone_until_the_store_is_past_it(
    log: SqliteLog, store: SqliteStore, caplog: pytest.LogCaptureFixture
) -> None:
    fill(log)
    with log._database.write() as connection:  # what retention does
        connection.execute("UPDATE partitions SET first = 3 WHERE partition = 2")
    with caplog.at_level(logging.INFO, "vista"), region_thread("east", log, store) as running:
        until(lambda: running.monitor.health().buckets_needing_backfill == 1)
        others = [0, 1, 3]
        until(lambda: all(is_at_end(log, store, range(one, one + 1)) for one in others))
        health = running.monitor.health()
        assert not health.ready
        assert "bucket 2 needs offset 0, the log starts at 3: it needs a backfill" in health.reasons[0]
        assert "(1 of 4 buckets stand still)" in health.reasons[0]
        fill(log, seq=1)
        until(lambda: all(is_at_end(log, store, range(one, one + 1)) for one in others))
        assert store.state(2).offset == 0
        assert store.apply(2, 0, 3, []).accepted, "what a repair does last"
        until(lambda: is_at_end(log, store))
        until(lambda: running.monitor.health().ready)
    said = [entry.message for entry in caplog.records if "stands still" in entry.message]
    assert len(said) == 1
    assert any("goes on in every bucket" in entry.message for entry in caplog.records)


def test_it_stands_still_before_a_log_that_was_replaced_until_it_is_repaired(
    log: SqliteLog, store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new log is as long as the old one was: by the offsets nothing is to be done."""
    monkeypatch.setattr("vista.delivery.region_worker.LOOK_S", 0.2)
    fill(log)
    with region_thread("east", log, store) as running:
        until(lambda: is_at_end(log, store))
        for path in log._database.path.parent.glob("log.db*"):
            path.unlink()
        SqliteLog(log._database.url, BUCKETS)
        fill(log, seq=1)
        until(lambda: running.monitor.health().buckets_needing_backfill == BUCKETS)
        assert "the log was replaced" in running.monitor.health().reasons[0]
        fill(log, seq=2)
        until(lambda: running.monitor.health().lag_records == 10 * BUCKETS)
        assert store.get_many(SPACE, 1, users_of(2, 1)) == [record(users_of(2, 1)[0])]
        for bucket in range(BUCKETS):
            assert store.apply(bucket, 10, 10, [], log.identity(), new_log=True).accepted
        until(lambda: running.monitor.health().ready)
        until(lambda: is_at_end(log, store))


def test_it_waits_for_a_store_that_is_away_and_says_so_once(
    log: SqliteLog, store: SqliteStore, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(log)
    store.state(0)
    monkeypatch.setattr(sqlite, "BUSY_TIMEOUT_S", 0.05)
    with caplog.at_level(logging.INFO, "vista"), region_thread("east", log, store) as running:
        until(lambda: is_at_end(log, store))
        with closing(sqlite3.connect(store._database.path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            fill(log, seq=1)
            until(lambda: running.monitor.health().buckets_failing == BUCKETS)
            health = running.monitor.health()
            assert not health.ready
            assert "BUSY" in health.reasons[0]
            until(lambda: running.monitor.health().lag_records == 10 * BUCKETS)
        until(lambda: is_at_end(log, store))
        until(lambda: running.monitor.health().ready)
    assert len([entry for entry in caplog.records if "stands still" in entry.message]) == 1
    assert running.report is not None
    assert running.report.written == 2 * 10 * BUCKETS


def test_it_waits_for_a_log_that_is_away(
    log: SqliteLog, store: SqliteStore, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    """The log's tables vanish under the worker, and are there again."""
    fill(log)
    with caplog.at_level(logging.INFO, "vista"), region_thread("east", log, store) as running:
        until(lambda: is_at_end(log, store))
        with log._database.write() as connection:
            connection.execute("ALTER TABLE members RENAME TO members_away")
            connection.execute("ALTER TABLE partitions RENAME TO partitions_away")
        until(lambda: not running.monitor.health().ready)
        until(lambda: running.worker.log_fault)
        with log._database.write() as connection:
            connection.execute("ALTER TABLE members_away RENAME TO members")
            connection.execute("ALTER TABLE partitions_away RENAME TO partitions")
        fill(log, seq=1)
        until(lambda: is_at_end(log, store))
        until(lambda: running.monitor.health().ready)


def test_a_store_that_is_wiped_while_nothing_comes_fills_again(
    log: SqliteLog, store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vista.delivery.region_worker.LOOK_S", 0.2)
    fill(log)
    with region_thread("east", log, store):
        until(lambda: is_at_end(log, store))
        with store._database.write() as connection:
            connection.execute("DELETE FROM offsets")
            connection.execute("DELETE FROM summaries")
        until(lambda: is_at_end(log, store))
    users = users_of(1, 10)
    assert store.get_many(SPACE, 1, users) == [record(user) for user in users]


def test_a_store_without_room_is_spared_and_nothing_is_lost(log: SqliteLog, store: SqliteStore) -> None:
    """Also in buckets that are assigned while the worker holds back: they were another worker's."""
    fill(log)
    reserve = Limits(min_free_bytes=10**18)
    second = RegionThread("east", log, store, reserve, "")
    with region_thread("east", log, store, reserve) as running:
        until(lambda: running.worker.held_back)
        assert "bytes free, 1,000,000,000,000,000,000 are its reserve" in running.monitor.health().reasons[0]
        until(lambda: running.monitor.health().lag_records == 10 * BUCKETS)
        second.start()
        until(lambda: second.worker.held_back and len(second.worker.assigned) == BUCKETS // 2)
    until(lambda: second.monitor.health().lag_records == 10 * BUCKETS)
    assert second.end().written == 0
    assert [store.state(bucket).offset for bucket in range(BUCKETS)] == [0] * BUCKETS
    with region_thread("east", log, store):
        until(lambda: is_at_end(log, store))


def test_a_store_that_fills_faster_than_it_is_looked_at_keeps_its_reserve(
    log: SqliteLog, store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vista.delivery.region_worker.LOOK_S", 600.0)
    monkeypatch.setattr("vista.delivery.worker.MAX_BATCH_BYTES", 1)
    for bucket in range(BUCKETS):
        log.append(bucket, [record(user) for user in users_of(bucket, 50)])
    size, state = len(record(0)), store.state
    room, reserve = 100 * size, 40 * size

    def free_bytes() -> int:
        with store._database.read() as connection:
            (used,) = connection.execute("SELECT SUM(LENGTH(data)) FROM summaries").fetchone()
        return int(room - (used or 0))

    monkeypatch.setattr(store, "state", lambda bucket: replace(state(bucket), free_bytes=free_bytes()))
    with region_thread("east", log, store, Limits(min_free_bytes=reserve)) as running:
        until(lambda: running.worker.held_back)
    assert reserve // 2 < free_bytes() < reserve


def test_a_store_whose_reads_are_slow_is_given_time_but_never_left_behind(
    log: SqliteLog, store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vista.delivery.region_worker.READS", 4)
    monkeypatch.setattr("vista.delivery.worker.MAX_BATCH_BYTES", 1)
    for bucket in range(BUCKETS):
        log.append(bucket, [record(user) for user in users_of(bucket, 6)])
    held: set[str] = set()
    with region_thread("east", log, store, Limits(max_read_p99_s=0.0)) as running:
        until(lambda: held.add(running.worker.held_back) or is_at_end(log, store))
    assert any("reads take" in reason and "0 ms are the limit" in reason for reason in held)


def calls_of_rounds(tmp_path: Path, buckets: int) -> tuple[int, int]:
    """Calls, of generators too, in a round with nothing to do, and in one with a record for every bucket."""
    log = SqliteLog(f"sqlite:///{tmp_path}/log-{buckets}.db", buckets)
    store = SqliteStore(f"sqlite:///{tmp_path}/store-{buckets}.db", buckets)
    one, counts = RegionThread("east", log, store, Limits(min_free_bytes=0), "").worker, [0, 0]
    one._assign(range(buckets))

    def count(kind: int) -> None:
        def called(frame: object, event: str, argument: object) -> None:
            counts[kind] += event == "call"

        sys.setprofile(called)
        try:
            one._round(threading.Event())
        finally:
            sys.setprofile(None)

    one._round(threading.Event())
    count(0)
    for bucket in range(buckets):
        log.append(bucket, [record(users_of(bucket, 1, buckets)[0])])
    count(1)
    assert all(store.state(bucket).offset == 1 for bucket in range(buckets))
    return counts[0], counts[1]


def test_a_round_grows_with_its_buckets_not_with_their_square(tmp_path: Path) -> None:
    few, many = calls_of_rounds(tmp_path, 32), calls_of_rounds(tmp_path, 128)
    for one, four in zip(few, many, strict=True):
        assert 3 * one < four < 5 * one, (few, many)


def test_what_fails_at_the_start_is_raised(tmp_path: Path, settings: Settings) -> None:
    (tmp_path / "broken.db").write_bytes(b"no database" * 1_000)
    broken = SqliteStore(f"sqlite:///{tmp_path}/broken.db", BUCKETS)
    with closing(open_log(settings.log_url, BUCKETS)) as log:
        running = RegionThread("east", log, broken, LIMITS, settings.catalog_url)
        with pytest.raises(BackendError, match="NOTADB"):
            running.worker.follow(threading.Event())


def test_health_and_metrics_over_http(log: SqliteLog, store: SqliteStore) -> None:
    fill(log)
    with (
        region_thread("east", log, store) as running,
        served(running.monitor.health, running.registry, 0) as port,
    ):
        until(lambda: running.monitor.health().ready and is_at_end(log, store))
        with urlopen(f"http://127.0.0.1:{port}/healthz") as answer:
            assert RegionHealth.model_validate_json(answer.read()).ready
        with urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            text = answer.read().decode()
        assert f'vista_records_total{{outcome="written",region="east"}} {10 * BUCKETS}.0' in text
        assert 'vista_ready{region="east"} 1.0' in text
        assert 'vista_apply_seconds_bucket{le="0.001",region="east"}' in text
        with pytest.raises(HTTPError, match="404"):
            urlopen(f"http://127.0.0.1:{port}/")
        other = RegionThread("west", log, store, LIMITS, "")
        with (
            pytest.raises(InputError, match=f"--port {port}: .*choose another one"),
            served(other.monitor.health, other.registry, port),
        ):
            pass


def test_coverage_and_age_are_those_of_the_release_that_has_reached_the_region(
    tmp_path: Path, settings: Settings, log: SqliteLog, store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vista.delivery.region_worker.LOOK_S", 0.2)
    epoch = publish_epoch(tmp_path, users=40, as_of_us=1_000)
    with region_thread("east", log, store, catalog_url=settings.catalog_url) as running:
        until(lambda: running.monitor.health().ready)
        assert running.monitor.health().coverage is None, "nothing is released"
        backfill(epoch, log, tmp_path / "progress.json")
        promoted_us = int((time.time() - 3 * DAY_S) * 1e6)
        release = Release(id="r-1", space=SPACE, epoch=1, foundation="f", downstream="d")
        with closing(open_catalog(settings.catalog_url)) as catalog:
            first = release.model_copy(update={"id": "r-0"})
            promoted = audit_line("promote", "test", "", after=first.id)
            catalog.swap_release(None, first, promoted.model_copy(update={"time_us": promoted_us}))
            catalog.swap_release(first.id, release, audit_line("rollback", "test", "", after=release.id))
        for bucket in range(BUCKETS):
            log.append(bucket, [release_record(release)])
        until(lambda: running.monitor.health().coverage == 1.0)
        health = running.monitor.health()
        assert (health.release, health.ready) == ("r-1", True)
        assert health.epoch_age_s == pytest.approx(3 * DAY_S, abs=60), "since the promotion"
        assert health.oldest_summary_age_s == pytest.approx(time.time() - 1e-3, abs=60)  # clock of the test
        with store._database.write() as connection:
            gone = connection.execute("DELETE FROM summaries WHERE bucket = 1").rowcount
        assert gone > 0
        until(lambda: running.monitor.health().coverage == pytest.approx((40 - gone) / 40))


def test_it_is_not_ready_before_it_has_passed_a_release_if_there_is_one(
    settings: Settings, log: SqliteLog, store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vista.delivery.region_worker.LOOK_S", 0.2)
    release = Release(id="r-1", space=SPACE, epoch=1, foundation="f", downstream="d")
    with closing(open_catalog(settings.catalog_url)) as catalog:
        catalog.swap_release(None, release, audit_line("promote", "test", "", after=release.id))
    with region_thread("east", log, store, catalog_url=settings.catalog_url) as running:

        def reasons() -> tuple[str, ...]:
            health = running.monitor.health()
            assert not health.ready
            return health.reasons

        until(
            lambda: (
                reasons() == (f"{BUCKETS} of {BUCKETS} buckets have not passed a release yet: [0, 1, 2, 3]",)
            )
        )
        for bucket in range(BUCKETS):
            log.append(bucket, [barrier(SPACE, 1)])
        for bucket in range(1, BUCKETS):
            log.append(bucket, [release_record(release)])
        until(lambda: reasons() == (f"1 of {BUCKETS} buckets have not passed a release yet: [0]",))
        log.append(0, [release_record(release)])
        until(lambda: running.monitor.health().ready)


def test_it_is_not_ready_while_nobody_says_whether_there_is_a_release(
    tmp_path: Path, log: SqliteLog, store: SqliteStore
) -> None:
    (tmp_path / "damaged.db").write_bytes(b"no database" * 1_000)
    url = f"sqlite:///{tmp_path}/damaged.db"
    with region_thread("east", log, store, catalog_url=url) as running:
        unknown = ("whether there is a release is not known yet",)
        until(lambda: running.monitor.health().reasons == unknown)


def test_a_table_that_hangs_does_not_hide_the_lag(
    tmp_path: Path, settings: Settings, log: SqliteLog, store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pipe stands in for a file of a network that does not answer: whoever reads it waits."""
    monkeypatch.setattr("vista.delivery.region_worker.LOOK_S", 0.2)
    epoch = publish_epoch(tmp_path, users=40, as_of_us=1_000)
    backfill(epoch, log, tmp_path / "progress.json")
    manifest = Path(epoch.location) / "_bucket-00000.json"
    manifest.unlink()
    os.mkfifo(manifest)
    release = Release(id="r-1", space=SPACE, epoch=1, foundation="f", downstream="d")
    for bucket in range(BUCKETS):
        log.append(bucket, [release_record(release)])
    with region_thread("east", log, store, catalog_url=settings.catalog_url) as running:
        written = opened_by_a_reader(manifest)
        try:
            until(lambda: running.monitor.health().release == "r-1")
            hangs_s = time.monotonic()
            until(lambda: time.monotonic() > hangs_s + 3.0)
            health = running.monitor.health()
            assert health.ready
            assert health.coverage is None
            assert health.lag_s is not None
            assert health.lag_s < 2.5
        finally:
            os.close(written)


def opened_by_a_reader(pipe: Path) -> int:
    """The pipe's other end, once there is somebody who reads it."""
    found: list[int] = []

    def is_read() -> bool:
        with suppress(OSError):  # ENXIO: nobody
            found.append(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
        return bool(found)

    until(is_read)
    return found[0]


def test_lag_in_seconds_is_since_the_region_had_everything() -> None:
    lag = Lag()
    assert (lag.records({0: 5}), lag.seconds({0: 5}, 9.0)) == (None, None), "no sample yet"
    for second in range(10):
        lag.sample(Ends(float(second), {0: 10 * second, 1: 7}), {0: 35, 1: 7})
    assert (lag.records({0: 90, 1: 7}), lag.seconds({0: 90, 1: 7}, 9.25)) == (0, 0.25)
    assert (lag.records({0: 35, 1: 7}), lag.seconds({0: 35, 1: 7}, 9.0)) == (55, 6.0)
    assert lag.seconds({0: 90, 1: 6}, 9.0) == 6.0, "behind since before the first sample that is left"
    assert (lag.records({0: 90, 2: 0}), lag.seconds({0: 90, 2: 0}, 9.0)) == (None, None), "assigned since"
    lag.sample(Ends(10.0, {0: 100, 1: 7}), {0: 100, 1: 7})
    assert lag.seconds({0: 99, 1: 7}, 10.5) == 0.5, "older samples are forgotten"


def test_long_lags_are_right_to_a_part_in_256_in_bounded_room_and_short_ones_exact_again() -> None:
    lag, last = Lag(), 20 * MAX_SAMPLES
    for second in range(last + 1):
        lag.sample(Ends(float(second), {0: second}), {0: 0})
    assert len(lag._samples) <= MAX_SAMPLES
    assert lag.seconds({0: last}, float(last)) == 0.0
    for behind in (300, 3_000, last):
        found = lag.seconds({0: last - behind}, float(last))
        assert found is not None
        assert behind <= found <= behind + last / 256
    for second in range(last, last + 100):
        lag.sample(Ends(float(second), {0: second}), {0: second - 7})
    assert lag.seconds({0: last + 92}, last + 99.0) == 7.0


def test_a_bucket_that_stands_still_counts_in_the_lag() -> None:
    lag = Lag()
    for second in range(5):
        lag.sample(Ends(float(second), {0: second, 1: second}), {0: second, 1: 0})
    assert (lag.records({0: 4, 1: 0}), lag.seconds({0: 4, 1: 0}, 4.0)) == (4, 4.0)
