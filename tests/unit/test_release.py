"""Releases: who may become one, what a rollback takes, what is audited, and how a crash heals."""

import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from delivery_samples import (
    BUCKETS,
    SPACES,
    deliver_here,
    finish_stages,
    keep_report,
    publish_epoch,
    record,
    settings_of,
    users_of,
)

from vista.config import RefreshConfig, Settings
from vista.delivery.control import barrier, header_of, release_record
from vista.delivery.epochs import known_epoch
from vista.delivery.freeze import freeze_reason, set_frozen
from vista.delivery.interfaces import Applied, AuditLine, Epoch, Release
from vista.delivery.promote import promote_run
from vista.delivery.readiness import RegionState
from vista.delivery.regions import Backends, open_backends
from vista.delivery.release import announce, current_release, promote, retire, rollback, withdraw
from vista.delivery.repair import refill, repair
from vista.delivery.retirements import is_retired
from vista.delivery.sqlite_catalog import SqliteCatalog
from vista.delivery.sqlite_log import SqliteLog
from vista.delivery.sqlite_store import SqliteStore
from vista.delivery.worker import drain
from vista.errors import BackendError, EpochError, InputError, RegionNotReadyError, ReleaseConflictError
from vista.jobs import run_stage
from vista.runs import RunDirectory
from vista.serve import operations

SPACE = SPACES[0]


@pytest.fixture(scope="module")
def delivered(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Epoch]]:
    """Three delivered epochs; tests work on copies, the files of the table are shared."""
    home = tmp_path_factory.mktemp("delivered")
    found = [publish_epoch(home, as_of_us=1_000 * number, variant=number) for number in (1, 2, 3)]
    for epoch in found:
        deliver_here(home, epoch, settings_of(home))
    return home, found


@pytest.fixture
def epochs(tmp_path: Path, delivered: tuple[Path, list[Epoch]]) -> list[Epoch]:
    home, found = delivered
    shutil.copytree(home, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("warehouse"))
    return found


@pytest.fixture
def settings(tmp_path: Path, epochs: list[Epoch]) -> Settings:
    return settings_of(tmp_path)


@pytest.fixture
def backends(settings: Settings, epochs: list[Epoch]) -> Iterator[Backends]:
    with open_backends(settings) as opened:
        yield opened


def delivered_run(settings: Settings, run_id: str, epoch: Epoch) -> tuple[RefreshConfig, RunDirectory]:
    """A run that has come as far as its promotion."""
    run = finish_stages(settings, run_id, epoch)
    report = {"space": epoch.space, "epoch": epoch.epoch, "delivered": True, "reason": ""}
    keep_report(run, "deliver", report)
    return RefreshConfig(recipe="smoke", run_id=run_id), run


def promoted(backends: Backends, epoch: int, **more: Any) -> Release:
    current = current_release(backends.catalog)
    values: dict[str, Any] = {
        "space": SPACE, "epoch": epoch, "foundation": "f", "downstream": f"d{epoch}", "actor": "me",
        "reason": "better", "instead_of": None if current is None else current.id,
    } | more  # fmt: skip
    done = promote(backends, **values)
    assert done.regions == {}
    return done.release


def served(backends: Backends) -> set[str | None]:
    """The releases that the buckets of all regions have passed last."""
    return {
        None if bucket.release is None else bucket.release.id
        for name, store in backends.stores.items()
        for bucket in RegionState.of(name, store, BUCKETS).buckets
    }


def test_promote_reaches_every_bucket_of_every_region(backends: Backends) -> None:
    first = promoted(backends, 1)
    assert served(backends) == {first.id}
    second = promoted(backends, 2)
    assert (second.previous, second.epoch, served(backends)) == (first.id, 2, {second.id})
    assert backends.catalog.releases() == [first, second]
    lines = backends.catalog.audit()
    assert [(line.action, line.before, line.after) for line in lines] == [
        ("promote", "", first.id),
        ("promote", first.id, second.id),
    ]
    assert (lines[0].actor, lines[0].reason) == ("me", "better")
    assert lines[0].time_us > 1_600_000_000_000_000


