"""The two command lines: `python -m vista` and the variables of `make run`."""

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest

from infra.environment import ROOT
from infra.run import BACKENDS, check_release, install_s, only_run, parse, stage_seconds
from infra.run import main as run_main
from vista.__main__ import main
from vista.config import RefreshConfig, Settings
from vista.delivery.audit import audit_line
from vista.delivery.catalog import open_catalog
from vista.delivery.interfaces import Release
from vista.errors import InputError, StageError
from vista.jobs import STAGES
from vista.runs import RunDirectory
from vista.train.experiments.grids import table2


@pytest.fixture(autouse=True)
def _places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VISTA_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("VISTA_HOME", str(tmp_path / "home"))


def test_help_lists_the_jobs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {stage} " in shown for stage in STAGES)


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_has_an_option_for_every_field(stage: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([stage, "--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"--{name.replace('_', '-')} " in shown for name in RefreshConfig.model_fields)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["prepair"], ["prepair"]),
        (["prepare", "--recipes", "smoke"], ["--recipes"]),
        (["prepare", "--seeds", "many"], ["--seeds", "many"]),
        (["prepare", "--run-id", "r", "--seeds", "0"], ["--seeds", "0", "greater than or equal to 1"]),
        (["prepare", "--run-id", "r", "--seed", str(2**31)], ["--seed", "2147483647"]),
        (["prepare", "--run-id", "r", "--width", str(10**9)], ["--width", "4096"]),
        (["prepare", "--run-id", "r", "--max-uih", str(10**20)], ["--max-uih", "1000000"]),
        (["prepare", "--run-id", "r", "--learning-rate", "inf"], ["--learning-rate", "inf"]),
        (["prepare", "--run-id", "r", "--codec", "zip"], ["--codec", "zip", "bf16", "int8"]),
        (["prepare", "--run-id", "r", "--recipe", "kuairandd"], ["kuairandd", "movielens"]),
        (["prepare", "--run-id", "../r"], ["../r"]),
        (["prepare"], ["run_id"]),
        (["prepare", "--run-id", "latest"], ["latest", "link"]),
        (["promote", "--run-id", "../r", "--reason", "why"], ["../r"]),
        (["promote", "--run-id", "r", "--reason", " "], ["--reason"]),
        (["rollback", "--reason", " "], ["--reason"]),
        (["prepare", "--run-id", "r", "--recipe", "kuairand", "--data-dir", "/nowhere"], ["/nowhere"]),
        (["train_foundation", "--run-id", "r", "--recipe", "smoke"], ["prepare"]),
    ],
)
def test_unusable_input_is_a_message_and_exit_code_2(
    arguments: list[str], named: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "Traceback" not in shown.err
    assert [name for name in named if name not in shown.err] == []
    assert list(tmp_path.rglob("stages/*")) == []


def test_a_mistyped_recipe_does_not_use_up_the_run_id(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", "--run-id", "r", "--recipe", "smokee"]) == 2
    assert main(["prepare", "--run-id", "r", "--recipe", "smoke", "--width", "17"]) == 2
    assert main(["prepare", "--run-id", "r", "--recipe", "smoke"]) == 0


def test_a_damaged_report_of_a_stage_is_a_message(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    report = tmp_path / "runs" / "r" / "stages" / "retrain_downstream.json"
    report.parent.mkdir(parents=True)
    report.write_text('{"seconds": 1')
    assert main(["promote", "--run-id", "r", "--reason", "why"]) == 1
    assert f"error: {report} cannot be read (" in capsys.readouterr().err


def test_an_experiment_s_help_names_all_that_can_be_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["experiment", "--help"]) == 0
    shown = set(re.split(r"[\s,:;]+", capsys.readouterr().out))
    blocks = table2(Path("data")).blocks
    names = {block.data_set for block in blocks} | {arm.name for block in blocks for arm in block.arms}
    assert names - shown == set()


@pytest.mark.parametrize(
    ("regions", "named"),
    [
        ("east", "'east=...' as its part 1"),
        ("=sqlite:///x", "'=...' as its part 1"),
        ("a=,b=sqlite:///x", "'a=...' as its part 1"),
        ("a=sqlite:///x,a=sqlite:///y", "'a=...' as its part 2"),
        ("a=redis://vista:1,hunter/2@host:6379", "'...=...' as its part 2"),
        ("a=redis://vista:hunter2@host:6379,a=sqlite:///y", "'a=...' as its part 2"),
    ],
)
def test_regions_that_cannot_be_read_are_named(
    regions: str, named: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without what may be a password."""
    monkeypatch.setenv("VISTA_REGIONS", regions)
    assert main(["releases"]) == 2
    said = capsys.readouterr().err
    assert f"VISTA_REGIONS holds {named}" in said
    assert "hunter" not in said


def test_a_comma_in_the_name_of_the_home_is_no_region() -> None:
    settings = Settings.from_environment({"VISTA_HOME": "/srv/vista,eu"})
    assert settings.region_urls == {
        "east": "sqlite:////srv/vista,eu/stores/east.db", "west": "sqlite:////srv/vista,eu/stores/west.db",
    }  # fmt: skip


def test_an_empty_variable_counts_as_not_set() -> None:
    empty = dict.fromkeys(("VISTA_HOME", "VISTA_RUNS", "VISTA_REGIONS", "VISTA_CATALOG_URL"), "")
    assert Settings.from_environment(empty) == Settings.from_environment({})


def test_a_run_is_resumed_with_its_own_back_ends(tmp_path: Path) -> None:
    environment = {"VISTA_RUNS": str(tmp_path)}
    first = parse(["DATASET=smoke", "BACKENDS=real"], environment)
    assert first.backends == "real"
    assert first.home != parse(["DATASET=smoke"], environment).home
    RunDirectory.open(tmp_path, first.config).make_latest()
    (first.run.path / BACKENDS).write_text(first.backends)
    assert parse(["RESUME=1"], environment).home == first.home
    with pytest.raises(InputError, match="the run has BACKENDS=real, not embedded"):
        parse(["RESUME=1", "BACKENDS=embedded"], environment)


def test_a_place_that_cannot_hold_runs_is_a_message(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("VISTA_RUNS", str(tmp_path / "file"))
    assert main(["prepare", "--recipe", "smoke", "--run-id", "r"]) == 1
    assert "file" in (shown := capsys.readouterr().err)
    assert "writable" in shown


def test_a_run_never_changes_its_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", "--recipe", "smoke", "--run-id", "r"]) == 0
    assert json.loads(capsys.readouterr().out)["dataset"]["users"] == 120
    assert main(["prepare", "--recipe", "smoke", "--run-id", "r", "--seed", "1"]) == 2
    assert "other values" in capsys.readouterr().err


def test_a_finished_stage_is_not_done_again(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    arguments = ["prepare", "--recipe", "smoke", "--run-id", "r"]
    with caplog.at_level("INFO", "vista"):
        assert main(arguments) == 0
        first = capsys.readouterr().out
        assert caplog.records
        caplog.clear()
        assert main(arguments) == 0
    assert capsys.readouterr().out == first
    assert caplog.records == []


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["SEEDS"], ["'SEEDS'", "NAME=VALUE"]),
        (["SEDES=3"], ["SEDES=3", "SEEDS"]),
        (["RUN_ID=x"], ["RUN_ID=x", "DATASET"]),
        (["SEEDS=0"], ["SEEDS=0", "greater than or equal to 1"]),
        (["SEEDS=x"], ["SEEDS=x", "integer"]),
        (["DATASET=netflix"], ["netflix", "kuairand"]),
        (["DATASET=smoke", "WIDTH=17"], ["width 17", "heads 2"]),
        (["RESUME=1"], ["no earlier run"]),
        (["DATASET=smoke", "BACKENDS=hive"], ["BACKENDS=hive", "embedded, real"]),
        (["DATASET=events", "DATA_DIR=no/such/folder"], ["DATA_DIR=", "no/such/folder", "files of events"]),
        (["DATASET=kuairand"], ["DATA_DIR= is not a folder"]),
        (["DATASET=smoke", "WORKERS=1000"], ["WORKERS=1000", "cores", "at most"]),
        (["DATASET=smoke", "RECENT_TAIL=41"], ["error: recent_tail 41 is more than max_uih 40"]),
    ],
)
def test_unusable_variables_of_make_run(
    arguments: list[str], named: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run_main(arguments) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: ")
    assert [name for name in named if name not in shown] == []
    assert list(tmp_path.iterdir()) == []


def test_a_launch_and_its_resumption_have_one_configuration(tmp_path: Path) -> None:
    environment = {"VISTA_RUNS": str(tmp_path), "VISTA_HOME": str(tmp_path / "home")}
    first = parse(["DATASET=smoke", "SEEDS=8", "DATA_DIR=some/where"], environment)
    assert (first.config.recipe, first.config.seeds) == ("smoke", 8)
    assert first.config.data_dir == str(Path("some/where").absolute())
    assert list(tmp_path.iterdir()) == []
    RunDirectory.open(first.runs, first.config).make_latest()
    assert parse(["RESUME=1"], environment).config == first.config
    assert parse(["RESUME=1", "DATASET=smoke", "SEEDS=8"], environment).config == first.config
    assert parse(["RESUME=1", "DATA_DIR=some/where", "SEEDS=08"], environment).config == first.config
    with pytest.raises(InputError, match="seeds=8, not 9"):
        parse(["RESUME=1", "SEEDS=9"], environment)
    with pytest.raises(InputError, match=r"data_dir=.*where, not .*other"):
        parse(["RESUME=1", "DATA_DIR=some/other"], environment)
    (tmp_path / "latest" / "config.json").write_text("{")
    with pytest.raises(StageError, match=r"latest/config\.json cannot be read .* start a new run"):
        parse(["RESUME=1"], environment)


def test_a_launch_that_another_run_keeps_out_leaves_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("infra.run.OTHER_RUN_STOPS_S", 0.5)
    (tmp_path / "home").mkdir()
    with (tmp_path / "home" / "run.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert run_main(["DATASET=smoke"]) == 2
    assert "another run uses" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


def test_an_airflow_that_ends_before_ray_is_ready_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told to go on by a pipe that nobody reads any more."""
    airflow = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"], stdin=subprocess.PIPE)
    head = SimpleNamespace(stop=lambda: None, guard=SimpleNamespace(poll=lambda: None))
    for name, stands_in in (
        ("start_ray_head", lambda *_: head),
        ("wait_for", lambda *_: airflow.wait()),
        ("_start_airflow", lambda *_: airflow),
        ("_stopping", lambda: None),
    ):
        monkeypatch.setattr(f"infra.run.{name}", stands_in)
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert run_main(["DATASET=smoke"]) == 1
    finally:
        signal.signal(signal.SIGTERM, before)
    assert "Airflow ended with exit code 3 in the middle of the run" in capsys.readouterr().err


def test_who_waits_is_told_for_whom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("infra.run.OTHER_RUN_STOPS_S", 0.1)
    home, run = tmp_path / "home", tmp_path / "runs" / "the first"
    who = f"another run (process {os.getpid()}, {run})"
    with only_run(home, run):
        assert run_main(["DATASET=smoke"]) == 2
    shown = capsys.readouterr()
    assert f"waiting 0 s at most for {who} to end" in shown.out
    assert "run.log" not in shown.out, "no run was made"
    assert f"error: {who} uses {home}: wait for it" in shown.err
    ended = subprocess.Popen(["true"])
    ended.wait()
    with (home / "run.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        held.write(f"{ended.pid} {run}")
        held.flush()
        assert run_main(["DATASET=smoke"]) == 2
    assert f"what the ended process {ended.pid} has started, {run}" in capsys.readouterr().out


def test_an_interrupted_wait_has_begun_no_run(tmp_path: Path) -> None:
    """RESUME=1 would have gone on with the other one."""
    with only_run(tmp_path / "home"):
        command = [sys.executable, "-m", "infra.run", "DATASET=smoke"]
        waits = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert waits.stdout is not None
        while "waiting 60 s at most for" not in waits.stdout.readline():
            assert waits.poll() is None, "it waited for nobody"
        waits.send_signal(signal.SIGINT)
        _, said = waits.communicate(timeout=60)
    assert (waits.returncode, said) == (130, "interrupted; no run was begun\n")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("dataset", "named"),
    [
        ("movielens", "ratings.csv"),
        ("kuairand", "log_standard_*.csv"),
        ("amazon_electronics", "train.csv"),
        ("events", "events.yaml"),
    ],
)
def test_a_folder_without_the_files_of_the_source_is_refused_before_anything_starts(
    dataset: str, named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "other.txt").touch()
    assert run_main([f"DATASET={dataset}", f"DATA_DIR={tmp_path / 'data'}"]) == 2
    shown = capsys.readouterr()
    assert shown.err.count(named) >= 1
    assert shown.err.count("error: ") == 1
    assert "DATA_DIR= (--data-dir)" in shown.err or dataset == "events"
    assert shown.out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_run_does_not_replace_the_release_of_other_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An exported VISTA_HOME gave the release of the generated data away to a run of `events`."""
    places = {"VISTA_RUNS": str(tmp_path / "runs"), "VISTA_HOME": str(tmp_path / "home")}
    release = Release(id="r-1", space="generated-2f76f6d5", epoch=1, foundation="f", downstream="d")
    with closing(open_catalog(f"sqlite:///{tmp_path / 'home' / 'catalog.db'}")) as catalog:
        catalog.swap_release(None, release, audit_line("promote", "me", "", before="", after="r-1"))
    data = tmp_path / "data"
    data.mkdir()
    (data / "a.csv").write_text("u,i,t,y\n1,1,1700000000,1\n")
    (data / "events.yaml").write_text("user: u\nitem: i\ntime: t\ntime_unit: s\nlabel: y\n")
    for recipe, arguments in (("events", [f"DATA_DIR={data}"]), ("smoke", [])):
        assert run_main([f"DATASET={recipe}", *arguments]) == 2
        shown = capsys.readouterr()
        assert f"of recipe {recipe} on the deployment {tmp_path / 'home'}" in shown.out
        assert shown.err == (
            f"error: VISTA_HOME={tmp_path / 'home'} serves release r-1 of space generated-2f76f6d5, made of "
            f"other data than those of {recipe}, whose run would replace it: unset VISTA_HOME, or set it to "
            "another folder\n"
        )
    assert not (tmp_path / "runs").exists()
    for of_the_same_data in ("generated", "incremental"):
        check_release(parse([f"DATASET={of_the_same_data}"], places), {})


def test_a_stage_took_what_it_took_when_it_was_done(tmp_path: Path) -> None:
    """A resumed run showed the second in which it found that a stage is done."""
    run = RunDirectory.open(tmp_path, RefreshConfig(recipe="smoke", run_id="r"))
    for name, seconds in (("train_foundation", 20.5), ("prepare", 3.25)):
        run.keep_stage_report(name, RefreshConfig(), seconds=seconds)
    assert [(one.name, one.seconds) for one in stage_seconds(run)] == [
        ("prepare", 3.25),
        ("train_foundation", 20.5),
    ]


def test_how_long_the_installation_took_is_known_or_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("infra.run.ROOT", tmp_path)
    assert install_s() is None
    for name, content in ((".venv", "20.04\n"), (".venv-airflow", "")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "installed").write_text(content)
    assert install_s() is None, "made by hand, and touched"
    (tmp_path / ".venv-airflow" / "installed").write_text("1.5")
    assert install_s() == 21.5


def test_a_warm_start_from_nothing_is_refused_before_anything_starts(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run_main(["DATASET=smoke", "WARM_START=1"]) == 2
    assert "error: warm_start: nothing is released in " in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_place_that_cannot_hold_a_run_of_make_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("VISTA_RUNS", str(tmp_path / "file"))
    assert run_main(["DATASET=smoke", "DATA_DIR=~nobody-has-this-name/x"]) == 1
    assert "writable" in capsys.readouterr().err
