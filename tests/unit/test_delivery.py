"""Workers, readiness, backfill and the stage: what reaches the regions, and what is said when it does not."""

import json
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

import pytest
from delivery_samples import (
    BUCKETS,
    SPACES,
    content_digest,
    deliver_here,
    finish_stages,
    publish_epoch,
    record,
    settings_of,
    users_of,
)

from vista.config import RefreshConfig, Settings
from vista.data.schema import bucket_of
from vista.delivery.backfill import backfill
from vista.delivery.catalog import open_catalog
from vista.delivery.control import barrier, retirement
from vista.delivery.deliver import check_capacity, check_ready, deliver_epoch
from vista.delivery.interfaces import AuditLine, Release
from vista.delivery.log import open_log
from vista.delivery.readiness import RegionState, canaries_differ
from vista.delivery.regions import open_backends, open_regions
from vista.delivery.release import current_release, promote, retire, withdraw
from vista.delivery.repair import verify_all
from vista.delivery.sqlite_log import SqliteLog
from vista.delivery.sqlite_store import SqliteStore
from vista.delivery.store import open_store
from vista.delivery.worker import Worker, drain
from vista.errors import EpochError, InputError, RegionNotReadyError, StageError
from vista.summary.table import shards_of

SPACE = SPACES[0]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return settings_of(tmp_path)


def test_the_stage_brings_the_newest_epoch_to_every_region_and_again_does_nothing(
    tmp_path: Path, settings: Settings
) -> None:
    epoch = publish_epoch(tmp_path, users=60, as_of_us=4_000_000)
    finish_stages(settings, "run-1", epoch)
    config = RefreshConfig(recipe="smoke", run_id="run-1")
    report = deliver_epoch(config, settings)
    assert (report.delivered, report.appended_records, report.canaries_equal) == (True, 60, True)
    for region in ("east", "west"):
        figures = report.regions[region]
        assert (figures.coverage, figures.lag_records, figures.oldest_summary_age_s) == (1.0, 0, 6.0)
    with open_regions(settings, BUCKETS) as stores:
        digests = {content_digest(store, range(60), [(SPACE, 1)]) for store in stores.values()}
        assert len(digests) == 1
        assert None not in stores["east"].get_many(SPACE, 1, range(60))
    again = deliver_epoch(config, settings)
    assert again == report.model_copy(update={"appended_records": 0})


def test_an_epoch_older_than_the_release_of_its_space_stays_in_the_table(
    tmp_path: Path, settings: Settings
) -> None:
    old, new = (publish_epoch(tmp_path, as_of_us=as_of_us, variant=as_of_us) for as_of_us in (1_000, 2_000))
    with closing(open_catalog(settings.catalog_url)) as catalog:
        release = Release(id="r-1", space=SPACE, epoch=new.epoch, foundation="f", downstream="d")
        line = AuditLine(time_us=0, actor="a", action="promote", reason="r", before="", after="r-1")
        catalog.swap_release(None, release, line)
    finish_stages(settings, "run-1", old)
    report = deliver_epoch(RefreshConfig(recipe="smoke", run_id="run-1"), settings)
    assert not report.delivered
    assert "older epochs stay in the table" in report.reason
    assert not Path(settings.log_url.removeprefix("sqlite:///")).exists()


def test_ages_are_not_told_by_events_that_were_damaged(tmp_path: Path, settings: Settings) -> None:
    epoch = publish_epoch(tmp_path)
    run = finish_stages(settings, "run-1", epoch)
    (events,) = run.data.glob("events/*.parquet")
    content = bytearray(events.read_bytes())
    place = content.index((10_000_000).to_bytes(8, "little"))
    content[place] ^= 1  # still a Parquet file, of another time
    events.write_bytes(content)
    with pytest.raises(StageError, match=r"bucket-00000\.parquet cannot be read \(its checksum is"):
        deliver_epoch(RefreshConfig(recipe="smoke", run_id="run-1"), settings)


