"""Regions compared with the table, and mended: by replay where the log reaches, else from the table."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from delivery_samples import (
    BUCKETS,
    SPACES,
    content_digest,
    deliver_here,
    publish_epoch,
    record,
    settings_of,
    users_of,
)

from vista.config import Settings
from vista.delivery.interfaces import Epoch, Store
from vista.delivery.log import open_log
from vista.delivery.readiness import manifests
from vista.delivery.regions import Backends, open_backends
from vista.delivery.release import promote
from vista.delivery.repair import MENDED_BY, plan, repair, verify_all
from vista.delivery.sqlite_log import SqliteLog
from vista.delivery.sqlite_store import SqliteStore
from vista.delivery.verify import Finding
from vista.delivery.worker import drain
from vista.errors import RegionNotReadyError

SPACE = SPACES[0]
USERS = 60


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return settings_of(tmp_path)


@pytest.fixture
def epochs(tmp_path: Path, settings: Settings) -> list[Epoch]:
    """Two delivered epochs, the second one released over the first."""
    found = [publish_epoch(tmp_path, users=USERS, as_of_us=1_000 * n, variant=n) for n in (1, 2)]
    for epoch in found:
        deliver_here(tmp_path, epoch, settings)
    with open_backends(settings) as backends:
        for epoch in found:
            releases = backends.catalog.releases()
            promote(
                backends, space=SPACE, epoch=epoch.epoch, foundation="f", downstream=f"d{epoch.epoch}",
                actor="me", reason="", instead_of=releases[-1].id if releases else None,
            )  # fmt: skip
    return found


@pytest.fixture
def backends(settings: Settings, epochs: list[Epoch]) -> Iterator[Backends]:
    with open_backends(settings) as opened:
        yield opened


def change(store: Store, *statements: str) -> None:
    assert isinstance(store, SqliteStore)
    with store._database.write() as connection:
        for statement in statements:
            assert connection.execute(statement).rowcount > 0


def trim(backends: Backends, first: int) -> None:
    """What retention does to a log: its first records are gone."""
    assert isinstance(backends.log, SqliteLog)
    with backends.log._database.write() as connection:
        connection.execute("UPDATE partitions SET first = ?", (first,))
        connection.execute("DELETE FROM records WHERE offset < ?", (first,))


WIPE = ("summaries", "barriers", "offsets", "releases")


def wipe(store: Store) -> None:
    change(store, *(f"DELETE FROM {table}" for table in WIPE))


def findings(backends: Backends, epochs: list[Epoch], *, all_bytes: bool = False) -> list[Finding]:
    verdicts = verify_all(backends, epochs, all_bytes=all_bytes)
    return [finding for verdict in verdicts for finding in verdict.findings]


def mended(backends: Backends, epochs: list[Epoch], *, all_bytes: bool = False) -> list[str]:
    done = repair(backends, epochs, all_bytes=all_bytes, actor="me", reason="broken")
    assert findings(backends, epochs, all_bytes=True) == []
    keys = [(SPACE, epoch.epoch) for epoch in epochs]
    assert len({content_digest(store, range(USERS), keys) for store in backends.stores.values()}) == 1
    return done


def test_whole_regions_have_no_findings_and_a_repair_changes_nothing(
    backends: Backends, epochs: list[Epoch]
) -> None:
    before = [backends.log.bounds(bucket) for bucket in range(BUCKETS)]
    assert findings(backends, epochs, all_bytes=True) == []
    assert mended(backends, epochs) == []
    assert [backends.log.bounds(bucket) for bucket in range(BUCKETS)] == before


def test_epochs_of_several_spaces_are_told_apart(backends: Backends, epochs: list[Epoch]) -> None:
    other = epochs[-1].model_copy(update={"space": SPACES[1]})
    (line, _) = [verdict.line for verdict in verify_all(backends, [epochs[-1], other], all_bytes=False)]
    number = other.epoch
    assert f"100.00% of epoch {number} of {SPACE}, 0.00% of epoch {number} of {SPACES[1]}; lag" in line


def test_a_wiped_region_is_replayed_from_the_log(backends: Backends, epochs: list[Epoch]) -> None:
    wipe(backends.stores["west"])
    found = findings(backends, epochs)
    assert {finding.what for finding in found} == {"incomplete"}
    assert len(found) == 2 * BUCKETS
    done = mended(backends, epochs)
    assert done[0] == f"region west, bucket 0 holds nothing of epoch 1: {MENDED_BY['incomplete']}"
    begun, ended = backends.catalog.audit()[-2:]
    for line in (begun, ended):
        assert (line.action, line.actor, line.reason) == ("repair", "me", "broken")
    assert begun.before.startswith("region west, bucket 0 holds nothing of epoch 1; ")
    assert (begun.after, ended.before, ended.after) == ("8 findings", "8 findings", "nothing is left")


def test_a_wiped_region_that_the_log_does_not_reach_is_refilled_from_the_table(
    backends: Backends, epochs: list[Epoch]
) -> None:
    """The log begins in the middle of the first backfill: to replay it alone would serve a hole."""
    trim(backends, first=5)
    wipe(backends.stores["west"])
    kinds = [finding.what for finding in findings(backends, epochs)]
    assert kinds.count("out_of_reach") == BUCKETS
    mended(backends, epochs)
    for bucket in range(BUCKETS):
        state = backends.stores["west"].state(bucket)
        assert state.offset == backends.log.bounds(bucket)[1]
        assert state.release == backends.catalog.releases()[-1]


def test_after_the_loss_of_the_log_regions_go_on_with_a_new_one(
    tmp_path: Path, settings: Settings, epochs: list[Epoch]
) -> None:
    for path in tmp_path.glob("log.db*"):
        path.unlink()
    with closing(open_log(settings.log_url, BUCKETS)), open_backends(settings) as backends:
        assert {finding.what for finding in findings(backends, epochs)} == {"out_of_reach"}
        mended(backends, epochs)
        (user,) = users_of(1, 1)
        backends.log.append(1, [record(user, 10**6, epoch=2)])
        for name, store in backends.stores.items():
            assert drain(name, backends.log, store).written == 1
            assert store.get_many(SPACE, 2, [user]) == [record(user, 10**6, epoch=2)]


def test_a_new_log_that_has_outgrown_the_old_one_is_found_and_gets_the_epochs(
    tmp_path: Path, settings: Settings, epochs: list[Epoch]
) -> None:
    """Where the topic was made by a producer, say; a store that is wiped later fills from the new log."""
    with open_backends(settings) as backends:
        old = backends.log.identity()
        ends = [backends.log.bounds(bucket)[1] for bucket in range(BUCKETS)]
    for path in tmp_path.glob("log.db*"):
        path.unlink()
    with closing(open_log(settings.log_url, BUCKETS)) as log, open_backends(settings) as backends:
        newest = {}
        for bucket, end in enumerate(ends):
            users = users_of(bucket, 5)[1:]
            for seq in range(10**6, 10**6 + end):
                newest |= {user: record(user, seq, epoch=2) for user in users}
                log.append(bucket, [newest[user] for user in users])
        found = findings(backends, epochs)
        assert {finding.what for finding in found} == {"out_of_reach"}
        assert f"of log {old}, this is log {log.identity()}: the log was replaced" in found[0].text
        for name, store in backends.stores.items():
            with pytest.raises(RegionNotReadyError, match="the log was replaced"):
                drain(name, log, store)
        mended(backends, epochs)
        west = backends.stores["west"]
        for wiped in (False, True):
            if wiped:
                wipe(west)
                change(west, "DELETE FROM meta WHERE name LIKE 'log:%'")
                drain("west", log, west)
            assert findings(backends, epochs, all_bytes=True) == []
            assert west.get_many(SPACE, 2, list(newest)) == list(newest.values())
            assert {west.state(bucket).release for bucket in range(BUCKETS)} == {
                backends.catalog.releases()[-1]
            }


def test_missing_and_older_records_come_back_and_newer_ones_stay(
    backends: Backends, epochs: list[Epoch]
) -> None:
    west = backends.stores["west"]
    gone, aged, ahead = (user for user in users_of(2, 5)[1:4])
    change(west, f"DELETE FROM summaries WHERE user_id = {gone} AND epoch = 2")
    old = record(aged, -1, epoch=2)
    change(west, f"DELETE FROM summaries WHERE user_id = {aged} AND epoch = 2")
    offset = west.state(2).offset
    west.apply(2, offset, offset, [old, record(ahead, 10**6, epoch=2)])
    assert [finding.text for finding in findings(backends, epochs)] == [
        f"region west, bucket 2: of epoch 2's {manifests(epochs[1])[2].rows} users, 1 missing and 1 older "
        f"than the table's (first: user {gone})"
    ]
    repair(backends, epochs, all_bytes=False, actor="me", reason="broken")
    assert findings(backends, epochs, all_bytes=True) == []
    assert west.get_many(SPACE, 2, [ahead]) == [record(ahead, 10**6, epoch=2)]


def test_an_older_record_among_the_right_users_is_found_by_all_bytes_alone(
    backends: Backends, epochs: list[Epoch]
) -> None:
    west = backends.stores["west"]
    aged = users_of(2, 5)[3]
    change(west, f"DELETE FROM summaries WHERE user_id = {aged} AND epoch = 2")
    offset = west.state(2).offset
    west.apply(2, offset, offset, [record(aged, -1, epoch=2)])
    assert findings(backends, epochs) == []
    assert len(findings(backends, epochs, all_bytes=True)) == 1
    mended(backends, epochs, all_bytes=True)


def test_users_that_came_by_streamed_updates_are_no_fault(backends: Backends, epochs: list[Epoch]) -> None:
    user = next(user for user in users_of(3, 40) if user >= USERS)
    for store in backends.stores.values():
        offset = store.state(3).offset
        store.apply(3, offset, offset, [record(user, 0, epoch=2)])
    assert findings(backends, epochs) == []


def test_damaged_bytes_are_named_and_not_touched(backends: Backends, epochs: list[Epoch]) -> None:
    user = users_of(1, 3)[2]
    change(backends.stores["east"], f"UPDATE summaries SET data = X'00' WHERE user_id = {user} AND epoch = 1")
    (finding,) = findings(backends, epochs, all_bytes=True)
    assert finding.what == "damaged"
    assert f"1 damaged (first: user {user})" in finding.text
    assert plan([finding])[0].endswith("left as it is: empty its store, then repair it again")
    remedy = "left as it is: empty its store, then repair it again"
    with pytest.raises(RegionNotReadyError, match=rf"these are left:\n.* damaged .*: {remedy}"):
        repair(backends, epochs, all_bytes=True, actor="me", reason="broken")
    begun, ended = backends.catalog.audit()[-2:]
    assert (begun.after, ended.before) == ("1 finding", "1 finding")
    assert ended.after.startswith("left: region east, bucket 1: of epoch 1's ")
    wipe(backends.stores["east"])
    mended(backends, epochs, all_bytes=True)


def test_a_region_that_cannot_be_read_stops_no_other(
    backends: Backends, epochs: list[Epoch], settings: Settings
) -> None:
    wipe(backends.stores["west"])
    backends.stores["east"].close()
    path = Path(settings.region_urls["east"].removeprefix("sqlite:///"))
    for file in path.parent.glob("east.db*"):
        file.unlink()
    path.write_bytes(b"no database" * 1_000)
    with pytest.raises(
        RegionNotReadyError, match=r"these are left:\nregion east: .*NOTADB.*: left as it is until"
    ):
        repair(backends, epochs, all_bytes=False, actor="me", reason="broken")
    west = Backends(backends.catalog, backends.log, {"west": backends.stores["west"]})
    assert findings(west, epochs, all_bytes=True) == []


def test_dead_letters_are_found_and_left(backends: Backends, epochs: list[Epoch]) -> None:
    west = backends.stores["west"]
    offset = west.state(0).offset
    west.apply(0, offset, offset, [b"garbage"])
    done = repair(backends, epochs, all_bytes=False, actor="me", reason="broken")
    (said,) = done
    assert said.startswith(
        "region west keeps dead letters: 1: left as they are: `python -m vista dead-letters`"
    )
    assert backends.catalog.audit()[-1].after == "left: region west keeps dead letters: 1"
    assert [letter.data for letter in west.dead_letters(0)] == [b"garbage"]