def test_promoting_the_same_again_changes_nothing_but_heals(backends: Backends) -> None:
    release = promoted(backends, 1)
    ends = [backends.log.bounds(bucket) for bucket in range(BUCKETS)]
    assert promoted(backends, 1, instead_of="r-long-ago") == release
    assert [backends.log.bounds(bucket) for bucket in range(BUCKETS)] == ends
    assert len(backends.catalog.audit()) == 1


def test_a_crash_between_swap_and_control_records_heals_with_the_next_call(backends: Backends) -> None:
    first = promoted(backends, 1)
    line = AuditLine(time_us=1, actor="me", action="promote", reason="", before=first.id, after="r-2")
    second = first.model_copy(update={"id": "r-2", "epoch": 2, "downstream": "d2", "previous": first.id})
    backends.catalog.swap_release(first.id, second, line)
    assert served(backends) == {first.id}, "the crash was here"
    assert promoted(backends, 2).id == "r-2"
    assert served(backends) == {"r-2"}


def test_a_slow_announcement_does_not_undo_a_release_that_was_swapped_meanwhile(backends: Backends) -> None:
    first = promoted(backends, 1)
    second = promoted(backends, 2)
    assert announce(backends, first) == {}, "the process that promoted the first one was slow"
    assert served(backends) == {second.id}


def test_a_release_that_reached_some_partitions_only_is_completed(backends: Backends) -> None:
    first = promoted(backends, 1)
    other = first.model_copy(update={"id": "r-2"})
    backends.log.append(2, [release_record(other)])
    for name, store in backends.stores.items():
        drain(name, backends.log, store)
    assert served(backends) == {first.id, "r-2"}
    line = AuditLine(time_us=1, actor="me", action="promote", reason="", before=first.id, after="r-2")
    backends.catalog.swap_release(first.id, other, line)
    before = [backends.log.bounds(bucket)[1] for bucket in range(BUCKETS)]
    assert announce(backends, other) == {}
    assert served(backends) == {"r-2"}
    assert [backends.log.bounds(b)[1] - before[b] for b in range(BUCKETS)] == [1, 1, 0, 1]


def test_a_dry_run_shows_and_changes_nothing(backends: Backends) -> None:
    first = promoted(backends, 1)
    values: dict[str, Any] = {"actor": "me", "reason": "", "dry_run": True}
    done = promote(
        backends, space=SPACE, epoch=2, foundation="f", downstream="d", instead_of=first.id, **values
    )
    assert (done.changed, done.before, done.release.epoch) == (False, first, 2)
    second = promoted(backends, 2)
    back = rollback(backends, to=None, **values)
    assert (back.changed, back.release.epoch, back.before) == (False, 1, second)
    assert [one.id for one in backends.catalog.releases()] == [first.id, second.id]
    assert served(backends) == {second.id}


def test_promote_needs_a_published_epoch_in_every_region(
    backends: Backends, tmp_path: Path, settings: Settings
) -> None:
    with pytest.raises(EpochError, match="epoch 9 of sample-c is not published"):
        promoted(backends, 9)
    fourth = publish_epoch(tmp_path, as_of_us=4_000, variant=4)
    with pytest.raises(RegionNotReadyError, match="not complete in east, west: deliver it first"):
        promoted(backends, fourth.epoch)
    line = AuditLine(time_us=0, actor="a", action="withdraw", reason="bad", before="", after="")
    backends.catalog.withdraw(SPACE, 2, line)
    with pytest.raises(EpochError, match="is withdrawn"):
        promoted(backends, 2)
    assert backends.catalog.releases() == []


def lose_most(backends: Backends, regions: Sequence[str], epoch: int) -> None:
    """Wipe bucket 1 of these regions, and let the log begin there right before the last record of `epoch`."""
    log = backends.log
    assert isinstance(log, SqliteLog)
    for region in regions:
        store = backends.stores[region]
        assert isinstance(store, SqliteStore)
        with store._database.write() as connection:
            for table in ("summaries", "barriers", "offsets"):
                connection.execute(f"DELETE FROM {table} WHERE bucket = 1")
    last = next(at for at, data in log.read(1, 0, 2**20) if data == barrier(SPACE, epoch))
    with log._database.write() as connection:
        connection.execute("UPDATE partitions SET first = ? WHERE partition = 1", (last - 1,))
        connection.execute("DELETE FROM records WHERE partition = 1 AND offset < ?", (last - 1,))


