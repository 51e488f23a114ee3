"""The operator and its trigger against a real Ray head: submissions, log lines, failures, retries."""

import asyncio
import json
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from conftest import RealHead, name_head, running_head
from cut import Network
from running import attach_or_submit, event_of, follow, lines, run, trigger_of
from scripted_stages import REPORT, wait_for_signal

from vista.config import RefreshConfig
from vista.errors import BackendError
from vista.jobs import STAGES
from vista.orchestration import trigger as trigger_module
from vista.orchestration.operator import entrypoint, submission_id
from vista.orchestration.ray_jobs import JobState, RayJobs
from vista.orchestration.trigger import LogLines, RayJobTrigger

pytestmark = pytest.mark.usefixtures("metadata_database")
WAIT_S = 120.0


def find(ray: RealHead, name: str) -> JobState | None:
    async def ask() -> JobState | None:
        async with RayJobs(ray.url, ray.token) as jobs:
            return await jobs.find(name)

    return asyncio.run(ask())


def jobs_of(ray: RealHead, run: str) -> list[dict[str, Any]]:
    """All that Ray shows of a run's jobs, oldest first."""

    async def ask() -> str:
        async with RayJobs(ray.url, ray.token) as jobs:
            return (await jobs._request("GET", "/api/jobs/"))[1]

    found = [job for job in json.loads(asyncio.run(ask())) if job["metadata"].get("run") == run]
    return sorted(found, key=lambda job: job["start_time"])


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0.1)


def test_a_refresh_in_order_with_a_killed_stage(ray: RealHead) -> None:
    """Every stage is one job, the killed one two; the conf reaches the jobs and no secret does."""
    ray.stages.do(
        "whole",
        "test $stage != deliver || test -e whole-again || { touch whole-again; kill -9 $$; }\n"
        'echo "2026-01-01 00:00:00,000 vista.data.prepare working on $stage"\n' + REPORT,
    )
    result, screen = run({"recipe": "smoke", "run_id": "whole", "seeds": 8, "data_dir": "/some where/it's"})
    assert result["state"] == "success"
    assert re.findall(r"(\w+): finished in", screen) == list(STAGES)
    for stage in STAGES:
        assert f"{stage}: started" in screen
        assert f"vista.data.prepare: working on {stage}" in screen
    assert '"delivered"' not in screen
    assert "stage deliver failed: its process was killed by signal 9: out of memory" in screen
    assert screen.count("trying again") == 1
    jobs = jobs_of(ray, "whole")
    stages = list(STAGES)
    stages.insert(stages.index("deliver"), "deliver")
    assert [job["metadata"]["task"] for job in jobs] == stages
    assert [job["metadata"]["try"] for job in jobs if job["metadata"]["task"] == "deliver"] == ["1", "2"]
    assert {job["metadata"]["map_index"] for job in jobs} == {"-1"}
    assert len({job["runtime_env"]["working_dir"] for job in jobs}) == 1
    for job in jobs:
        assert ray.token not in json.dumps(job)
        assert set(job["runtime_env"]) == {"working_dir"}
        config = RefreshConfig.model_validate_json(job["metadata"]["config"])
        assert (config.recipe, config.seeds, config.run_id) == ("smoke", 8, "whole")
        assert "--seeds 8" in job["entrypoint"]
        assert """--data-dir '/some where/it'"'"'s'""" in job["entrypoint"]


def test_input_error_fails_at_once(ray: RealHead) -> None:
    ray.stages.do("input", 'echo "error: no file at /nowhere: set data_dir" >&2; exit 2')
    result, screen = run({"run_id": "input"})
    reason = "stage prepare failed: no file at /nowhere: set data_dir"
    assert (result["state"], result["failure"]) == ("failed", {"stage": "prepare", "reason": reason})
    assert len(jobs_of(ray, "input")) == 1
    assert "trying again" not in screen


def test_other_failures_are_retried_under_a_new_name(ray: RealHead) -> None:
    ray.stages.do("full", 'echo "error: the log is full" >&2; exit 1')
    result, screen = run({"run_id": "full", "data_dir": None})  # as the form sends a text that was emptied
    assert result["failure"]["reason"] == "stage prepare failed: the log is full"
    assert len(jobs_of(ray, "full")) == 2
    assert screen.count("trying again") == 1


def test_a_retry_goes_on_with_a_job_that_runs_or_has_succeeded(ray: RealHead) -> None:
    """The worker or the trigger was lost, not the job: it is adopted, never submitted twice."""
    ray.stages.do("adopted", wait_for_signal("adopted"))
    assert attach_or_submit("adopted-1", run="adopted") == 1
    assert attach_or_submit("adopted-1", run="adopted") == 1  # the same attempt, run again
    assert attach_or_submit("adopted-1", "adopted-2", run="adopted") == 1  # its retry
    ray.stages.signal("adopted")
    asyncio.run(event_of(trigger_of("adopted-1")))
    assert attach_or_submit("adopted-1", "adopted-2", "adopted-3", run="adopted") == 1  # after it succeeded
    assert len(jobs_of(ray, "adopted")) == 1


def test_a_cleared_task_starts_anew(ray: RealHead) -> None:
    """What a person cleared does not go on beside the new job, nor instead of it."""
    ray.stages.do("cleared", wait_for_signal("never"))
    assert attach_or_submit("cleared-1", run="cleared") == 1
    assert attach_or_submit("cleared-1", "cleared-2", first=2, run="cleared") == 2
    first, second = jobs_of(ray, "cleared")
    assert (first["status"], first["end_time"] <= second["start_time"]) == ("STOPPED", True)
    asyncio.run(trigger_of("cleared-2").on_kill())


