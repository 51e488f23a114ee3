"""`make up EMBEDDED=1`: Airflow, Ray and MLflow; what is killed comes back, at the end nothing is left."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from dag_runs import RUN_S, Dags
from local_stack import HEAL_S, MOST_MB, ROOT, Stack, heals, killed_and_healed

from infra.airflow import TRAINING_POOL
from infra.kept_secrets import SECRETS
from infra.processes import alive, descendants, memory_bytes, wait_until
from infra.services import guards_of
from infra.stack.layout import AIRFLOW_CLI
from infra.stack.supervisor import LOG_BYTES
from vista.jobs import ADOPT, RELEASE, SUMMARIES
from vista.runs import RunDirectory

NAMES = [
    "mlflow", "ray", "airflow-api-server", "airflow-scheduler", "airflow-dag-processor", "airflow-triggerer",
]  # fmt: skip

BEFORE_NEWEST = "2022-01-12"  # of the six days that the recipe smoke generates
UP_S = 90.0
"""Until all is ready, from empty folders, on a machine that does nothing else."""


@pytest.fixture(scope="module")
def stack(new_stack: Callable[[str], Stack]) -> Stack:
    found = new_stack("embedded")
    started_s = time.monotonic()
    said = found.make("up", "EMBEDDED=1")
    found.measured["up, s"] = round(time.monotonic() - started_s, 1)
    found.measured["memory, MB"] = memory_bytes(found.processes()) // 2**20
    assert "Airflow  http://127.0.0.1:" in said
    return found


def test_it_is_up_in_time_and_takes_little_memory(stack: Stack, full_size: bool) -> None:
    assert stack.measured["memory, MB"] <= MOST_MB
    assert not full_size or stack.measured["up, s"] <= UP_S


def test_status_shows_every_service(stack: Stack) -> None:
    lines = stack.make("status").splitlines()
    assert [line.split()[:2] for line in lines[1:-1]] == [[name, "ready"] for name in NAMES]
    assert lines[-1].endswith("the stack is up")
    pids = [int(line.split()[3]) for line in lines[1:-1]]
    assert all(map(alive, pids))
    assert len(set(pids)) == len(NAMES)


def test_a_second_one_is_refused_and_a_wrong_variable_too(stack: Stack) -> None:
    assert "is up: make status shows it, make down stops it" in stack.make("up", "EMBEDDED=1", code=2)
    assert "make up EMBEDED=...: it takes EMBEDDED" in stack.make("up", "EMBEDED=1", code=2)
    assert "SERVICE=kafka: there are mlflow, ray, airflow-" in stack.make("logs", "SERVICE=kafka", code=2)


def test_logs_follow_a_service(stack: Stack) -> None:
    command = [sys.executable, "-m", "infra.stack", "logs", "SERVICE=supervisor"]
    with subprocess.Popen(
        command, cwd=ROOT, env=stack.environment, stdout=subprocess.PIPE, text=True
    ) as following:
        assert following.stdout is not None
        assert following.stdout.readline().endswith(" UTC the stack starts, embedded\n")
        assert "mlflow ready: http://127.0.0.1:" in following.stdout.readline()
        following.terminate()


@pytest.mark.timeout(3_600)
def test_a_release_wakes_an_export_that_wakes_a_retraining_that_wakes_nothing(stack: Stack) -> None:
    """By the events of the assets. A refresh without the newest day releases a foundation; the export, with
    the deployment's values, takes it to that day; the retraining on that keeps the foundation."""
    dags = Dags.of(stack)
    dags.switch_on("export_summaries", "retrain_downstream", "production_refresh")
    refresh = dags.start("production_refresh", "chain", recipe="smoke", until=BEFORE_NEWEST)
    assert wait_until(lambda: refresh.works_on("prepare"), RUN_S), refresh.tasks()
    # only now: without the Variable the schedule makes no day of its own
    dags.airflow.call("POST", "/variables", {"key": "vista", "value": json.dumps({"recipe": "smoke"})})
    assert refresh.follow() == "success", refresh.tasks()
    dags.switch_off("production_refresh")
    first = RunDirectory.named(stack.runs, "chain").report_of("promote")
    (news,) = dags.news("production_refresh", "promote")
    named = {name: first["release"][name] for name in ("space", "epoch")}
    assert (news["name"], news["extra"]) == (
        "foundation_champion", {"release": first["release"]["id"], **named, "run": "chain"},
    )  # fmt: skip

    export = dags.woken_by(refresh, "promote", "export_summaries")
    assert export.follow() == "success", export.tasks()
    assert [job["metadata"]["task"] for job in export.jobs()] == ["prepare", ADOPT, *SUMMARIES]
    (folder,) = {job["metadata"]["run"] for job in export.jobs()}
    config = RunDirectory.named(stack.runs, folder).config()
    assert (config.recipe, config.warm_start, config.until) == ("smoke", True, "")

    retraining = dags.woken_by(export, "deliver", "retrain_downstream")
    assert retraining.follow() == "success", retraining.tasks()
    # the schedule, too, may have woken it for these summaries: before this one, since there is one at a time
    jobs = dags.jobs(dag="retrain_downstream", run=folder)
    assert [job["metadata"]["task"] for job in jobs] == [*RELEASE]
    second = RunDirectory.named(stack.runs, folder).report_of("promote")
    assert second["promoted"], second["reasons"]
    assert second["before"] == first["release"]
    assert second["release"]["epoch"] == first["release"]["epoch"] + 1
    assert dags.news("retrain_downstream", "promote") == []
    assert [run["dag_run_id"] for run in dags.runs_of("export_summaries")] == [export.name]
    dags.switch_off("export_summaries", "retrain_downstream")


