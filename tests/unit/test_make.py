"""What make and its launchers do with variables: those on its command line, VISTA_HOME and the like."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from infra.backends import HIVESERVER, servers_of
from infra.environment import ROOT, home_of, jobs_environment
from infra.processes import wait_until
from infra.run import only_run, parse
from infra.sql import asked, of_run
from infra.sql import main as sql_main
from infra.stack import layout
from infra.stack.state import Place
from infra.ui import PORT, store_of
from infra.ui import main as ui_main
from vista.config import Settings
from vista.errors import InputError


def arguments_of(*command: str) -> list[str]:
    """What the last command of a target gets from the shell."""
    make = ["make", "-n", "-o", "install", *command]
    outside = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    line = subprocess.check_output(make, cwd=ROOT, env=outside, text=True).splitlines()[-1]
    words = subprocess.check_output(["bash", "-c", f"printf '%s\\0' {line}"], text=True).split("\0")
    return words[3:-1]


@pytest.mark.parametrize(
    "folder", ["my events", "it's", "a;true b", "a (old) & b", 'a"b', "a*", "a\\b", "a #1", "x=y", ""]
)
def test_a_value_reaches_the_launcher_as_it_was_typed(folder: str) -> None:
    given = {f"DATA_DIR={folder}", "DATASET=events"}
    assert set(arguments_of("run", *given)) == given
    assert arguments_of("ui", "DATASET=smoke") == ["DATASET=smoke"]


def test_only_what_was_typed_is_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATASET", "events")
    assert arguments_of("run") == []


def test_the_page_is_that_of_the_deployment_which_the_run_has_made(tmp_path: Path) -> None:
    environment = {"VISTA_HOME": str(tmp_path / "home"), "VISTA_RUNS": str(tmp_path)}
    run = parse(["DATASET=smoke"], environment)
    run.home.mkdir()
    (run.home / "mlflow.db").touch()
    assert store_of(["DATASET=smoke"], environment) == run.home / "mlflow.db"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["DATASETS=smoke"], "make ui DATASETS=...: it takes DATASET, BACKENDS"),
        (["DATASET=netflix"], "DATASET=netflix does not exist: choose one of smoke"),
        (["DATASET="], "(VISTA_HOME names the folder): make run DATASET=generated first"),
    ],
)
def test_a_page_of_nothing_is_refused(
    arguments: list[str],
    named: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("VISTA_HOME", str(tmp_path))
    assert ui_main(arguments) == 2
    assert named in capsys.readouterr().err


def test_the_page_finds_a_free_port_and_ends_without_a_word(tmp_path: Path) -> None:
    """It announced the page of whoever had port 5000, and showed tracebacks after Ctrl-C."""
    (tmp_path / "mlflow.db").touch()
    command = [sys.executable, "-m", "infra.ui", "DATASET=smoke"]
    with socket.socket() as taken:
        with contextlib.suppress(OSError):  # somebody else has it: taken all the same
            taken.bind(("127.0.0.1", PORT))
            taken.listen()
        screen = tmp_path / "screen.txt"
        with screen.open("wb") as file:
            page = subprocess.Popen(
                command, cwd=ROOT, env=os.environ | {"VISTA_HOME": str(tmp_path)}, stdout=file, stderr=file,
                start_new_session=True,
            )  # fmt: skip
        try:
            assert wait_until(lambda: "Uvicorn running on" in screen.read_text(), 120)
        finally:
            os.killpg(page.pid, signal.SIGINT)  # as a terminal does
            code = page.wait(60)
    shown = screen.read_text()
    said = re.match(rf"port {PORT} is taken; MLflow is starting: (http://127\.0\.0\.1:\d+) answers", shown)
    assert said, shown
    assert f"Uvicorn running on {said[1]} " in shown
    assert "Traceback" not in shown
    assert code == 130


def test_an_empty_variable_counts_as_not_set() -> None:
    """Otherwise it would be the folder in which make was called."""
    empty = dict.fromkeys(("VISTA_HOME", "VISTA_RUNS", "VISTA_STACK"), "")
    run = parse(["DATASET=smoke"], empty)
    assert (run.home, run.runs) == (home_of("smoke", "embedded", {}), ROOT / "runs")
    assert Place.named(empty) == Place.named({})


def test_a_shell_in_which_another_deployment_was_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run, and the next stack, would have used the back ends of the first."""
    real = {"VISTA_CATALOG_URL": "hive://127.0.0.1:1/d", "VISTA_REGIONS": "east=redis://127.0.0.1:2"}
    for name, url in real.items():
        monkeypatch.setenv(name, url)
    embedded = jobs_environment(tmp_path, tmp_path / "a home", "sqlite:///m", {})
    assert Settings.from_environment(embedded).catalog_url == f"sqlite:///{tmp_path}/a home/catalog.db"
    assert real.items() <= jobs_environment(tmp_path, tmp_path, "sqlite:///m", real).items()
    layout.write_environment(tmp_path, embedded)
    shown = ["bash", "-c", f"source {tmp_path}/environment && env"]
    lines = subprocess.check_output(shown, text=True).splitlines()
    assert f"VISTA_HOME={tmp_path}/a home" in lines
    assert [line for line in lines if line.startswith("VISTA_") and line.partition("=")[0] in real] == []


