"""`make up`: everything on one machine; what is killed comes back, and nothing is left at the end."""

import json
import time
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest
from dag_runs import Dags
from local_stack import MOST_MB, Stack, heals, killed_and_healed
from sockets import LOOPBACK, listening

from infra.airflow import TRAINING_POOL
from infra.processes import memory_bytes, wait_until
from infra.servers import call, program

NAMES = [
    "postgres", "metastore", "hiveserver2", "kafka", "redis-east", "redis-west", "mlflow", "ray",
    "airflow-api-server", "airflow-scheduler", "airflow-dag-processor", "airflow-triggerer", "prometheus",
]  # fmt: skip
WORKERS = ["delivery-east", "delivery-west"]
UP_S = 240.0
"""Until all is ready, from empty folders, on a machine that does nothing else."""
pytestmark = pytest.mark.timeout(3_600)


@pytest.fixture(scope="module")
def stack(new_stack: Callable[[str], Stack]) -> Stack:
    found = new_stack("whole")
    started_s = time.monotonic()
    found.make("up")
    found.measured["up, s"] = round(time.monotonic() - started_s, 1)
    found.measured["memory, MB"] = memory_bytes(found.processes()) // 2**20
    return found


def test_it_is_up_in_time_and_takes_little_memory(stack: Stack, full_size: bool) -> None:
    assert stack.measured["memory, MB"] <= MOST_MB
    assert not full_size or stack.measured["up, s"] <= UP_S


def test_every_service_is_there(stack: Stack) -> None:
    services = stack.services()
    assert [*services] == NAMES + WORKERS
    assert {services[name].state for name in NAMES} == {"ready"}
    assert {services[name].state for name in WORKERS} == {"waiting"}  # nothing was delivered yet


def test_it_listens_on_loopback_only(stack: Stack) -> None:
    sockets = listening(stack.processes())
    assert len(sockets) >= len(NAMES) - 4
    assert {address for address, _ in sockets} <= LOOPBACK


def test_airflow_and_mlflow_keep_their_tables_in_postgres(stack: Stack) -> None:
    port = stack.services()["postgres"].address.rpartition(":")[2]
    for name, table in (("airflow", "dag_run"), ("mlflow", "experiments"), ("hive", '"TBLS"')):
        command = [program("psql"), "-h", "127.0.0.1", "-p", port, "-U", name, "-d", name, "-Atc"]
        environment = {"PGPASSFILE": str(stack.path / "postgres" / f"{name}.pgpass")}
        count = call([*command, f"SELECT count(*) >= 0 FROM {table}"], "SQL", environment=environment)
        assert count.strip() == "t"
    assert TRAINING_POOL in stack.airflow("pools", "list", "--output", "json")


def test_prometheus_asks_the_workers_and_has_the_alerts(stack: Stack) -> None:
    url = stack.services()["prometheus"].address

    def ask(what: str) -> Any:
        with urllib.request.urlopen(f"{url}/api/v1/{what}", timeout=30) as answer:
            return json.load(answer)["data"]

    def targets() -> set[str]:
        return {target["labels"]["instance"] for target in ask("targets")["activeTargets"]}

    workers = {stack.services()[name].address for name in WORKERS}
    assert wait_until(lambda: targets() == workers, 60), targets()
    (group,) = ask("rules")["groups"]
    assert "RegionLags" in {rule["name"] for rule in group["rules"]}


def test_a_refresh_then_sql_scores_and_a_rollback(stack: Stack) -> None:
    """What docs/guide shows by hand: two releases, the table by SQL, scores, and the first one again."""
    dags = Dags.of(stack)
    dags.switch_on("production_refresh", "check_delivery")
    for name in ("first", "second"):
        started_s = time.monotonic()
        run = dags.start("production_refresh", name, recipe="smoke")
        assert run.follow() == "success", run.tasks()
        stack.measured[f"{name} refresh of smoke, s"] = round(time.monotonic() - started_s, 1)
    assert all(stack.services()[name].state == "ready" for name in WORKERS)
    counts = "SELECT space, epoch, count(*) AS users FROM usable_summaries GROUP BY space, epoch"
    header, _, *rows = stack.sql(counts).splitlines()
    assert header.split() == ["space", "epoch", "users"]
    assert [row.split()[2] for row in rows] == ["120"] * 6
    assert "ParseException" in stack.sql("SELECT FROM", code=1)
    assert "no QUERY was given" in stack.sql("", code=2)
    releases = stack.vista("releases")
    served = json.loads(stack.vista("score", "--user", "7", "--candidates", "1,2,3"))
    assert served["release"] in releases
    assert len(served["scores"]) == 3
    stack.vista("rollback", "--reason", "the walk")
    back = json.loads(stack.vista("score", "--user", "7", "--candidates", "1,2,3"))
    assert back["release"] != served["release"]
    assert "the walk" in stack.vista("audit")
    assert dags.start("check_delivery", "after-rollback").follow() == "success"


def test_the_logs_of_a_day_hold_no_secret_and_no_traceback(stack: Stack) -> None:
    said = stack.logs()
    assert len(said) > len(NAMES)
    assert any("job-driver-" in log for log in said)  # what the refreshes said in Ray
    assert stack.secrets_in(said) == []
    traces = {
        log: text[start : start + 2_000]
        for log, text in said.items()
        if (start := text.find("Traceback (most recent call last)")) >= 0
    }
    assert not traces, traces


@pytest.mark.parametrize("name", NAMES)
def test_what_is_killed_comes_back(stack: Stack, name: str) -> None:
    before, after = killed_and_healed(stack, name)
    assert after.address == before.address


def test_everything_is_ready_again(stack: Stack) -> None:
    for name, seen in stack.services().items():
        if name in NAMES:  # what needs PostgreSQL may have ended with it, more than once
            assert heals(stack, name, seen.restarts), stack.make("status", code=1)
    stack.measured["memory after kills, MB"] = memory_bytes(stack.processes()) // 2**20
    assert stack.measured["memory after kills, MB"] <= MOST_MB


def test_down_leaves_no_process_and_no_port(stack: Stack) -> None:
    processes, ports = stack.processes(), stack.ports()
    assert len(ports) >= len(NAMES) - 3
    started_s = time.monotonic()
    stack.make("down")
    stack.measured["down, s"] = round(time.monotonic() - started_s, 1)
    assert stack.left_of(processes, ports) == []
