"""The operator and its trigger against a stand-in head: submissions, log lines, failures, retries."""

import asyncio
import importlib
import io
import json
import logging
import os
import signal
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG
from stand_in_head import TOKEN, Head

import dags.production_refresh
from vista.config import RefreshConfig
from vista.errors import BackendError
from vista.jobs import STAGES
from vista.orchestration import ray_jobs
from vista.orchestration import trigger as trigger_module
from vista.orchestration.embedded import run_dag
from vista.orchestration.operator import entrypoint, submission_id
from vista.orchestration.packaging import package
from vista.orchestration.ray_jobs import RayJobs
from vista.orchestration.trigger import RayJobTrigger

pytestmark = pytest.mark.usefixtures("metadata_database")


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trigger_module, "POLL_S", 0.05)
    monkeypatch.setattr(ray_jobs, "ASK_AGAIN_S", 0.05)


def fresh_dag() -> DAG:
    """Airflow keeps the conf of a `dag.test` in the DAG's params, so every run gets its own."""
    dag: DAG = importlib.reload(dags.production_refresh).dag
    for task in dag.tasks:
        task.retry_delay = timedelta(seconds=0)
    return dag


def run(conf: dict[str, Any] | None = None) -> tuple[dict[str, Any], str]:
    """The result of the whole DAG and what the screen showed."""
    screen = io.StringIO()
    logger = logging.getLogger("vista.orchestration.trigger")
    before = list(logger.handlers)
    try:
        return run_dag(
            fresh_dag(), conf or {"recipe": "smoke", "run_id": "r"}, screen, time.monotonic()
        ), screen.getvalue()
    finally:
        logger.handlers = before


def follow(
    head: Head, script: str, caplog: pytest.LogCaptureFixture, seconds: float = 60.0
) -> dict[str, Any]:
    """Submit one job and run the trigger to its event; the job's lines are in `caplog`."""
    head.stage_is(script)

    async def wait() -> dict[str, Any]:
        async with RayJobs(head.url, TOKEN) as jobs:
            await jobs.submit("one", entrypoint("prepare", RefreshConfig()), package(), {})
        waiting = RayJobTrigger("ray_default", "one", time.time() + seconds)
        async for event in waiting.run():
            payload: dict[str, Any] = event.payload
            return payload
        raise AssertionError("the trigger ended without an event")

    with caplog.at_level(logging.INFO, "vista.orchestration.trigger"):
        return asyncio.run(wait())


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "vista.orchestration.trigger"]


def test_every_stage_is_one_submission_in_order(head: Head) -> None:
    head.stage_is('echo "2026-01-01 00:00:00,000 vista.data.prepare working on $3"; echo "{}"')
    result, screen = run({"recipe": "smoke", "run_id": "r", "seeds": 8})
    assert result["state"] == "success"
    assert [stage["name"] for stage in result["stages"]] == list(STAGES)
    assert [job.request["metadata"]["task"] for job in head.jobs.values()] == list(STAGES)  # type: ignore[index]
    assert head.uploads == 1
    for stage in STAGES:
        assert f"{stage}: started" in screen
        assert f"vista.data.prepare: working on {stage}" in screen
    assert "{}" not in screen


def test_conf_reaches_the_job_and_no_secret_does(head: Head) -> None:
    run({"recipe": "smoke", "run_id": "r", "seeds": 8, "data_dir": "/some where/it's"})
    for job in head.jobs.values():
        asked = json.dumps(job.request)
        assert TOKEN not in asked
        assert set(job.request["runtime_env"]) == {"working_dir"}  # type: ignore[call-overload]
        config = RefreshConfig.model_validate_json(job.request["metadata"]["config"])  # type: ignore[index]
        assert (config.recipe, config.seeds, config.run_id) == ("smoke", 8, "r")
        assert "--seeds 8" in str(job.request["entrypoint"])
        assert """--data-dir '/some where/it'"'"'s'""" in str(job.request["entrypoint"])


def test_run_id_is_the_airflow_runs_name_by_default(head: Head) -> None:
    run({"recipe": "smoke"})
    names = {job.request["metadata"]["run"] for job in head.jobs.values()}  # type: ignore[index]
    assert len(names) == 1
    assert names.pop().startswith("manual__20")


def test_input_error_fails_at_once(head: Head) -> None:
    head.stage_is('echo "error: no file at /nowhere: set data_dir" >&2; exit 2')
    result, screen = run()
    assert result["state"] == "failed"
    assert result["failure"] == {
        "stage": "prepare",
        "reason": "stage prepare failed: no file at /nowhere: set data_dir",
    }
    assert len(head.jobs) == 1
    assert "trying again" not in screen


def test_other_failures_are_retried_under_a_new_name(head: Head) -> None:
    head.stage_is('echo "error: the log is full" >&2; exit 1')
    result, screen = run()
    assert result["failure"]["reason"] == "stage prepare failed: the log is full"
    assert len(head.jobs) == 2
    assert screen.count("trying again") == 1


