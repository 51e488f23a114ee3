"""`prune`: what old runs take up goes, what serves or may serve again stays, and so does what others read."""

import os
from pathlib import Path

import pytest
from delivery_samples import SPACES, deliver_here, publish_epoch, settings_of

from vista.__main__ import main
from vista.config import Frozen, RefreshConfig, Settings
from vista.delivery.interfaces import Epoch
from vista.delivery.regions import open_backends
from vista.delivery.release import promote
from vista.runs import RunDirectory

SPACE = SPACES[0]
DAYS_S = 40 * 24 * 3_600


class Exported(Frozen):
    """The part of an export's report that says where its epochs are."""

    space: str
    epochs: tuple[dict[str, str], ...]


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Runs of forty days ago: `first`, `second` and `third`, each of which was promoted in its turn, and
    `failed`, which ended before it exported anything."""
    for name in ("VISTA_REGIONS", "VISTA_CATALOG_URL", "VISTA_LOG_URL", "VISTA_WAREHOUSE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("VISTA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("VISTA_RUNS", str(tmp_path / "runs"))
    (tmp_path / "home").mkdir()
    settings = settings_of(tmp_path / "home").model_copy(update={"runs": tmp_path / "runs"})
    before = None
    for number, name in enumerate(("first", "second", "third"), start=1):
        epoch = publish_epoch(settings.home, as_of_us=1_000 * number, variant=number)
        deliver_here(settings.home, epoch, settings)
        train = old_run(settings, name, exported=epoch).path / "train"
        with open_backends(settings) as backends:
            done = promote(
                backends, space=SPACE, epoch=number, foundation=str(train / "foundation"),
                downstream=str(train / "downstream"), actor="a run", reason="better", instead_of=before,
            )  # fmt: skip
        before = done.release.id
    old_run(settings, "failed")
    return settings


def old_run(settings: Settings, name: str, *, exported: Epoch | None = None) -> RunDirectory:
    run = RunDirectory.open(settings.runs, RefreshConfig(run_id=name))
    for place in ("data/events", "train/foundation", "train/downstream"):
        (run.path / place).mkdir(parents=True)
        (run.path / place / "file").write_bytes(bytes(500_000))
    (run.path / "report.html").write_text("what was found")
    if exported is not None:
        report = Exported(space=exported.space, epochs=({"location": exported.location},))
        run.keep_stage_report("export_summaries", report, seconds=1.0)
    make_old(run)
    return run


def make_old(run: RunDirectory) -> None:
    for path in (*run.path.rglob("*"), run.path):
        written_s = path.lstat().st_mtime - DAYS_S
        os.utime(path, (written_s, written_s), follow_symlinks=False)


def whole(settings: Settings) -> set[str]:
    """The runs that have their data and weights."""
    paths = {path for path in settings.runs.iterdir() if (path / "report.html").exists()}
    return {path.name for path in paths if (path / "data").exists() and (path / "train").exists()}


def test_what_is_old_and_serves_nobody_is_deleted(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["prune", "--days", "30"]
    assert main(arguments) == 2
    assert "--reason is missing" in capsys.readouterr().err
    assert main([*arguments, "--dry-run"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "failed: 1.5 MB would be deleted",
        "first: 1.5 MB would be deleted",
        "3.0 MB of 2 runs would be deleted, 2 stay as they are",
    ]
    assert whole(settings) == {"failed", "first", "second", "third"}
    assert main([*arguments, "--reason", "the disk is full"]) == 0
    assert whole(settings) == {"second", "third"}, "what serves, and what a rollback would take"
    assert sorted(path.name for path in (settings.runs / "first").iterdir()) == [
        "config.json", "report.html", "stages",
    ]  # fmt: skip
    with open_backends(settings) as backends:
        line = backends.catalog.audit()[-1]
    assert (line.action, line.reason) == ("prune", "the disk is full")
    assert line.before == "3.0 MB of failed, first"
    capsys.readouterr()
    assert main([*arguments, "--dry-run"]) == 0
    assert capsys.readouterr().out.strip() == "0.0 MB of 0 runs would be deleted, 4 stay as they are"


def test_what_is_newer_or_the_newest_stays(settings: Settings) -> None:
    (settings.runs / "failed" / "train" / "foundation" / "file").write_text("it was resumed")
    RunDirectory(settings.runs / "first").make_latest()
    assert main(["prune", "--days", "30", "--reason", "x"]) == 0
    assert whole(settings) == {"failed", "first", "second", "third", "latest"}
    RunDirectory(settings.runs / "second").make_latest()
    make_old(RunDirectory(settings.runs / "failed"))
    assert main(["prune", "--days", "50", "--reason", "x"]) == 0
    assert {"failed", "first"} <= whole(settings)
    assert main(["prune", "--days", "30", "--reason", "x"]) == 0
    assert whole(settings) == {"second", "third", "latest"}


def test_data_that_a_run_that_stays_reads_are_kept(settings: Settings) -> None:
    """The cells of a grid share the data of one run; of an old cell its link goes, not what it points to."""
    failed = settings.runs / "failed"
    new = RunDirectory.open(settings.runs, RefreshConfig(run_id="cell"))
    new.data.symlink_to(failed / "data")
    cell = old_run(settings, "old-cell")
    for path in sorted(cell.data.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    cell.data.rmdir()
    cell.data.symlink_to(failed / "data")
    make_old(cell)
    assert main(["prune", "--days", "30", "--reason", "x"]) == 0
    assert (failed / "data" / "events" / "file").stat().st_size == 500_000
    assert not cell.data.is_symlink()
    assert not (settings.runs / "first" / "data").exists()


def test_runs_of_another_deployment_stay(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One folder of runs, two of deployments: what serves in the other one is not known here."""
    here = publish_epoch(settings.home, as_of_us=5_000, variant=5)
    elsewhere = here.model_copy(update={"location": f"{tmp_path}/other/warehouse/attempt=two"})
    old_run(settings, "theirs", exported=elsewhere)
    damaged = old_run(settings, "damaged", exported=elsewhere)
    (damaged.path / "stages" / "export_summaries.json").write_text("{")
    make_old(damaged)
    assert main(["prune", "--days", "30", "--reason", "x"]) == 0
    assert {"theirs", "damaged"} <= whole(settings)
    assert "first" not in whole(settings)


def test_without_runs_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VISTA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("VISTA_RUNS", str(tmp_path / "nowhere"))
    assert main(["prune", "--days", "30", "--dry-run"]) == 2
    assert f"{tmp_path}/nowhere is no folder of runs" in capsys.readouterr().err
    assert not (tmp_path / "home").exists()