def test_open_withdrawn_and_unknown_epochs_are_not_delivered(tmp_path: Path, settings: Settings) -> None:
    epoch = publish_epoch(tmp_path)
    finish_stages(settings, "run-1", epoch.model_copy(update={"epoch": 9}))
    finish_stages(settings, "run-2", epoch)
    with pytest.raises(EpochError, match=r"epoch 9 of sample-c is not published"):
        deliver_epoch(RefreshConfig(recipe="smoke", run_id="run-1"), settings)
    with closing(open_catalog(settings.catalog_url)) as catalog:
        line = AuditLine(time_us=0, actor="a", action="withdraw", reason="bad", before="", after="")
        catalog.withdraw(SPACE, 1, line)
    with pytest.raises(EpochError, match="is withdrawn"):
        deliver_epoch(RefreshConfig(recipe="smoke", run_id="run-2"), settings)
    with pytest.raises(InputError, match="no report of stage 'export_summaries'"):
        deliver_epoch(RefreshConfig(recipe="smoke", run_id="run-3"), settings)


def test_a_retired_epoch_is_not_delivered_again(tmp_path: Path, settings: Settings) -> None:
    epoch = publish_epoch(tmp_path, as_of_us=4_000_000)
    finish_stages(settings, "run-1", epoch)
    config = RefreshConfig(recipe="smoke", run_id="run-1")
    deliver_epoch(config, settings)
    with open_backends(settings) as backends:
        retire(backends, space=SPACE, epoch=1, actor="me", reason="old")
    with pytest.raises(EpochError, match=r"epoch 1 of sample-c is retired: .* whose export makes one"):
        deliver_epoch(config, settings)


