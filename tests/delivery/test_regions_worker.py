"""A region's worker as a process: ended well, ended badly, one of two."""

import random
import signal
from pathlib import Path

import pytest
from delivery_samples import BUCKETS, SPACES, content_digest, deliver_here, publish_epoch
from deployments import Deployment, RegionProcess, Stream, region_process, until
from must_hold import Found

from vista.delivery.regions import Backends, open_backends
from vista.delivery.worker import WorkerReport, drain

SPACE = SPACES[0]
USERS = 200


def prepared(deployment: Deployment, home: Path) -> None:
    """A log with an epoch of all users that no region has read."""
    from contextlib import closing

    from vista.delivery.backfill import backfill
    from vista.delivery.log import open_log

    epoch = publish_epoch(home, users=USERS, catalog_url=deployment.settings.catalog_url)
    with closing(open_log(deployment.settings.log_url, BUCKETS)) as log:
        backfill(epoch, log, home / "progress.json")


def is_at_end(backends: Backends, region: str) -> bool:
    store, log = backends.stores[region], backends.log
    return all(store.state(bucket).offset == log.bounds(bucket)[1] for bucket in range(BUCKETS))


def assert_equal_to_a_drained_region(backends: Backends) -> None:
    """East was filled by the workers under test, south is filled here."""
    drain("south", backends.log, backends.stores["south"])
    epochs = [(SPACE, 1)]
    digests = {content_digest(backends.stores[name], range(USERS), epochs) for name in ("east", "south")}
    assert len(digests) == 1


def test_a_worker_that_is_told_to_stop_finishes_its_batch_and_reports(
    deployment: Deployment, tmp_path: Path
) -> None:
    """SIGTERM in the middle of the log: exit code 0, the report on standard output, nothing half done."""
    prepared(deployment, tmp_path)
    with open_backends(deployment.settings) as backends:
        with (
            Stream(backends.log, USERS, (1,), pause_s=0.005).running(),
            region_process(deployment, "east", tmp_path) as worker,
        ):
            until(lambda: worker.metric("vista_records_total", outcome="written") > USERS, "it follows")
            store = backends.stores["east"]
            until(lambda: all(store.state(bucket).offset for bucket in range(BUCKETS)), "in every bucket")
            report = WorkerReport.model_validate_json(worker.stop())
        assert report.written > USERS
        assert report.refused == 0
        for bucket in range(BUCKETS):
            assert 0 < backends.stores["east"].state(bucket).offset <= backends.log.bounds(bucket)[1]
        drain("east", backends.log, backends.stores["east"])
        assert_equal_to_a_drained_region(backends)


@pytest.mark.must_hold(7)
def test_a_worker_killed_at_any_point_loses_nothing(
    deployment: Deployment,
    tmp_path: Path,
    found: Found,
    full_size: bool,
) -> None:
    """kill -9 of a region's worker while updates stream; the next one goes on where the store is."""
    prepared(deployment, tmp_path)
    choice = random.Random(5)
    with open_backends(deployment.settings) as backends:
        with Stream(backends.log, USERS, (1,), pause_s=0.005).running() as stream:
            for _ in range(20 if full_size else 3):
                with region_process(deployment, "east", tmp_path) as worker:
                    some = choice.randint(1, 60)
                    until(lambda: worker.metric("vista_records_total", outcome="written") >= some, "it works")  # noqa: B023
                    worker.process.kill()
                    worker.process.wait()
                    assert worker.process.returncode == -signal.SIGKILL
                found.rounds += 1
        with region_process(deployment, "east", tmp_path) as worker:
            until(lambda: is_at_end(backends, "east"), "the region is at the log's end")
            worker.stop()
        held = {user: backends.stores["east"].get_many(SPACE, 1, [user])[0] for _, user in stream.newest}
        found.lost = sum(held[user] != data for (_, user), data in stream.newest.items())
        assert found.lost == 0
        assert_equal_to_a_drained_region(backends)