def test_lines_come_while_the_job_runs_and_each_once(ray: RealHead, caplog: pytest.LogCaptureFixture) -> None:
    ray.stages.do(
        "lines", f"for i in $(seq 300); do echo line $i; done; {wait_for_signal('lines')}; printf last"
    )

    async def release() -> None:
        await until(lambda: "line 300" in lines(caplog))
        ray.stages.signal("lines")

    thread = threading.Thread(target=lambda: asyncio.run(release()))
    thread.start()
    event = follow("lines", caplog)
    thread.join()
    assert event == {"status": "SUCCEEDED", "exit_code": 0, "reason": "", "report": None}
    said = [line for line in lines(caplog) if re.fullmatch(r"line \d+|last", line)]  # Ray has its own too
    assert said == [*(f"line {number}" for number in range(1, 301)), "last"]


def test_deadline_stops_the_job(ray: RealHead, caplog: pytest.LogCaptureFixture) -> None:
    ray.stages.do("late", wait_for_signal("never"))
    event = follow("late", caplog, seconds=0.5)
    assert event == {
        "status": "DEADLINE", "exit_code": None, "report": None,
        "reason": "the execution deadline passed, so the job was stopped",
    }  # fmt: skip
    state = find(ray, "late")
    assert state is not None
    assert state.status == "STOPPED"


def test_on_kill_stops_this_job_alone(ray: RealHead) -> None:
    ray.stages.do("killed", wait_for_signal("killed"))

    for name in ("mine", "other"):
        attach_or_submit(name, run="killed")
    asyncio.run(trigger_of("mine", "mine-again").on_kill())  # the retry that goes on with it
    mine, other = find(ray, "mine"), find(ray, "other")
    assert mine is not None
    assert other is not None
    assert (mine.status, other.finished) == ("STOPPED", False)
    ray.stages.signal("killed")


def test_an_outage_is_ridden_out_and_a_longer_one_is_not(
    ray: RealHead, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network is cut while the job runs. The job is the same after it, and a retry after too long an
    outage goes on with it."""
    ray.stages.do("cut", f"echo begun; {wait_for_signal('cut')}")
    port = urlsplit(ray.url).port
    assert port is not None

    async def through_cuts() -> dict[str, Any]:
        network = Network(port)
        await network.mend()
        name_head(monkeypatch, network.url, ray.token)
        event = asyncio.create_task(event_of(trigger_of("cut-1", run="cut")))
        await until(lambda: "begun" in lines(caplog))
        await network.cut()
        await until(lambda: "asking again" in caplog.text)
        await network.mend()
        await until(lambda: "answers again" in caplog.text)
        monkeypatch.setattr(trigger_module, "OUTAGE_S", 1.0)
        await network.cut()
        return await event

    with caplog.at_level("INFO"):
        event = asyncio.run(through_cuts())
    assert event["status"] == "UNKNOWN"
    assert "cannot be reached" in event["reason"]
    assert "is the head running?; asked again for 1 s" in event["reason"]
    assert lines(caplog).count("begun") == 1
    name_head(monkeypatch, ray.url, ray.token)
    assert attach_or_submit("cut-1", "cut-2", run="cut") == 1
    ray.stages.signal("cut")


def test_out_of_memory_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray kills every worker of a head that may use next to nothing."""
    with running_head(
        tmp_path, RAY_memory_usage_threshold="0.001", RAY_memory_monitor_refresh_ms="250"
    ) as head:
        name_head(monkeypatch, head.url, head.token)
        head.stages.do("memory", wait_for_signal("never"))
        reason = follow("memory", caplog)["reason"]
    assert re.fullmatch(r"out of memory on Ray's node: Memory usage \d+B exceeded threshold of .*", reason)


def test_wrong_token_and_absent_head_are_messages(
    ray: RealHead, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    name_head(monkeypatch, ray.url, "wrong")
    result, _ = run({"run_id": "token"})
    assert "check the Airflow connection's host and token" in result["failure"]["reason"]
    assert "wrong" not in result["failure"]["reason"]
    assert "token" in follow("nothing", caplog)["reason"]

    async def ask() -> None:
        async with RayJobs("http://127.0.0.1:9", "") as jobs:
            await jobs.find("one")

    with pytest.raises(BackendError, match="cannot be reached"):
        asyncio.run(ask())


def test_what_a_job_found_out_comes_back() -> None:
    """Of several objects the newest, if it is whole; other lines stand around them."""
    lines = LogLines(0)
    assert lines.report() is None
    lines._take('{}\n{\n  "delivered": false\n}\nsaid } and {\n{\n  "delivered":')
    assert lines.report() is None
    lines._take(' true,\n  "regions": {\n  }\n}\nended\n')
    assert lines.report() == {"delivered": True, "regions": {}}


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


def test_trigger_survives_its_serialisation() -> None:
    path, arguments = trigger_of("one", "two", first=2, seconds=12.5).serialize()
    assert path == "vista.orchestration.trigger.RayJobTrigger"
    assert RayJobTrigger(**arguments).serialize() == (path, arguments)


def test_entrypoint_runs_where_the_node_says(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$@"\n')
    python.chmod(0o755)
    command = entrypoint("deliver", RefreshConfig(recipe="smoke", run_id="r", max_uih=3))
    assert "VISTA_PYTHON" in command
    with os.popen(f"export VISTA_PYTHON={python}; {command}") as output:
        assert output.read() == "-m vista deliver --recipe smoke --run-id r --max-uih 3\n"
