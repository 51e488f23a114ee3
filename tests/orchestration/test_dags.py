"""What Airflow's own services make of the DAGs: events, days, approvals, grids, alerts."""

import json
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from delivery_samples import SPACES, keep_report, publish_epoch
from rest_calls import start_run
from scripted_stages import REPORT, wait_for_signal
from stack import Stack, until

from infra.processes import wait_until
from vista.config import RefreshConfig, Settings
from vista.delivery.audit import audit_line
from vista.delivery.catalog import open_catalog
from vista.delivery.interfaces import Release
from vista.delivery.next_summaries import next_summaries
from vista.jobs import NoConfig
from vista.runs import RunDirectory

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1_200)]
SPACE = SPACES[0]
LOG = logging.getLogger(__name__)
FULL_SIZE_S, BUSY_S = 60.0, 600.0


def deliver(stack: Stack, number: int) -> str:
    """A run that has delivered the epoch of a day; from the second day on it leaves the rest to others. Its
    stages wait for the signal of its name, and the last one leaves the report that ends the run."""
    epoch, run_id = publish_epoch(stack.stages.place, as_of_us=1_000 * number), f"day-{number}"
    config = RefreshConfig(recipe="smoke", run_id=run_id, warm_start=number > 1)
    run = RunDirectory.open(stack.stages.place / "runs", config)
    keep_report(run, "train_foundation", {"adopted": number > 1})
    keep_report(run, "deliver", {"space": SPACE, "epoch": epoch.epoch, "delivered": True})
    keep_report(run, "ready", {})
    ended = "test $stage = clean_up && mv runs/$run/stages/ready.json runs/$run/stages/clean_up.json"
    stack.stages.do(run_id, f"{wait_for_signal(run_id)}\n{ended}\n{REPORT}")
    return run_id


def tell(stack: Stack, name: str) -> None:
    """An event of an asset, as an exporting task makes it."""
    assets = stack.airflow.call("GET", f"/assets?name_pattern={name}")["assets"]
    stack.airflow.call("POST", "/assets/events", {"asset_id": assets[0]["id"], "extra": {}})


def runs_of(stack: Stack, dag: str) -> list[dict[str, Any]]:
    answer = stack.airflow.call("GET", f"/dags/{dag}/dagRuns?order_by=run_after")
    return list(answer["dag_runs"])


def test_five_events_during_one_run_lose_no_range(stack: Stack, full_size: bool) -> None:
    """Must-hold 7: five ranges are delivered while the consumer works; all are processed in time, by a run
    that was not told of them."""
    settings = Settings.from_environment(stack.stages.environment)
    stack.stages.signal(deliver(stack, 1))
    with closing(open_catalog(settings.catalog_url)) as catalog:
        first = Release(id="r-1", space=SPACE, epoch=1, foundation="f", downstream="d")
        catalog.swap_release(None, first, audit_line("promote", "me", ""))
    run = RunDirectory.named(settings.runs, "day-1")
    keep_report(run, "clean_up", {})
    stack.airflow.call("PATCH", "/dags/retrain_downstream", {"is_paused": False})
    busy = deliver(stack, 2)
    tell(stack, "summaries")
    until(lambda: bool(stack.jobs(run=busy, task="retrain_downstream")), "a run of the consumer")
    for number in range(3, 8):
        stack.stages.signal(deliver(stack, number))
        tell(stack, "summaries")
    last_s = time.monotonic()
    assert next_summaries(NoConfig(), settings).epochs == (2, 3, 4, 5, 6, 7)
    stack.stages.signal(busy)
    limit_s = FULL_SIZE_S if full_size else BUSY_S

    def processed() -> bool:
        return next_summaries(NoConfig(), settings).watermark_us == 7_000

    left_s = limit_s - (time.monotonic() - last_s)
    assert wait_until(processed, left_s, every_s=1.0), runs_of(stack, "retrain_downstream")
    LOG.info("five ranges were processed %.1f s after the last event", time.monotonic() - last_s)
    trained = [job["metadata"]["run"] for job in stack.jobs(task="retrain_downstream")]
    assert trained == ["day-2", "day-7"], "the newest run reads all ranges up to it"
    assert next_summaries(NoConfig(), settings).epochs == ()


def test_a_run_with_nothing_to_do_skips_the_rest(stack: Stack) -> None:
    path = start_run(stack.airflow, "retrain_downstream", "idle", {})
    until(lambda: stack.airflow.call("GET", path)["state"] == "success", "the end of an idle run")
    states = {
        task["task_id"]: task["state"]
        for task in stack.airflow.call("GET", f"{path}/taskInstances")["task_instances"]
    }
    assert set(states.values()) == {"skipped"}, states