def test_promote_is_not_deceived_by_a_barrier_behind_a_hole(backends: Backends, epochs: list[Epoch]) -> None:
    """A wiped region is refilled with what serves; the log begins in the middle of a later epoch."""
    for number in (1, 2):
        promoted(backends, number)
    lose_most(backends, ["west"], 3)
    west = backends.stores["west"]
    repair(backends, epochs[:2], all_bytes=False, actor="me", reason="wiped")
    assert RegionState.of("west", west, BUCKETS).complete(SPACE, 3)
    with pytest.raises(RegionNotReadyError, match=f"not complete in west: .*--space {SPACE} --epoch 3 "):
        promoted(backends, 3)
    repair(backends, epochs, all_bytes=False, actor="me", reason="as it says")
    promoted(backends, 3)


def test_rollback_is_not_deceived_by_a_barrier_behind_a_hole(
    backends: Backends, epochs: list[Epoch], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wiped regions were refilled with what serves and what a rollback would take; `to` is older."""
    for number in (1, 2, 3):
        promoted(backends, number)
    lose_most(backends, ["east", "west"], 1)
    repair(backends, epochs[1:], all_bytes=False, actor="me", reason="wiped")
    with monkeypatch.context() as usual:  # of what repairs look after the table is not asked
        usual.delattr("vista.delivery.release.manifests")
        assert rollback(backends, to=None, actor="me", reason="worse", dry_run=True).release.epoch == 2
    first = backends.catalog.releases()[0].id
    for name, store in backends.stores.items():
        assert RegionState.of(name, store, BUCKETS).complete(SPACE, 1)
    with pytest.raises(RegionNotReadyError, match="no region holds epoch 1 of"):
        rollback(backends, to=first, actor="me", reason="worse")
    west = Backends(backends.catalog, backends.log, {"west": backends.stores["west"]})
    repair(west, epochs, all_bytes=False, actor="me", reason="as it says")
    assert rollback(backends, to=first, actor="me", reason="worse").release.epoch == 1, "one is enough"


def test_promote_refuses_when_another_release_serves_than_it_was_judged_against(backends: Backends) -> None:
    first = promoted(backends, 1)
    for judged in (None, "r-other"):
        with pytest.raises(ReleaseConflictError, match=f"now {first.id} serves"):
            promoted(backends, 2, instead_of=judged)
    assert served(backends) == {first.id}


def test_a_first_release_has_nothing_to_go_back_to(backends: Backends) -> None:
    """It was told to name another release, and there was none."""
    first = promoted(backends, 1)
    with pytest.raises(InputError, match=f"before {first.id}: there is no other until a second refresh"):
        rollback(backends, to=None, actor="me", reason="worse")
    assert served(backends) == {first.id}


def test_rollback_goes_back_step_by_step_and_never_forth(backends: Backends) -> None:
    for number in (1, 2, 3):
        promoted(backends, number)
    values: dict[str, Any] = {"to": None, "actor": "me", "reason": "worse"}
    for wanted in (2, 1):
        done = rollback(backends, **values)
        assert (done.changed, done.release.epoch, done.regions) == (True, wanted, {})
        assert served(backends) == {done.release.id}
    with pytest.raises(InputError, match=r"nothing was released before r-.*: name a release with --to"):
        rollback(backends, **values)
    assert [one.epoch for one in backends.catalog.releases()] == [1, 2, 3, 2, 1]
    assert backends.catalog.audit()[-1].action == "rollback"
    forth = rollback(backends, to=backends.catalog.releases()[2].id, actor="me", reason="it was not that")
    assert forth.release.epoch == 3


def test_a_rollback_that_was_killed_before_its_announcement_heals_and_goes_no_further(
    backends: Backends,
) -> None:
    promoted(backends, 1)
    second, third = promoted(backends, 2), promoted(backends, 3)
    line = AuditLine(time_us=1, actor="me", action="rollback", reason="", before=third.id, after="r-4")
    fourth = second.model_copy(update={"id": "r-4", "previous": third.id})
    backends.catalog.swap_release(third.id, fourth, line)
    assert served(backends) == {third.id}, "the kill was here"
    done = rollback(backends, to="r-4", actor="me", reason="again")
    assert (done.release, done.changed, done.regions) == (fourth, False, {})
    assert served(backends) == {"r-4"}
    assert len(backends.catalog.releases()) == 4


def test_two_who_roll_back_what_both_saw_go_back_once(
    backends: Backends, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one loads the model to go back to while the first one is done."""
    for number in (1, 2, 3):
        promoted(backends, number)

    def meanwhile(release: Release) -> None:
        assert release.epoch == 2
        rollback(backends, to=None, actor="the first", reason="worse")

    monkeypatch.setattr(operations, "_check_model", meanwhile)
    with pytest.raises(ReleaseConflictError, match="somebody was faster"):
        operations.roll_back(settings, None, "worse", dry_run=False)
    assert [one.epoch for one in backends.catalog.releases()] == [1, 2, 3, 2]


def test_a_rollback_that_the_log_does_not_take_says_that_it_is_done(
    backends: Backends, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who runs it again goes back once more."""
    for number in (1, 2, 3):
        promoted(backends, number)

    def away(*_: object) -> None:
        raise BackendError("no broker answers: run the command again")

    with monkeypatch.context() as broken:
        broken.setattr(backends.log, "broadcast", away)
        with pytest.raises(BackendError, match=r"is the release now.*vista repair.*no broker answers"):
            rollback(backends, to=None, actor="me", reason="worse")
    release = current_release(backends.catalog)
    assert release is not None
    assert release.epoch == 2
    assert announce(backends, release) == {}
    assert served(backends) == {release.id}


def test_rollback_errors(backends: Backends) -> None:
    with pytest.raises(InputError, match="there is no release yet"):
        rollback(backends, to=None, actor="me", reason="")
    first = promoted(backends, 1)
    with pytest.raises(InputError, match="'r-none' does not exist"):
        rollback(backends, to="r-none", actor="me", reason="")
    promoted(backends, 2)
    promoted(backends, 3)
    retire(backends, space=SPACE, epoch=1, actor="me", reason="old")
    with pytest.raises(RegionNotReadyError, match="no region holds epoch 1"):
        rollback(backends, to=first.id, actor="me", reason="")
    line = AuditLine(time_us=0, actor="a", action="withdraw", reason="bad", before="", after="")
    backends.catalog.withdraw(SPACE, 2, line)
    with pytest.raises(EpochError, match="is withdrawn"):
        rollback(backends, to=None, actor="me", reason="")


def test_what_a_rollback_would_need_is_not_retired(backends: Backends) -> None:
    for number in (1, 2, 3):
        promoted(backends, number)
    for number in (2, 3):
        with pytest.raises(EpochError, match="is needed by release"):
            retire(backends, space=SPACE, epoch=number, actor="me", reason="")
    retire(backends, space=SPACE, epoch=1, actor="me", reason="old")
    for name, store in backends.stores.items():
        state = RegionState.of(name, store, BUCKETS)
        assert not state.complete(SPACE, 1)
        assert state.complete(SPACE, 2)
        assert store.get_many(SPACE, 1, range(40)) == [None] * 40
    assert backends.catalog.audit()[-1].before == "sample-c/1"


@pytest.mark.parametrize("dry_run", [True, False])
def test_only_what_was_published_is_retired(backends: Backends, dry_run: bool) -> None:
    """A number that was mistyped would retire epochs that are not made yet."""
    for space, epoch in ((SPACE, 99), ("sample-unknown", 2)):
        with pytest.raises(EpochError, match=f"epoch {epoch} of {space} is not published"):
            retire(backends, space=space, epoch=epoch, actor="me", reason="typo", dry_run=dry_run)
        assert not is_retired(backends.catalog, space, 2)
    line = AuditLine(time_us=0, actor="a", action="expire", reason="old", before="", after="")
    backends.catalog.withdraw(SPACE, 2, line)
    assert retire(backends, space=SPACE, epoch=2, actor="me", reason="old", dry_run=dry_run) == [1, 2]


@pytest.mark.parametrize("action", ["promote", "rollback"])
@pytest.mark.parametrize("meanwhile", ["withdraw", "retire"])
def test_an_epoch_that_goes_while_it_is_released_is_taken_back(
    backends: Backends, settings: Settings, action: str, meanwhile: str
) -> None:
    """Another process withdraws or retires it right before the swap, when it is not needed yet."""
    for number in (1, 2, 3):
        promoted(backends, number)
    serving = backends.catalog.releases()[-1]
    space, epoch = (SPACE, 1) if action == "rollback" else ("sample-other", 1)
    if action == "promote":
        deliver_here(settings.home, publish_epoch(settings.home, space=space), settings)

    class Meanwhile(SqliteCatalog):
        def swap_release(self, expected: str | None, new: Release, audit: AuditLine) -> None:
            if new.space == space and new.epoch == epoch:
                with open_backends(settings) as other:
                    if meanwhile == "withdraw":
                        assert (
                            withdraw(other.catalog, space=space, epoch=epoch, actor="she", reason="bad")
                            is None
                        )
                    else:
                        retire(other, space=space, epoch=epoch, actor="she", reason="old")
            super().swap_release(expected, new, audit)

    with closing(Meanwhile(settings.catalog_url)) as catalog:
        racing = Backends(catalog, backends.log, backends.stores)
        acts = {
            "rollback": partial(rollback, racing, to=catalog.releases()[0].id),
            "promote": partial(
                promote, racing, space=space, epoch=epoch, foundation="f", downstream="d",
                instead_of=serving.id,
            ),
        }  # fmt: skip
        taken_back = f"was taken back: epoch 1 of {space} was {meanwhile}.* meanwhile"
        with pytest.raises(EpochError, match=taken_back):
            acts[action](actor="me", reason="race")
    current = backends.catalog.releases()[-1]
    assert current.model_copy(update={"id": serving.id, "previous": serving.previous}) == serving
    assert served(backends) == {current.id}


def test_what_is_retired_is_not_released_by_a_region_that_has_not_heard_of_it(backends: Backends) -> None:
    for number in (1, 2, 3):
        promoted(backends, number)
    first = backends.catalog.releases()[0]
    line = AuditLine(time_us=0, actor="she", action="retire", reason="old", before=f"{SPACE}/1", after="")
    backends.catalog.note(line)  # she is about to tell the log
    for dry_run in (True, False):
        with pytest.raises(EpochError, match="epoch 1 of sample-c is retired: the regions delete"):
            rollback(backends, to=first.id, actor="me", reason="late", dry_run=dry_run)
    assert len(backends.catalog.releases()) == 3
    assert rollback(backends, to=None, actor="me", reason="a newer one").changed


def test_what_is_retired_and_gone_is_not_said_to_be_delivered_first(backends: Backends) -> None:
    promoted(backends, 3)
    retire(backends, space=SPACE, epoch=2, actor="me", reason="old")
    for number in (1, 2):
        with pytest.raises(
            EpochError, match=f"epoch {number} of {SPACE} is retired: .* whose export makes one"
        ):
            promoted(backends, number)


def test_a_retirement_looks_once_more_after_it_is_known(backends: Backends, settings: Settings) -> None:
    """Another process rolls back to the epoch between the check and the note."""
    for number in (1, 2, 3):
        promoted(backends, number)

    class Meanwhile(SqliteCatalog):
        def note(self, audit: AuditLine) -> None:
            if audit.action == "retire":
                with open_backends(settings) as other:
                    rollback(other, to=other.catalog.releases()[0].id, actor="she", reason="urgent")
            super().note(audit)

    with (
        closing(Meanwhile(settings.catalog_url)) as catalog,
        pytest.raises(EpochError, match="epoch 1 of sample-c is needed by release"),
    ):
        retire(
            Backends(catalog, backends.log, backends.stores), space=SPACE, epoch=1, actor="me", reason="old"
        )
    assert not is_retired(backends.catalog, SPACE, 1), "it was taken back"
    for name, store in backends.stores.items():
        assert RegionState.of(name, store, BUCKETS).complete(SPACE, 1)


def test_a_broken_region_stops_no_rollback_and_catches_up_later(
    backends: Backends, settings: Settings, tmp_path: Path
) -> None:
    promoted(backends, 1)
    promoted(backends, 2)
    backends.stores["west"].close()
    west = tmp_path / "stores" / "west.db"
    west.rename(tmp_path / "west.away")
    for log in west.parent.glob("west.db-*"):
        log.rename(tmp_path / (log.name.replace("west.db", "west.away")))
    west.write_bytes(b"not a database" * 1_000)
    done = rollback(backends, to=None, actor="me", reason="worse")
    assert set(done.regions) == {"west"}
    assert "NOTADB" in done.regions["west"]
    assert RegionState.of("east", backends.stores["east"], BUCKETS).serves(done.release.id)
    with pytest.raises(RegionNotReadyError, match="not complete in west"):
        promoted(backends, 3)
    west.unlink()
    with open_backends(settings) as healed:  # an emptied store refills from the log
        assert announce(healed, done.release) == {}
        assert served(healed) == {done.release.id}
        assert RegionState.of("west", healed.stores["west"], BUCKETS).complete(SPACE, 3)


def test_the_stage_promotes_what_the_gate_lets_pass(
    tmp_path: Path, settings: Settings, epochs: list[Epoch]
) -> None:
    config, run = delivered_run(settings, "run-1", epochs[0])
    report = promote_run(config, settings)
    assert (report.promoted, report.reasons, report.before) == (True, ("better",), None)
    assert report.release is not None
    assert report.release.downstream == f"{run.path}/train/downstream"
    assert promote_run(config, settings).release == report.release, "a rerun finds its own release"
    with open_backends(settings) as backends:
        assert [line.actor for line in backends.catalog.audit()] == ["run run-1"]


def test_a_kept_promotion_counts_while_the_catalog_has_its_release(
    tmp_path: Path, settings: Settings, epochs: list[Epoch]
) -> None:
    """A catalog that was restored from before this run's promotion: what the kept report says is not so."""
    config, run = delivered_run(settings, "run-1", epochs[0])
    backup = shutil.copy(tmp_path / "catalog.db", tmp_path / "backup.db")
    kept = run_stage("promote", config, settings)
    assert run_stage("promote", config, settings) == kept
    keep_report(run, "clean_up", {})
    restored = settings.model_copy(update={"catalog_url": f"sqlite:///{backup}"})
    anew = run_stage("promote", config, restored)
    assert anew["promoted"]
    assert anew["release"]["id"] != kept["release"]["id"]
    assert run.stage("clean_up") is None
    with open_backends(restored) as backends:
        current = current_release(backends.catalog)
        assert current is not None
        assert current.id == anew["release"]["id"]
        assert served(backends) == {current.id}


def test_what_was_rolled_back_before_its_promotion_was_reported_does_not_come_back(
    backends: Backends, settings: Settings, epochs: list[Epoch]
) -> None:
    """A region did not follow, or the stage was killed: its next attempt comes after the rollback."""
    first = promoted(backends, 1)
    config, run = delivered_run(settings, "run-5", epochs[1])
    judged = run.report_of("retrain_downstream") | {"champion": {"release": first.id}}
    keep_report(run, "retrain_downstream", judged)
    own = promote_run(config, settings).release
    assert own is not None
    back = rollback(backends, to=None, actor="me", reason="clicks fell").release
    report = promote_run(config, settings)
    assert (report.promoted, report.release) == (False, back)
    assert report.reasons == (f"release {own.id} had these models, and {back.id} has replaced it",)


def test_a_run_that_the_gate_refuses_is_a_good_end_with_its_reasons(
    settings: Settings, epochs: list[Epoch]
) -> None:
    run = finish_stages(settings, "run-2", epochs[1], gate=False)
    keep_report(run, "deliver", {"space": "sample-c", "epoch": 2, "delivered": False, "reason": "older"})
    report = promote_run(RefreshConfig(recipe="smoke", run_id="run-2"), settings)
    assert (report.promoted, report.release) == (False, None)
    assert report.reasons == ("older", "NE is worse", "coverage")


def test_a_person_s_word_on_a_promotion_is_in_the_audit(settings: Settings, epochs: list[Epoch]) -> None:
    config, _ = delivered_run(settings, "run-4", epochs[0])
    rejected = promote_run(config, settings, rejected_by="ada")
    assert (rejected.promoted, rejected.reasons, rejected.release) == (False, ("rejected by ada",), None)
    assert promote_run(config, settings, approved_by="bob").reasons == ("better", "approved by bob")
    with open_backends(settings) as backends:
        reject, promotion = backends.catalog.audit()
    assert (reject.action, reject.actor, reject.reason) == ("reject", "ada", "promotion of run run-4")
    assert (promotion.action, promotion.reason) == ("promote", "better; approved by bob")


def test_while_promotion_is_frozen_only_a_rollback_changes_what_serves(backends: Backends) -> None:
    promoted(backends, 1)
    promoted(backends, 2)
    with pytest.raises(InputError, match="promotion is not frozen"):
        set_frozen(backends.catalog, False, actor="me", reason="by mistake")
    set_frozen(backends.catalog, True, actor="me", reason="an incident", dry_run=True)
    assert freeze_reason(backends.catalog) == ""
    set_frozen(backends.catalog, True, actor="me", reason="an incident")
    with pytest.raises(InputError, match="promotion is frozen since"):
        set_frozen(backends.catalog, True, actor="you", reason="again")
    with pytest.raises(ReleaseConflictError, match=r"frozen since .* UTC by me: an incident; .* unfreeze"):
        promoted(backends, 3)
    assert promoted(backends, 2).epoch == 2, "what serves is only healed"
    assert rollback(backends, to=None, actor="me", reason="worse").release.epoch == 1
    set_frozen(backends.catalog, False, actor="you", reason="it is over")
    assert promoted(backends, 3).epoch == 3
    assert [line.action for line in backends.catalog.audit()] == [
        "promote", "promote", "freeze", "rollback", "unfreeze", "promote",
    ]  # fmt: skip


def test_a_run_that_meets_a_freeze_ends_well_and_says_so(
    backends: Backends, settings: Settings, epochs: list[Epoch]
) -> None:
    first = promoted(backends, 1)
    set_frozen(backends.catalog, True, actor="me", reason="an incident")
    config, _ = delivered_run(settings, "run-3", epochs[1])
    report = promote_run(config, settings)
    assert (report.promoted, report.release) == (False, first)
    assert len(report.reasons) == 1
    assert "by me: an incident" in report.reasons[0]


def test_withdrawing_says_whether_the_epoch_still_serves(backends: Backends) -> None:
    first = promoted(backends, 1)
    values: dict[str, Any] = {"space": SPACE, "actor": "me", "reason": "bad labels"}
    assert withdraw(backends.catalog, epoch=1, dry_run=True, **values) == first
    assert not backends.catalog.list_epochs(SPACE)[0].withdrawn
    assert withdraw(backends.catalog, epoch=2, **values) is None
    assert withdraw(backends.catalog, epoch=1, **values) == first
    assert [one.withdrawn for one in backends.catalog.list_epochs(SPACE)] == [True, True, False]
    line = backends.catalog.audit()[-1]
    assert (line.action, line.reason, line.before) == ("withdraw", "bad labels", "sample-c/1")
    with pytest.raises(EpochError, match="epoch 7 of sample-c is not published"):
        withdraw(backends.catalog, epoch=7, **values)
    with pytest.raises(EpochError, match="is withdrawn"):
        promoted(backends, 2)


def test_a_dry_run_of_a_retirement_names_what_would_go(backends: Backends) -> None:
    promoted(backends, 3)
    ends = [backends.log.bounds(bucket) for bucket in range(BUCKETS)]
    values: dict[str, Any] = {"space": SPACE, "epoch": 2, "actor": "me", "reason": "old"}
    assert retire(backends, dry_run=True, **values) == [1, 2]
    assert [backends.log.bounds(bucket) for bucket in range(BUCKETS)] == ends
    assert len(backends.catalog.audit()) == 1
    assert retire(backends, **values) == [1, 2]
    assert retire(backends, **values) == [], "nothing is held any more"


def test_a_retirement_makes_room_in_a_region_that_cannot_follow_the_log(
    backends: Backends, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its memory is short, and what waits for room is between it and the retirement."""
    for number in (1, 2, 3):
        promoted(backends, number)
    backends.log.append(0, [record(users_of(0, 1)[0], 999, epoch=3)])
    east, (user,) = backends.stores["east"], users_of(0, 1)
    apply, offset = east.apply, east.state(0).offset

    def short(bucket: int, at: int, to: int, records: Sequence[bytes], *log: str, **how: bool) -> Applied:
        if any(header is not None and not header.control for header in map(header_of, records)):
            raise BackendError("no memory")
        return apply(bucket, at, to, records, *log, **how)

    monkeypatch.setattr(east, "apply", short)
    assert retire(backends, space=SPACE, epoch=1, actor="me", reason="room") == [1]
    assert east.state(0).offset == offset, "it goes on from where it is"
    assert east.retire(SPACE, 1) == 0, "they are deleted"
    assert east.get_many(SPACE, 1, [user]) == [None]
    monkeypatch.undo()
    drain("east", backends.log, east)
    assert east.get_many(SPACE, 3, [user]) == [record(user, 999, epoch=3)]
    assert east.state(0).epochs == backends.stores["west"].state(0).epochs


def test_a_store_below_its_reserve_is_spared_by_commands_too_but_told_of_releases(
    backends: Backends, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What its worker would not apply no command does in passing; to retire makes room."""
    promoted(backends, 1)
    promoted(backends, 2)
    east, (user,) = backends.stores["east"], users_of(0, 1)
    state, free_bytes = east.state, [1]
    monkeypatch.setattr(east, "state", lambda bucket: replace(state(bucket), free_bytes=free_bytes[0]))
    promoted(backends, 3)
    newest = record(user, 999, epoch=3)
    backends.log.append(0, [newest])
    offset = state(0).offset
    full = (
        r"region east, bucket 0: its store has 1 bytes free, 67,108,864 are its reserve: .* -m vista retire"
    )
    with pytest.raises(RegionNotReadyError, match=full):
        drain("east", backends.log, east)
    with pytest.raises(RegionNotReadyError, match=full):
        refill("east", east, 0, [known_epoch(backends.catalog, SPACE, 3)])
    assert retire(backends, space=SPACE, epoch=1, actor="me", reason="room") == [1]
    assert east.retire(SPACE, 1) == 0, "it is deleted"
    assert east.get_many(SPACE, 1, [user]) == [None]
    done = rollback(backends, to=None, actor="me", reason="worse")
    assert re.search(full, done.regions["east"])
    assert state(0).offset == offset
    free_bytes[0] = 2**40
    drain("east", backends.log, east)
    assert {store.get_many(SPACE, 3, [user])[0] for store in backends.stores.values()} == {newest}
    assert served(backends) == {done.release.id}


def test_a_region_far_behind_holds_up_no_rollback(
    backends: Backends, monkeypatch: pytest.MonkeyPatch
) -> None:
    """West's worker is not there and its lag would take longer than anybody waits."""
    promoted(backends, 1)
    promoted(backends, 2)
    monkeypatch.setattr("vista.delivery.release.DRAIN_S", 0.0)
    monkeypatch.setattr("vista.delivery.worker.MAX_BATCH_BYTES", 1)
    for bucket in range(BUCKETS):
        backends.log.append(bucket, [record(user, 99, epoch=1) for user in users_of(bucket, 3)])
    drain("east", backends.log, backends.stores["east"])
    with pytest.raises(RegionNotReadyError, match="not complete in west"):
        promoted(backends, 3)
    done = rollback(backends, to=None, actor="me", reason="worse")
    assert "records behind after 0 s: its worker goes on" in done.regions["west"]
    drain("west", backends.log, backends.stores["west"])
    assert RegionState.of("west", backends.stores["west"], BUCKETS).serves(done.release.id)