def test_a_worker_waits_for_a_first_delivery(deployment: Deployment, tmp_path: Path) -> None:
    """Of a new deployment: no crash, one line in the log, a clear state; then it goes on by itself."""
    with region_process(deployment, "west", tmp_path) as idle:
        assert idle.health()["waiting"]
        assert WorkerReport.model_validate_json(idle.stop()) == WorkerReport()
    with region_process(deployment, "east", tmp_path) as worker:
        health = worker.health()
        assert (health["ready"], health["waiting"], health["buckets"]) == (False, True, 0)
        assert "it waits for a first delivery: " in health["reasons"][0]
        assert deployment.settings.log_url in health["reasons"][0]
        prepared(deployment, tmp_path)
        with open_backends(deployment.settings) as backends:
            until(lambda: is_at_end(backends, "east"), "it has all of the first delivery")
            assert_equal_to_a_drained_region(backends)
        assert not worker.health()["waiting"]
        assert worker.process.poll() is None
        worker.stop()
    (log,) = tmp_path.glob("east-*.log")
    assert log.read_text().count("waits for a first delivery") == 1


def test_two_workers_share_a_region_and_one_may_vanish(deployment: Deployment, tmp_path: Path) -> None:
    """Each has some buckets; when one is killed the other takes all."""
    prepared(deployment, tmp_path)
    with (
        open_backends(deployment.settings) as backends,
        region_process(deployment, "east", tmp_path) as first,
        region_process(deployment, "east", tmp_path) as second,
        Stream(backends.log, USERS, (1,), pause_s=0.02).running(),
    ):
        until(lambda: buckets(first) + buckets(second) == BUCKETS and buckets(first) > 0 < buckets(second),
              "they share the buckets")  # fmt: skip
        second.process.kill()
        until(lambda: buckets(first) == BUCKETS, "the other takes all of them")
        wanted = [backends.log.bounds(bucket)[1] for bucket in range(BUCKETS)]
        store = backends.stores["east"]
        until(lambda: all(store.state(b).offset >= wanted[b] for b in range(BUCKETS)), "and works on all")
        assert WorkerReport.model_validate_json(first.stop()).written > 0


def buckets(worker: RegionProcess) -> int:
    found: int = worker.health()["buckets"]
    return found


def test_a_region_is_ready_when_it_holds_what_is_released(deployment: Deployment, tmp_path: Path) -> None:
    """/healthz and /metrics of a whole region, and of one without the epoch of its release."""
    from vista.delivery.control import release_record
    from vista.delivery.interfaces import Release
    from vista.delivery.release import promote

    settings = deployment.settings
    epoch = publish_epoch(tmp_path, users=USERS, catalog_url=settings.catalog_url)
    deliver_here(tmp_path, epoch, settings)
    with open_backends(settings) as backends, region_process(deployment, "east", tmp_path) as worker:
        release = promote(
            backends, space=SPACE, epoch=1, foundation="f", downstream="d", actor="test", reason="first",
            instead_of=None,
        ).release  # fmt: skip
        until(lambda: worker.health()["release"] == release.id, "the release is known")
        until(lambda: worker.health()["coverage"] == 1.0, "the coverage is known")
        until(lambda: worker.health()["ready"], "every bucket has passed it")
        health = worker.health()
        assert (health["ready"], health["buckets"], health["lag_records"]) == (True, BUCKETS, 0)
        assert health["oldest_summary_age_s"] > 0
        assert worker.metric("vista_coverage", region="east") == 1.0
        assert worker.metric("vista_ready") == 1.0
        missing = Release(id="r-x", space=SPACE, epoch=9, foundation="f", downstream="d")
        for bucket in range(BUCKETS):
            backends.log.append(bucket, [release_record(missing), b"garbage"])
        until(lambda: not worker.health()["ready"], "an epoch that nobody delivered is not ready")
        until(lambda: worker.metric("vista_records_total", outcome="dead_letters") == BUCKETS, "letters")
        assert "lack the barrier" in str(worker.health()["reasons"])
        assert worker.metric("vista_apply_seconds_count") > 0