def test_airflows_command_line_has_the_settings_of_its_services(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without them it made a deployment of its own in the home directory."""
    monkeypatch.setattr("infra.stack.layout.PROGRAM", Path("/usr/bin/env"))
    monkeypatch.delenv("VISTA_HOME", raising=False)
    (tmp_path / "airflow").mkdir()
    settings = {"AIRFLOW_HOME": f"{tmp_path}/a home", "AIRFLOW__CORE__FERNET_KEY": "it's $a key"}
    settings |= {"PGPASSFILE": "p", "PYTHONPATH": "q"}
    layout.write_airflow_cli(tmp_path, {**settings, "VISTA_HOME": "h"})
    path = tmp_path / layout.AIRFLOW_CLI
    assert path.stat().st_mode & 0o777 == 0o700, "it holds keys"
    seen = dict(line.split("=", 1) for line in subprocess.check_output([path], text=True).splitlines())
    assert settings.items() <= seen.items()
    assert "VISTA_HOME" not in seen
    assert subprocess.check_output([path, "echo", "two words", "b"], text=True) == "two words b\n"


def test_tables_of_a_run_that_goes_on_are_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its servers were taken for those of a launcher that was killed, which are to be ended."""
    monkeypatch.setattr("infra.run.OTHER_RUN_STOPS_S", 0.1)
    monkeypatch.setattr("infra.services.OTHERS_STOP_S", 0.1)
    monkeypatch.setattr("infra.services.guards_of", lambda place: {1})
    (servers_of(tmp_path) / HIVESERVER).mkdir(parents=True)
    with only_run(tmp_path), pytest.raises(InputError, match=r"another run .* uses .*: wait for it"):
        of_run(tmp_path, "SELECT 1")


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("DROP TABLE summaries", "use a JDBC client of your own"),
        ("drop table summaries", "make sql takes SELECT, WITH, SHOW"),
        ("-- SELECT\nDROP TABLE summaries", "may change something"),
        ("WITH x AS (SELECT 1) INSERT INTO t SELECT * FROM x", "without INSERT"),
        ("EXPLAIN ANALYZE CREATE TABLE t AS SELECT 1", "EXPLAIN ANALYZE"),
        ("SELECT 1; DROP TABLE summaries", "write one statement"),
        (" ; ", "no QUERY was given"),
    ],
)
def test_sql_that_may_change_something_is_refused(
    query: str, named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sql_main({"QUERY": query}) == 2
    assert named in capsys.readouterr().err


@pytest.mark.parametrize(
    "query",
    [
        "select 1",
        "(SELECT 1) UNION (SELECT 2)",
        "SELECT ';', 'INSERT' FROM `a;b`",
        "SHOW CREATE TABLE summaries",
        "DESC summaries",
        "describe formatted summaries",
        "EXPLAIN SELECT 1",
        "WITH x AS (SELECT 1) SELECT * FROM x",
    ],
)
def test_sql_that_asks_is_passed_on_without_its_semicolon(query: str) -> None:
    assert asked(f" {query} ; \n") == query


def test_no_two_test_files_have_one_name() -> None:
    """pytest refuses to collect two such files together, as `make test-faults` collects whole folders."""
    names = Counter(file.name for file in (ROOT / "tests").rglob("test_*.py"))
    assert [name for name, count in names.items() if count > 1] == []


@pytest.mark.parametrize("given", [[], ["DATA_DIR=/nowhere/it's"]])
def test_without_data_no_environment_is_made_for_the_peer(given: list[str], tmp_path: Path) -> None:
    peer = tmp_path / "peer"
    environment = {name: value for name, value in os.environ.items() if name != "DATA_DIR"}
    made = subprocess.run(
        ["make", "-o", "install", "bench-train", f"FUXICTR={peer}", *given],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    named = "".join(given).removeprefix("DATA_DIR=")
    assert made.returncode == 2
    assert (
        f"error: DATA_DIR='{named}' is no folder: name KuaiRand-Pure's, make bench-train DATA_DIR="
        in made.stderr
    )
    assert not peer.exists()


def test_a_limit_that_is_missed_does_not_keep_the_other_case_from_being_measured(tmp_path: Path) -> None:
    """A program that is told the case and fails stands in for the measurement."""
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text("#!/bin/sh\necho $3\ntest $3 = industrial\n")
    python.chmod(0o755)
    made = subprocess.run(
        ["make", "-o", "install", "bench-memory", f"COMPUTE={tmp_path}"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (made.returncode, made.stdout.split()) == (2, ["million", "industrial"])