def test_a_region_without_room_is_refused_with_the_figures(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    epoch = publish_epoch(tmp_path)
    shards = shards_of(Path(epoch.location), BUCKETS)
    too_large = tuple(shard.model_copy(update={"value_bytes": 10**17}) for shard in shards)
    with open_regions(settings, BUCKETS) as stores:
        check_capacity(epoch, shards, stores)
        with pytest.raises(
            RegionNotReadyError,
            match=r"east has [\d,]+ bytes free, epoch 1 needs 880,.* reserve of 67,108,864: retire",
        ):
            check_capacity(epoch, too_large, stores)
        monkeypatch.setattr("vista.delivery.deliver.MIN_FREE_BYTES", 10**17)
        with pytest.raises(RegionNotReadyError, match=r"reserve of 100,000"):
            check_capacity(epoch, shards, stores)
    monkeypatch.undo()
    deliver_here(tmp_path, epoch, settings)
    with open_regions(settings, BUCKETS) as stores:
        check_capacity(epoch, too_large, stores)  # it is there already


def test_every_gap_has_a_name(tmp_path: Path, settings: Settings) -> None:
    epoch = publish_epoch(tmp_path, users=40)
    shards = shards_of(Path(epoch.location), BUCKETS)
    rows = [shard.rows for shard in shards]
    with open_regions(settings, BUCKETS) as stores, closing(open_log(settings.log_url, BUCKETS)) as log:
        east = stores["east"]
        assert RegionState.of("east", east, BUCKETS).coverage(epoch, shards) == 0.0
        backfill(epoch, log, tmp_path / "progress.json")
        for bucket, size in enumerate(rows):
            wanted = [data for _, data in log.read(bucket, 0, 2**30)]
            kept = wanted if bucket > 1 else wanted[1:] if bucket == 1 else wanted[:-1]
            east.apply(bucket, 0, size + 1, kept)
        state = RegionState.of("east", east, BUCKETS)
        assert state.gaps(epoch, shards) == [
            "region east, bucket 0 has not passed the barrier of epoch 1",
            f"region east, bucket 1 lacks 1 of the {rows[1]} users of epoch 1's table",
        ]
        assert state.coverage(epoch, shards) == pytest.approx((40 - 2) / 40)
        assert not state.complete(SPACE, 1)
        with pytest.raises(RegionNotReadyError, match=r"bucket 0 has not passed .* \(2 of 4 buckets"):
            check_ready("east", east, epoch, shards)
        assert RegionState.of("west", stores["west"], BUCKETS).gaps(epoch, shards)[0] == (
            "region west, bucket 0 holds nothing of epoch 1"
        )


def test_users_that_came_since_with_streamed_updates_are_no_gap(tmp_path: Path, settings: Settings) -> None:
    epoch = publish_epoch(tmp_path, users=40, as_of_us=4_000_000)
    finish_stages(settings, "run-1", epoch)
    config = RefreshConfig(recipe="smoke", run_id="run-1")
    deliver_epoch(config, settings)
    stream(settings, range(40, 60))
    report = deliver_epoch(config, settings)
    assert {region.coverage for region in report.regions.values()} == {1.0}
    with open_backends(settings) as backends:
        (east, _) = verify_all(backends, [epoch], all_bytes=False)
    assert (east.line, east.findings) == ("region east: coverage 100.00% of epoch 1; lag 0 records", ())


def test_users_that_came_since_do_not_hide_one_that_is_missing(tmp_path: Path, settings: Settings) -> None:
    epoch = publish_epoch(tmp_path, users=40)
    shards = shards_of(Path(epoch.location), BUCKETS)
    deliver_here(tmp_path, epoch, settings)
    stream(settings, range(40, 60))
    with open_regions(settings, BUCKETS) as stores, closing(open_log(settings.log_url)) as log:
        drain("east", log, stores["east"])
        assert RegionState.of("east", stores["east"], BUCKETS).coverage(epoch, shards) == 1.0
    with sqlite3.connect(settings.region_urls["east"].removeprefix("sqlite:///")) as east:
        assert east.execute("DELETE FROM summaries WHERE user_id = 7").rowcount == 1
    with open_regions(settings, BUCKETS) as stores:
        state = RegionState.of("east", stores["east"], BUCKETS)
        bucket = bucket_of(7, BUCKETS)
        lacking = f"bucket {bucket} lacks 1 of the {shards[bucket].rows} users of epoch 1's table"
        assert state.gaps(epoch, shards) == [f"region east, {lacking}"]
        assert state.coverage(epoch, shards) == pytest.approx(39 / 40)
        with pytest.raises(RegionNotReadyError, match=lacking):
            check_ready("east", stores["east"], epoch, shards)


def stream(settings: Settings, users: Iterable[int]) -> None:
    """Append an update of each user under epoch 1 to the log."""
    with closing(open_log(settings.log_url)) as log:
        for user in users:
            log.append(bucket_of(user, BUCKETS), [record(user, 0)])


def test_a_canary_that_was_updated_since_is_no_difference(tmp_path: Path, settings: Settings) -> None:
    epoch = publish_epoch(tmp_path, users=40)
    deliver_here(tmp_path, epoch, settings)
    first = min(user for user in users_of(2, 3) if user >= 0)  # the first row of a shard is its canary
    with open_regions(settings, BUCKETS) as stores:
        west = stores["west"]
        offset = west.state(2).offset
        assert west.apply(2, offset, offset + 1, [record(first, first + 1)]).written == 1
        assert canaries_differ(epoch, west) == []
        check_ready("west", west, epoch, shards_of(Path(epoch.location), BUCKETS))


def test_damage_behind_an_equal_key_set_is_found_by_the_canaries(tmp_path: Path, settings: Settings) -> None:
    epoch = publish_epoch(tmp_path, users=40)
    shards = shards_of(Path(epoch.location), BUCKETS)
    with open_regions(settings, BUCKETS) as stores:
        east = stores["east"]
        for bucket in range(BUCKETS):
            mine = [user for user in users_of(bucket, 40) if 0 <= user < 40]
            older = [record(user, -1) for user in mine]
            east.apply(bucket, 0, 9, [*older, barrier(SPACE, 1)])
        assert RegionState.of("east", east, BUCKETS).gaps(epoch, shards) == []
        with pytest.raises(RegionNotReadyError, match="another summary of user"):
            check_ready("east", east, epoch, shards)


@pytest.mark.parametrize("damaged", ['{"0": 12', "[3]", '{"0": "x"}', '{"0": -1}', "\0\0"])
def test_a_damaged_progress_file_is_an_error_that_says_what_to_delete(
    tmp_path: Path, settings: Settings, damaged: str
) -> None:
    epoch, progress = publish_epoch(tmp_path), tmp_path / "progress.json"
    progress.write_text(damaged)
    with closing(open_log(settings.log_url, BUCKETS)) as log:
        with pytest.raises(StageError, match=r"progress\.json cannot be read .*: delete it"):
            backfill(epoch, log, progress)
        progress.unlink()
        assert backfill(epoch, log, progress) == 40


@pytest.mark.parametrize("serving_is_withdrawn", [False, True])
def test_emptied_regions_that_the_log_does_not_reach_come_back_from_the_table(
    tmp_path: Path, settings: Settings, serving_is_withdrawn: bool
) -> None:
    """A week after the last run: the log has let go of everything, and the stores saved nothing."""
    epochs = [publish_epoch(tmp_path, as_of_us=1_000 * n, variant=n) for n in (1, 2, 3)]
    for epoch in epochs[:2]:
        deliver_here(tmp_path, epoch, settings)
        with open_backends(settings) as backends:
            before = current_release(backends.catalog)
            promote(
                backends, space=SPACE, epoch=epoch.epoch, foundation="f", downstream=f"d{epoch.epoch}",
                actor="me", reason="", instead_of=None if before is None else before.id,
            )  # fmt: skip
    if serving_is_withdrawn:
        with closing(open_catalog(settings.catalog_url)) as catalog:
            withdraw(catalog, space=SPACE, epoch=2, actor="me", reason="bad")
        del epochs[1]
    for file in (tmp_path / "stores").iterdir():
        file.unlink()
    with closing(sqlite3.connect(tmp_path / "log.db")) as connection, connection:
        connection.execute("DELETE FROM records")
        connection.execute("UPDATE partitions SET first = next")
    finish_stages(settings, "run-3", epochs[-1])
    report = deliver_epoch(RefreshConfig(recipe="smoke", run_id="run-3"), settings)
    assert (report.delivered, report.appended_records, set(report.regions)) == (True, 40, {"east", "west"})
    with open_backends(settings) as backends:
        serving = current_release(backends.catalog)
        assert serving is not None
        for verdict in verify_all(backends, epochs, all_bytes=True):
            assert verdict.findings == ()
            assert verdict.state is not None
            assert verdict.state.serves(serving.id)


def test_a_region_without_a_release_comes_back_too(tmp_path: Path, settings: Settings) -> None:
    """What was delivered before was never promoted, and lies in the table only."""
    deliver_here(tmp_path, publish_epoch(tmp_path), settings)
    (tmp_path / "stores" / "west.db").unlink()
    for file in (tmp_path / "stores").glob("west.db-*"):
        file.unlink()
    with closing(sqlite3.connect(tmp_path / "log.db")) as connection, connection:
        connection.execute("DELETE FROM records")
        connection.execute("UPDATE partitions SET first = next")
    newest = publish_epoch(tmp_path, as_of_us=2_000, variant=2)
    finish_stages(settings, "run-2", newest)
    assert deliver_epoch(RefreshConfig(recipe="smoke", run_id="run-2"), settings).delivered
    with open_backends(settings) as backends:
        assert [one.findings for one in verify_all(backends, [newest], all_bytes=True)] == [(), ()]


def test_a_backfill_goes_on_where_it_was_and_starts_again_on_a_new_log(
    tmp_path: Path, settings: Settings
) -> None:
    epoch = publish_epoch(tmp_path, users=40)
    progress = tmp_path / "progress.json"
    with closing(open_log(settings.log_url, BUCKETS)) as log:
        assert backfill(epoch, log, progress) == 40
        ends = [log.bounds(bucket) for bucket in range(BUCKETS)]
        assert backfill(epoch, log, progress) == 0
        kept = json.loads(progress.read_text())
        progress.write_text(json.dumps({key: kept[key] for key in ("0", "1")}))
        again = backfill(epoch, log, progress)
        assert again == sum(log.bounds(b)[1] - ends[b][1] - 1 for b in (2, 3)) > 0
        assert [log.bounds(bucket) for bucket in (0, 1)] == ends[:2]
    with closing(open_log(f"sqlite:///{tmp_path}/other.db", BUCKETS)) as log:
        assert backfill(epoch, log, progress) == 40


def test_a_log_that_was_replaced_or_trimmed_is_told_from_one_that_is_merely_behind(
    tmp_path: Path, settings: Settings
) -> None:
    log = SqliteLog(settings.log_url, BUCKETS)
    store = open_store(settings.region_urls["east"], BUCKETS)
    log.append(0, [record(user) for user in users_of(0, 5)])
    drain("east", log, store)
    empty = SqliteLog(f"sqlite:///{tmp_path}/new.db", BUCKETS)
    with pytest.raises(RegionNotReadyError, match=r"is at offset 5 of log .*: the log was replaced"):
        drain("east", empty, store)
    with log._database.write() as connection:  # what retention does to a log of another back end
        connection.execute("UPDATE partitions SET first = 3 WHERE partition = 0")
    drain("east", log, store)
    wiped = open_store(f"sqlite:///{tmp_path}/wiped.db", BUCKETS)
    with pytest.raises(RegionNotReadyError, match="needs offset 0, the log starts at 3: it needs a backfill"):
        drain("east", log, wiped)


def test_a_new_log_that_outgrows_the_old_ones_offset_is_not_applied_over_a_hole(
    tmp_path: Path, settings: Settings
) -> None:
    users = users_of(0, 5)
    old, new = (SqliteLog(f"sqlite:///{tmp_path}/{name}.db", BUCKETS) for name in ("old", "new"))
    old.append(0, [record(user) for user in users])
    store = open_store(settings.region_urls["east"], BUCKETS)
    late = Worker("east", old, store)
    late.assign([0])
    drain("east", old, store)
    new.append(0, [record(user, seq) for seq in (1, 2) for user in users])
    late.source = new  # the file was replaced under a worker that had begun
    assert late.step(), "the store refuses it"
    for step in (late.step, lambda: drain("east", new, store)):
        with pytest.raises(
            RegionNotReadyError, match=r"offset 5 of log .*: the log was replaced; run .* repair"
        ):
            step()
    assert store.get_many(SPACE, 1, users) == [record(user) for user in users]
    assert store.state(0).log == old.identity() != new.identity()


def test_a_copy_of_the_log_that_lacks_its_end_is_told(tmp_path: Path, settings: Settings) -> None:
    log, store = SqliteLog(settings.log_url, BUCKETS), open_store(settings.region_urls["east"], BUCKETS)
    log.append(0, [record(user) for user in users_of(0, 5)])
    drain("east", log, store)
    with log._database.write() as connection:
        connection.execute("UPDATE partitions SET next = 3 WHERE partition = 0")
    with pytest.raises(RegionNotReadyError, match="is at offset 5, the log ends at 3: the log was replaced"):
        drain("east", log, store)


def test_a_log_and_a_store_of_before_there_were_identities_go_on(settings: Settings) -> None:
    log = SqliteLog(settings.log_url, BUCKETS)
    store = SqliteStore(settings.region_urls["east"], BUCKETS)
    log.append(0, [record(user) for user in users_of(0, 5)])
    drain("east", log, store)
    for database, name in ((log._database, "identity"), (store._database, "log:0")):
        with database.write() as connection:
            assert connection.execute("DELETE FROM meta WHERE name = ?", (name,)).rowcount == 1
    log.append(0, [record(user, 1) for user in users_of(0, 5)])
    assert drain("east", log, store).written == 5
    assert store.state(0).log == log.identity() != ""


def test_a_worker_moves_over_what_compaction_left_out(settings: Settings) -> None:
    (user,) = users_of(0, 1)
    log = SqliteLog(settings.log_url, BUCKETS)
    log.append(0, [record(user, epoch=epoch) for epoch in (1, 2, 3)])
    log.append(0, [retirement(SPACE, 2)])
    with log._database.write() as connection:
        connection.execute("DELETE FROM records WHERE offset = 3")  # a gap at the very end
    store = open_store(settings.region_urls["east"], BUCKETS)
    assert drain("east", log, store).written == 1
    assert store.state(0).offset == 4
    assert store.get_many(SPACE, 3, [user]) == [record(user, epoch=3)]


def test_a_retirement_in_the_log_deletes_in_the_store(settings: Settings) -> None:
    (user,) = users_of(0, 1)
    with closing(open_log(settings.log_url, BUCKETS)) as log, open_regions(settings, BUCKETS) as stores:
        log.append(0, [record(user, epoch=1), record(user, epoch=2)])
        drain("east", log, stores["east"])
        log.append(0, [retirement(SPACE, 1)])
        drain("east", log, stores["east"])
        drain("west", log, stores["west"])
        for store in stores.values():
            assert store.retire(SPACE, 1) == 0, "the worker has deleted it"
            assert store.get_many(SPACE, 1, [user]) == [None]
            assert store.get_many(SPACE, 2, [user]) == [record(user, epoch=2)]


def test_what_a_worker_was_killed_before_it_deleted_is_deleted_by_the_next_one(settings: Settings) -> None:
    users = [user for bucket in range(BUCKETS) for user in users_of(bucket, 3)]

    def held(region: str) -> int:
        with closing(sqlite3.connect(settings.home / "stores" / f"{region}.db")) as connection:
            (count,) = connection.execute("SELECT COUNT(*) FROM summaries").fetchone()
        return int(count)

    with closing(open_log(settings.log_url, BUCKETS)) as log, open_regions(settings, BUCKETS) as stores:
        zombie = Worker("west", log, stores["west"])
        zombie.assign(range(BUCKETS))
        for user in users:
            log.append(bucket_of(user, BUCKETS), [record(user, epoch=1), record(user, epoch=2)])
        for name, store in stores.items():
            drain(name, log, store)
            # as a worker that is killed behind the batch with the retirement
            for bucket in range(BUCKETS):
                offset = store.state(bucket).offset
                assert store.apply(bucket, offset, offset, [retirement(SPACE, 1)]).accepted
            assert held(name) == 2 * len(users)
        drain("east", log, stores["east"])
        assert zombie.step()
        assert zombie.report.refused == BUCKETS
        assert held("east") == held("west") == len(users)


def test_a_refused_worker_goes_on_from_the_stored_offset(settings: Settings) -> None:
    with closing(open_log(settings.log_url, BUCKETS)) as log, open_regions(settings, BUCKETS) as stores:
        zombie = Worker("east", log, stores["east"])
        zombie.assign([0])
        log.append(0, [record(user) for user in users_of(0, 5)])
        drain("east", log, stores["east"])
        assert zombie.step()
        assert (zombie.report.refused, zombie.report.written, zombie.offset(0)) == (1, 0, 5)
        assert not zombie.step()
        zombie.revoke([0])
        log.append(0, [record(users_of(0, 6)[5])])
        assert not zombie.step()