def test_secrets_are_in_one_private_file_and_in_none_that_others_read(stack: Stack) -> None:
    secrets = json.loads((stack.path / SECRETS).read_text())
    keys = {f"airflow/{name} key" for name in ("fernet", "api", "jwt")}
    assert secrets.keys() == {"airflow/admin", "ray/token", *keys}
    assert (stack.path / SECRETS).stat().st_mode & 0o777 == 0o600
    shown = {f"{pid}": Path(f"/proc/{pid}/cmdline").read_text() for pid in stack.processes() if alive(pid)}
    shown |= {"environment": (stack.path / "environment").read_text()} | stack.logs()
    assert stack.secrets_in(shown) == []


def test_airflows_command_line_is_that_of_the_stack(stack: Stack) -> None:
    (pool,) = json.loads(stack.airflow("pools", "get", TRAINING_POOL, "--output", "json"))
    assert pool["slots"] == "1"
    assert (stack.path / AIRFLOW_CLI).stat().st_mode & 0o777 == 0o700  # it holds the keys


def test_a_long_log_is_cut_and_its_service_goes_on_writing(stack: Stack) -> None:
    log = stack.services()["mlflow"].log
    with log.open("ab") as file:
        file.write(b"filling the log\n" * (LOG_BYTES // 15))
    old = log.with_name("mlflow.log.1")
    assert wait_until(lambda: old.exists() and log.stat().st_size < LOG_BYTES, 60)
    assert old.stat().st_size > LOG_BYTES
    killed_and_healed(stack, "mlflow")  # it says something when it starts
    assert 0 < log.stat().st_size < LOG_BYTES
    assert b"filling" not in log.read_bytes()


def test_what_hangs_is_started_again_and_what_depends_on_it_is_left_alone(stack: Stack) -> None:
    before = stack.services()
    seen = before["airflow-api-server"]
    assert seen.guard is not None
    started_s = time.monotonic()
    for pid in descendants(seen.guard):
        os.kill(pid, signal.SIGSTOP)
    assert heals(stack, seen.name, seen.restarts + 1), stack.make("status", code=1)
    stack.measured["what hangs heals, s"] = round(time.monotonic() - started_s, 1)
    after = stack.services()
    assert {name for name in NAMES if after[name].pid != before[name].pid} == {seen.name}


@pytest.mark.parametrize("name", NAMES)
def test_what_is_killed_comes_back(stack: Stack, name: str) -> None:
    before, after = killed_and_healed(stack, name)
    assert after.address == before.address
    assert after.pid != before.pid


def test_a_killed_guard_takes_its_server_with_it(stack: Stack) -> None:
    before = stack.services()["ray"]
    assert before.guard is not None
    os.kill(before.guard, signal.SIGKILL)
    assert heals(stack, "ray", before.restarts + 1), stack.make("status", code=1)


def test_nothing_is_left_when_the_supervisor_is_killed_and_it_starts_where_it_was(stack: Stack) -> None:
    before, supervisor = stack.services(), stack.supervisor()
    processes, ports = stack.processes(), stack.ports()
    assert supervisor is not None
    os.kill(supervisor, signal.SIGKILL)
    assert wait_until(lambda: not stack.left_of(processes, ports), 120), stack.left_of(processes, ports)
    assert "no stack is up" in stack.make("status", code=1)
    stack.make("up", "EMBEDDED=1")
    after = stack.services()
    assert {name: seen.address for name, seen in after.items()} == {
        name: seen.address for name, seen in before.items()
    }


@pytest.mark.timeout(3_600)
def test_down_leaves_no_process_and_no_port_of_a_stack_that_works(stack: Stack) -> None:
    """Must-hold 9, with a job at work on Ray and a task that waits for it."""
    dags = Dags.of(stack)
    dags.switch_on("production_refresh")
    refresh = dags.start("production_refresh", "at-work", recipe="smoke")

    def drivers() -> set[int]:
        return {pid for pid in stack.processes() if b"train_foundation" in _command(pid).split(b"\0")}

    assert wait_until(lambda: bool(drivers()), RUN_S, every_s=0.2), refresh.tasks()
    processes, ports = stack.processes(), stack.ports()
    assert drivers() & processes
    assert len(ports) >= 4
    started_s = time.monotonic()
    stack.make("down")
    stack.measured["down, s"] = round(time.monotonic() - started_s, 1)
    assert stack.left_of(processes, ports) == []
    assert stack.supervisor() is None
    assert "no stack is up" in stack.make("down")


def test_an_up_that_is_stopped_leaves_nothing(new_stack: Callable[[str], Stack]) -> None:
    """As soon as there is something to leave."""
    stack = new_stack("stopped")
    command = [sys.executable, "-m", "infra.stack", "up", "EMBEDDED=1"]
    with subprocess.Popen(
        command, cwd=ROOT, env=stack.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as starting:
        assert wait_until(lambda: bool(guards_of(stack.path) or starting.poll()), HEAL_S, every_s=0.05)
        processes = stack.processes()
        starting.terminate()
        said, _ = starting.communicate()
    assert starting.returncode == 130
    assert said.splitlines()[-2:] == ["nothing runs", "interrupted"]
    kept = [json.loads(path.read_text()) for path in stack.path.glob("*/ports.json")]
    assert kept
    assert stack.left_of(processes, {port for ports in kept for port in ports}) == []
    assert stack.supervisor() is None


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # it ended just now
        return b""