def test_a_killed_stage_is_retried_and_the_run_goes_on(head: Head) -> None:
    head.stage_is(f'test "$3" != deliver || test -e {head.directory}/again || {{ '
                  f'touch {head.directory}/again; kill -9 $$; }}')  # fmt: skip
    result, screen = run()
    assert result["state"] == "success"
    assert len(head.jobs) == len(STAGES) + 1
    assert "stage deliver failed: its process was killed by signal 9; trying again" in screen


def test_a_head_that_is_still_starting_is_waited_for(head: Head) -> None:
    head.starting = 3
    result, screen = run()
    assert result["state"] == "success"
    assert len(head.jobs) == len(STAGES)
    assert "trying again" not in screen


def test_names_are_deterministic_and_distinct() -> None:
    names = {
        submission_id(*parts)
        for parts in [
            ("d", "r", "t", -1, 1), ("d", "r", "t", -1, 2), ("d", "r", "t", 0, 1), ("d", "r", "u", -1, 1),
            ("d", "s", "t", -1, 1), ("e", "r", "t", -1, 1),
        ]
    }  # fmt: skip
    assert len(names) == 6
    assert submission_id("d", "r", "t", -1, 1) in names


def test_operator_attaches_to_what_it_submitted_before(head: Head) -> None:
    head.stage_is("sleep 0.3")
    operator = fresh_dag().get_task("prepare")
    names = ["first", "second"]
    config = RefreshConfig(recipe="smoke", run_id="r")
    asyncio.run(operator._submit(names[:1], config, "run"))
    asyncio.run(operator._submit(names[:1], config, "run"))
    assert list(head.jobs) == ["first"]
    asyncio.run(operator._submit(names, config, "run"))
    assert list(head.jobs) == names
    assert head.jobs["first"].stopped


@pytest.mark.parametrize("characters", [None, 1, 40, 10_000])
def test_log_lines_come_once_each_even_if_the_tail_breaks(
    head: Head, caplog: pytest.LogCaptureFixture, characters: int | None
) -> None:
    head.tail_characters = characters
    event = follow(head, "for i in $(seq 300); do echo line $i; done; sleep 0.2; printf last", caplog)
    assert event == {"status": "SUCCEEDED", "exit_code": 0, "reason": ""}
    assert lines(caplog) == [*(f"line {number}" for number in range(1, 301)), "last"]


def test_lines_come_while_the_job_runs(head: Head, caplog: pytest.LogCaptureFixture) -> None:
    go_on = head.directory / "go_on"
    script = f"echo early; while ! test -e {go_on}; do sleep 0.05; done; echo late"

    def release() -> None:
        end_s = time.monotonic() + 30
        while "early" not in lines(caplog) and time.monotonic() < end_s:
            time.sleep(0.02)
        go_on.touch()

    thread = threading.Thread(target=release)
    thread.start()
    started_s = time.monotonic()
    event = follow(head, script, caplog)
    thread.join()
    assert event["status"] == "SUCCEEDED"
    assert lines(caplog) == ["early", "late"]
    assert time.monotonic() - started_s < 25


def test_deadline_stops_the_job(head: Head, caplog: pytest.LogCaptureFixture) -> None:
    event = follow(head, "exec sleep 60", caplog, seconds=0.5)
    assert event["status"] == "DEADLINE"
    assert "deadline" in event["reason"]
    assert head.jobs["one"].process.wait(10) == -signal.SIGTERM


def test_on_kill_stops_this_job_alone(head: Head) -> None:
    head.stage_is("exec sleep 60")

    async def kill() -> None:
        async with RayJobs(head.url, TOKEN) as jobs:
            for name in ("mine", "other"):
                await jobs.submit(name, entrypoint("prepare", RefreshConfig()), package(), {})
        await RayJobTrigger("ray_default", "mine", time.time() + 60).on_kill()

    asyncio.run(kill())
    assert head.jobs["mine"].process.wait(10) == -signal.SIGTERM
    assert head.jobs["other"].process.poll() is None


def test_trigger_survives_its_serialisation() -> None:
    path, arguments = RayJobTrigger("ray_default", "one", 12.5).serialize()
    assert path == "vista.orchestration.trigger.RayJobTrigger"
    assert TOKEN not in json.dumps(arguments)
    assert RayJobTrigger(**arguments).serialize() == (path, arguments)


def test_wrong_token_and_absent_head_are_messages(head: Head) -> None:
    async def find(url: str, token: str) -> None:
        async with RayJobs(url, token) as jobs:
            await jobs.find("one")

    with pytest.raises(BackendError, match=r"401.*check the Airflow connection's host and token"):
        asyncio.run(find(head.url, "wrong"))
    with pytest.raises(BackendError, match="cannot be reached"):
        asyncio.run(find("http://127.0.0.1:9", TOKEN))


def test_entrypoint_runs_where_the_node_says(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$@"\n')
    python.chmod(0o755)
    command = entrypoint("deliver", RefreshConfig(recipe="smoke", run_id="r", max_uih=3))
    assert "VISTA_PYTHON" in command
    with os.popen(f"export VISTA_PYTHON={python}; {command}") as output:
        assert output.read() == "-m vista deliver --recipe smoke --run-id r --max-uih 3\n"
