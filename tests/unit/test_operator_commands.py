"""The operators' commands on the command line, over a delivered deployment without models."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from delivery_samples import (
    BUCKETS,
    SPACES,
    deliver_here,
    publish_epoch,
    record,
    settings_of,
    users_of,
)

from vista.__main__ import main
from vista.config import RefreshConfig, Settings
from vista.delivery import sqlite_store
from vista.delivery.control import release_record
from vista.delivery.interfaces import Release
from vista.delivery.regions import open_backends
from vista.delivery.release import promote
from vista.delivery.sqlite_log import SqliteLog
from vista.delivery.sqlite_store import SqliteStore
from vista.delivery.worker import drain
from vista.operator_commands import COMMANDS
from vista.runs import RunDirectory

SPACE = SPACES[0]


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Two delivered epochs, both released, and an epoch that is only in the table."""
    for name in ("VISTA_REGIONS", "VISTA_CATALOG_URL", "VISTA_LOG_URL", "VISTA_WAREHOUSE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("VISTA_HOME", str(tmp_path))
    monkeypatch.setenv("VISTA_RUNS", str(tmp_path / "runs"))
    settings = settings_of(tmp_path)
    for number in (1, 2):
        deliver_here(tmp_path, publish_epoch(tmp_path, as_of_us=1_000 * number, variant=number), settings)
        with open_backends(settings) as backends:
            releases = backends.catalog.releases()
            promote(
                backends, space=SPACE, epoch=number, foundation="f", downstream=f"d{number}", actor="a run",
                reason="better", instead_of=releases[-1].id if releases else None,
            )  # fmt: skip
    publish_epoch(tmp_path, as_of_us=3_000, variant=3)
    return settings


def said(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    assert main([*arguments]) == code
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    return printed.out if code == 0 else printed.err


@pytest.mark.parametrize("command", [command.name for command in COMMANDS])
def test_help_says_what_is_required(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    shown = " ".join(said(capsys, command, "--help").split())
    if command in ("releases", "audit", "dead-letters"):
        assert "--reason" not in shown
    elif command == "verify":
        assert "--dry-run" not in shown, "it changes nothing"
    else:
        assert "why; the audit keeps it [required without --dry-run]" in shown
        assert "--dry-run" in shown


@pytest.mark.parametrize(
    "arguments",
    [
        ["rollback"], ["freeze"], ["unfreeze"], ["repair"], ["replay-letters"], ["delete-letters"],
        ["prune", "--days", "1"],
        ["withdraw", "--space", SPACE, "--epoch", "1"], ["retire", "--space", SPACE, "--epoch", "1"],
        ["promote", "--run-id", "started"], ["promote", "--run-id", "mistyped"],
    ],
)  # fmt: skip
def test_nothing_is_done_without_a_reason(
    settings: Settings, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    RunDirectory.open(settings.runs, RefreshConfig(recipe="smoke", run_id="started"))
    assert "--reason is missing" in said(capsys, *arguments, code=2)
    assert not (settings.runs / "mistyped").exists()
    assert "--reason is missing" in said(capsys, *arguments, "--reason", "  ", code=2)


def test_freeze_is_shown_in_releases_and_audit(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "promotion would be frozen; r-" in said(capsys, "freeze", "--dry-run")
    assert "frozen" not in said(capsys, "releases")
    assert "promotion is frozen; r-" in said(capsys, "freeze", "--reason", "an incident")
    assert said(capsys, "releases").splitlines()[-1].endswith(": an incident")
    assert "is frozen since" in said(capsys, "freeze", "--reason", "x", code=2)
    assert "promotion would not be frozen any more; r-" in said(capsys, "unfreeze", "--dry-run")
    assert "promotion is not frozen any more; r-" in said(capsys, "unfreeze", "--reason", "over")
    lines = said(capsys, "audit").splitlines()
    assert [line.split()[3] for line in lines if " UTC  " in line] == [
        "promote", "promote", "freeze", "unfreeze",
    ]  # fmt: skip
    assert lines[0].endswith("a run: better")
    assert lines[1].strip().startswith("nothing -> r-")


def test_withdraw_and_retire(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    third = ("--space", SPACE, "--epoch", "3")
    assert "would be withdrawn" in said(capsys, "withdraw", *third, "--dry-run")
    assert said(capsys, "withdraw", *third, "--reason", "bad").strip() == (
        f"epoch 3 of {SPACE} is withdrawn, for ever"
    )
    kept = said(capsys, "audit")
    for more in (["--dry-run"], ["--reason", "once more"]):
        assert said(capsys, "withdraw", *third, *more).strip() == (
            f"epoch 3 of {SPACE} is withdrawn already, for ever: nothing to do"
        )
    assert said(capsys, "audit") == kept
    second = ("--space", SPACE, "--epoch", "2")
    assert "it still serves, in release r-" in said(capsys, "withdraw", *second, "--reason", "bad")
    assert "epoch 2 of sample-c is withdrawn" in said(capsys, "verify", code=1)
    assert "is needed by release" in said(capsys, "retire", *second, "--reason", "x", code=1)
    other = ("--space", "other", "--epoch", "1")
    assert "epoch 1 of other is not published" in said(capsys, "retire", *other, "--dry-run", code=1)


def test_verify_and_repair(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    assert "every region serves the release, whole" in said(capsys, "verify", "--all-bytes")
    assert "region 'north' does not exist: east, west" in said(capsys, "verify", "--region", "north", code=2)
    assert "give both, or neither" in said(capsys, "verify", "--space", SPACE, code=2)
    third = ("--space", SPACE, "--epoch", "3")
    assert "holds nothing of epoch 3" in said(capsys, "verify", *third, code=1)
    store = SqliteStore(settings.region_urls["west"], BUCKETS)
    with store._database.write() as connection:
        connection.execute("DELETE FROM summaries WHERE bucket = 1")
    failed = said(capsys, "verify", "--reason", "nightly", code=1)
    assert "error: something is wrong: 2 findings\nrelease r-" in failed
    assert "region west, bucket 1: of epoch 2's" in failed
    assert failed.strip().endswith(
        "`python -m vista repair --dry-run`, with the same options, says what a repair does about each"
    )
    assert "missing and" in failed
    east = said(capsys, "verify", "--region", "east")
    assert east.strip().endswith("region east serves the release, whole")
    assert east.count("region ") == 2, "a line, and the verdict"
    would = said(capsys, "repair", "--dry-run")
    assert would.count("replayed from the log, then refilled from the table") == 2
    assert main(["verify"]) == 1, "a dry run changes nothing"
    capsys.readouterr()
    assert said(capsys, "repair", "--reason", "lost rows") == would
    assert "coverage 100.00% of epoch 2" in said(capsys, "verify", "--reason", "after the repair")
    said(capsys, "repair", *third, "--reason", "the next one, by hand")
    said(capsys, "verify", *third)
    kept = said(capsys, "audit")
    assert "verify" in kept
    assert "-> nothing is wrong" in kept
    assert ": lost rows" in kept
    assert "2 findings -> nothing is left" in kept


def test_a_retired_epoch_is_neither_verified_nor_repaired(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    publish_epoch(settings.home, space=SPACES[1])
    named = ("--space", SPACES[1], "--epoch", "1")
    said(capsys, "retire", *named, "--reason", "old")
    kept = said(capsys, "audit")
    for command in (["verify"], ["repair", "--dry-run"], ["repair", "--reason", "it is missing"]):
        assert f"epoch 1 of {SPACES[1]} is retired: " in said(capsys, *command, *named, code=1)
    assert said(capsys, "audit") == kept


def test_the_dry_run_of_a_repair_says_so_where_the_log_is_lost(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (*settings.home.glob("log.db*"), *settings.home.glob("stores/*")):
        path.unlink()
    said_of_lost = (
        "is lost: it would be made anew with 4 partitions and filled from the table, and every bucket of"
    )
    assert f"{settings.log_url} {said_of_lost} every region" in said(capsys, "repair", "--dry-run")
    assert f"{said_of_lost} west" in said(capsys, "repair", "--dry-run", "--region", "west")
    assert not list(settings.home.glob("log.db*")), "a dry run makes nothing"
    assert "log.db is empty" in said(capsys, "rollback", "--dry-run", code=1)
    said(capsys, "repair", "--reason", "the log was lost")
    assert "every region serves the release, whole" in said(capsys, "verify", "--all-bytes")
    for path in settings.home.glob("stores/west*"):
        path.unlink()
    with open_backends(settings) as backends:
        drain("west", backends.log, backends.stores["west"])
    assert "every region serves the release, whole" in said(capsys, "verify", "--all-bytes")


def test_dead_letters(settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "there are no dead letters" in said(capsys, "dead-letters")
    (user,), (stranger,), (other,) = (users_of(bucket, 1) for bucket in (0, 1, 2))
    strayed, late = record(stranger, 500, epoch=2), record(other, 500, epoch=2)
    damaged = release_record(Release(id="r-x", space=SPACE, epoch=1, foundation="f", downstream="d"))[:-1]
    with open_backends(settings) as backends:
        backends.log.append(0, [b"garbage", strayed, record(user, 500, epoch=2)])
        for name, store in backends.stores.items():
            drain(name, backends.log, store)
        west = backends.stores["west"]
        offset = west.state(3).offset
        assert west.apply(3, offset, offset, [damaged, late]).dead_letters == 2

        def held(region: str) -> list[bytes]:
            store = backends.stores[region]
            return [letter.data for bucket in range(BUCKETS) for letter in store.dead_letters(bucket)]

        listed = said(capsys, "dead-letters")
        assert listed.count("region west, bucket ") == 4
        assert listed.count("region east, bucket 0") == 2
        assert "belongs to bucket 1, not 0; usable in bucket 1" in listed
        texts = [line.strip() for line in listed.splitlines() if "not usable" in line]
        assert len(texts) == 3
        for text in texts:
            reason, _, why = text.partition("; not usable")
            assert reason not in why, "said once"
        saved = ("--region", "west", "--bucket", "3", "--save", str(tmp_path / "out"))
        assert said(capsys, "dead-letters", *saved).count("region west, bucket 3") == 2
        assert {path.read_bytes() for path in (tmp_path / "out").iterdir()} == {damaged, late}
        assert "bucket 4 does not exist" in said(capsys, "dead-letters", "--bucket", "4", code=2)
        north = said(capsys, "delete-letters", "--region", "north", "--dry-run", code=2)
        assert "region 'north' does not exist" in north

        assert "3 dead letters would be replayed, 3 stay" in said(capsys, "replay-letters", "--dry-run")
        assert held("east") == [b"garbage", strayed]
        ends = [backends.log.bounds(bucket)[1] for bucket in range(BUCKETS)]
        replayed = said(capsys, "replay-letters", "--reason", "they strayed")
        assert "3 dead letters are replayed, 3 stay" in replayed
        added = [backends.log.bounds(bucket)[1] - end for bucket, end in enumerate(ends)]
        assert added == [0, 1, 1, 0], "once for both regions"
        assert (held("east"), held("west")) == ([b"garbage"], [b"garbage", damaged])
        for store in backends.stores.values():
            assert store.get_many(SPACE, 2, [stranger, other]) == [strayed, late]
        assert "0 dead letters are replayed, 3 stay" in said(capsys, "replay-letters", "--reason", "again")

        assert "3 would be deleted" in said(capsys, "delete-letters", "--dry-run")
        deleted = said(capsys, "delete-letters", "--region", "east", "--reason", "a bit flipped")
        assert "1 are deleted" in deleted
        assert (held("east"), len(held("west"))) == ([], 2)
    lines = said(capsys, "audit")
    assert "they strayed\n    dead letters: 1 of east, 2 of west -> nothing" in lines
    assert "a bit flipped\n    dead letters: 1 of east -> nothing" in lines
    assert ": again" not in lines, "nothing was done"


def test_dead_letters_that_come_back_while_they_are_replayed_are_not_deleted(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A worker of an older version cannot apply them yet. There are more than are read at once."""
    monkeypatch.setattr(sqlite_store, "LETTERS_AT_ONCE", 2)
    strays = [record(user, 500, epoch=2) for user in users_of(1, 5)]
    with open_backends(settings) as backends:
        west, offset = backends.stores["west"], backends.stores["west"].state(0).offset
        assert west.apply(0, offset, offset, strays).dead_letters == 5
        assert said(capsys, "dead-letters").count("region west, bucket 0") == 5
        append = backends.log.append

        def older(log: SqliteLog, partition: int, records: Sequence[bytes]) -> int:
            assert west.apply(0, offset, offset, [*records]).dead_letters == 1
            return append(partition, records)

        monkeypatch.setattr(SqliteLog, "append", older)
        assert "5 dead letters are replayed, 0 stay" in said(
            capsys, "replay-letters", "--reason", "they strayed"
        )
        assert west.count_dead_letters(0) == 5
        monkeypatch.undo()
        kept = [letter.data for letter in west.dead_letters(0)]
    assert kept == strays


def test_the_stages_options_do_not_mix_with_a_regions(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "--run-id belongs to the stage" in said(
        capsys, "deliver", "--region", "east", "--run-id", "r", code=2
    )
    assert "region 'north' does not exist" in said(capsys, "deliver", "--region", "north", code=2)
    assert "--port" in said(capsys, "deliver", "--region", "east", "--port", "70000", code=2)
    assert "--port needs --region" in said(capsys, "deliver", "--port", "9999", code=2)
    assert "--port needs --region" in said(capsys, "deliver", "--port", "0", code=2)


def test_the_stage_promote_takes_the_values_that_its_run_was_started_with(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    RunDirectory.open(settings.runs, RefreshConfig(run_id="plain"))
    shown = said(capsys, "promote", "--run-id", "plain", code=2)
    assert "--reason" not in shown, "it is the stage"
    RunDirectory.open(settings.runs, RefreshConfig(recipe="smoke", run_id="started"))
    assert "was started with other values" in said(
        capsys, "promote", "--run-id", "started", "--recipe", "movielens", code=2
    )