def test_a_backfill_of_three_days_is_three_runs_and_a_rerun_is_the_same_ones(stack: Stack) -> None:
    """Must-hold 8, Airflow's part: a run per day, oldest first, one at a time; a day's run has one name."""
    names = [f"one_day-2022-01-{day}" for day in (11, 12, 13)]
    for name in names:
        stack.stages.do(name, f"echo $run >> order; {REPORT}")
    asked = {
        "dag_id": "one_day", "from_date": "2022-01-11T00:00:00Z", "to_date": "2022-01-13T00:00:00Z",
        "dag_run_conf": {"recipe": "smoke"}, "max_active_runs": 1, "reprocess_behavior": "completed",
    }  # fmt: skip

    def backfilled() -> list[dict[str, Any]]:
        return [run for run in runs_of(stack, "one_day") if run["run_type"] == "backfill"]

    for _ in range(2):
        path = f"/backfills/{stack.airflow.call('POST', '/backfills', asked)['id']}"
        until(lambda: stack.airflow.call("GET", path)["completed_at"] is not None, path)  # noqa: B023
    assert [run["state"] for run in backfilled()] == ["success"] * 6
    assert sorted(run["partition_key"] for run in backfilled()) == sorted(2 * [name[8:] for name in names])
    assert (stack.stages.place / "order").read_text().split() == 2 * names
    configs = [json.loads(job["metadata"]["config"]) for job in stack.jobs(dag="one_day")]
    assert [config["until"] for config in configs] == 2 * [name[8:] for name in names]
    assert {config["recipe"] for config in configs} == {"smoke"}


@contextmanager
def variable(stack: Stack, key: str, value: str) -> Iterator[None]:
    stack.airflow.call("POST", "/variables", {"key": key, "value": value})
    yield
    stack.airflow.call("DELETE", f"/variables/{key}")


def heard_that_it_waits(stack: Stack, run: str) -> bool:
    """Until then Airflow takes a task that goes on for one that ended without a word, and asks again."""
    said = stack.airflow.services["scheduler"].log.read_text().splitlines()
    task = f"task_id='approve_promotion', run_id='{run}'"
    return any("Received executor event with state success" in line and task in line for line in said)


@pytest.mark.parametrize(("answer", "option"), [("Approve", "--approved-by"), ("Reject", "--rejected-by")])
def test_a_promotion_waits_for_a_person_s_word(stack: Stack, answer: str, option: str) -> None:
    name = f"asks-{answer.lower()}"
    stack.stages.do(name, REPORT)
    with variable(stack, "vista_approval", "true"):
        path = start_run(stack.airflow, "one_release", name, {"run_id": name})
        approval = f"{path}/taskInstances/approve_promotion"
        until(lambda: stack.airflow.call("GET", approval)["state"] == "awaiting_input", "the question")
        question = stack.airflow.call("GET", f"{approval}/-1/hitlDetails")
        assert "- it is better" in question["body"]
        assert stack.jobs(run=name, task="promote") == []
        until(lambda: heard_that_it_waits(stack, name), "the scheduler")
        stack.airflow.call("PATCH", f"{approval}/-1/hitlDetails", {"chosen_options": [answer]})
        until(lambda: stack.airflow.call("GET", path)["state"] == "success", "the end")
    (promote,) = stack.jobs(run=name, task="promote")
    assert promote["entrypoint"].endswith(f"{option} admin")
    assert len(stack.jobs(run=name, task="clean_up")) == 1


def test_a_grid_is_a_job_per_cell_one_after_the_other(stack: Stack) -> None:
    stack.airflow.call("PATCH", "/dags/experiments", {"is_paused": False})
    stack.stages.do("g1", f'mkdir running || exit 1; echo "$stage $*" >> cells; rmdir running; {REPORT}')
    conf = {"grid": "g1", "seeds": "4, 8", "widths": "16", "lengths": "50,100"}
    path = start_run(stack.airflow, "experiments", "g1", conf)
    until(lambda: stack.airflow.call("GET", path)["state"] in ("success", "failed"), "the grid")
    assert stack.airflow.call("GET", path)["state"] == "success"
    *cells, last = (stack.stages.place / "cells").read_text().splitlines()
    shapes = [(seeds, length) for seeds in (4, 8) for length in (50, 100)]
    assert sorted(cells) == sorted(
        f"grid_cell -m vista grid_cell --grid g1 --recipe generated --data-dir  --until  --seeds {seeds} "
        f"--width 16 --max-uih {length} --seed 0"
        for seeds, length in shapes
    )
    assert last.startswith("grid -m vista grid --grid g1 ")


def test_whoever_is_named_is_told_of_a_task_that_failed_for_good(stack: Stack) -> None:
    posted: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}/"
        connection = {"connection_id": "vista_alerts", "conn_type": "generic", "host": url}
        stack.airflow.call("POST", "/connections", connection)
        try:
            run = stack.trigger("told", 'echo "error: the disk is full" >&2; exit 1')
            run.until_state("failed")
            until(lambda: bool(posted), "the alert")
        finally:
            stack.airflow.call("DELETE", "/connections/vista_alerts")
            server.shutdown()
            thread.join()
    ((message),) = posted
    assert (message["dag"], message["run"], message["task"]) == ("one_stage", "told", "prepare")
    assert (message["attempt"], message["reason"]) == (2, "stage prepare failed: the disk is full")
