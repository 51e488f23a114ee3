"""What a real head cannot be made to do at will: break its log's tail after some characters, answer a
submission by 500 though it began it, have no agent yet, and count what is uploaded.
"""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException, TaskDeferred
from conftest import name_head
from running import attach_or_submit, event_of, follow, lines, prepare, run, trigger_of
from stand_in_head import TOKEN, Head

from vista.errors import BackendError
from vista.jobs import STAGES
from vista.orchestration import ray_jobs
from vista.orchestration import trigger as trigger_module
from vista.orchestration.trigger import RayJobTrigger
from vista.revision import git_revision

pytestmark = pytest.mark.usefixtures("metadata_database")


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trigger_module, "POLL_S", 0.05)
    monkeypatch.setattr(ray_jobs, "ASK_AGAIN_S", 0.05)


def test_code_is_uploaded_once_for_all_stages(head: Head) -> None:
    """A real head does not say how often."""
    result, _ = run({"recipe": "smoke", "run_id": "r"})
    assert result["state"] == "success"
    assert len(head.jobs) == len(STAGES)
    assert head.uploads == 1


def test_a_job_says_which_code_was_packed_for_it(head: Head) -> None:
    attach_or_submit("one")
    metadata = head.jobs["one"].request["metadata"]
    assert isinstance(metadata, dict)
    assert metadata["revision"] == git_revision() != "unknown"


def test_a_head_that_is_still_starting_is_waited_for(head: Head) -> None:
    """A real head has no agent for a second of its start."""
    head.starting = 3
    result, screen = run({"recipe": "smoke", "run_id": "r"})
    assert result["state"] == "success"
    assert len(head.jobs) == len(STAGES)
    assert "trying again" not in screen


def test_a_submission_whose_answer_is_lost_is_not_repeated(head: Head) -> None:
    """A real head's answer cannot be cut off between the job's start and the answer's end."""
    head.stage_is("exec sleep 60")
    head.lost_answers = 1
    assert attach_or_submit("one") == 1
    assert head.submissions == 1
    assert list(head.jobs) == ["one"]


def test_a_server_that_is_no_head_is_named(head: Head) -> None:
    """Airflow's own answers every path with its page."""
    head.is_page = True
    with pytest.raises(BackendError, match=f"{head.url} does not answer as Ray's dashboard does: check"):
        attach_or_submit("one")


@pytest.mark.parametrize("host", ["", "ray-head", "ray-head:8265", "10.0.0.1:8265", "https//ray-head"])
def test_a_host_that_is_no_url_is_refused_at_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, host: str
) -> None:
    """It was asked for minutes, and then whether the head runs."""
    name_head(monkeypatch, host, TOKEN)
    remedy = f"the host of the Airflow connection to Ray is {host!r}: write http://HOST:PORT, the port in it"
    assert follow("one", caplog)["reason"] == remedy
    assert "asking again" not in caplog.text


def test_a_connection_that_nobody_has_made_is_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("AIRFLOW_CONN_RAY_DEFAULT", raising=False)
    remedy = "there is no Airflow connection ray_default: add it, with the URL of Ray's dashboard as host"
    with pytest.raises(BackendError, match=remedy):
        attach_or_submit("one")
    assert follow("one", caplog)["reason"].startswith(remedy)


def test_a_wait_that_no_triggerer_ends_is_over_some_time_after_the_deadline() -> None:
    """Airflow's time-out of a task does not count while it waits."""
    task = prepare()
    ti = SimpleNamespace(dag_id="d", run_id="r", task_id="prepare", map_index=-1, try_number=1, max_tries=1)
    dag_run = SimpleNamespace(dag_id="d", run_id="r", conf={}, partition_key=None, run_type="manual")
    context: Any = {"dag": task.dag, "dag_run": dag_run, "params": {}, "ti": ti}
    with pytest.raises(TaskDeferred) as deferred:
        task.execute(context)
    trigger, timeout = deferred.value.trigger, deferred.value.timeout
    assert isinstance(trigger, RayJobTrigger)
    assert timeout is not None
    assert timeout.total_seconds() > trigger.deadline_s + 2 * trigger_module.OUTAGE_S


def test_a_task_that_is_ended_while_its_job_is_submitted_leaves_none(head: Head) -> None:
    """The head carries out a request that was broken off, after whoever ended the task looked for its job."""
    head.stage_is("exec sleep 60")
    head.thinks_s = 1.0

    async def end() -> None:
        trigger = trigger_of("one")
        task = asyncio.create_task(event_of(trigger))
        await asyncio.to_thread(head.asked.wait, 60.0)
        for _ in range(2):  # as Airflow's triggerer, which repeats it
            task.cancel("user action")
            await asyncio.sleep(0.1)
        with pytest.raises(asyncio.CancelledError, match="user action"):
            await task
        await trigger.on_kill()

    asyncio.run(end())
    assert [job.stopped for job in head.jobs.values()] == [True]


def test_a_job_whose_head_forgets_it_is_lost(head: Head, caplog: pytest.LogCaptureFixture) -> None:
    head.stage_is("exec sleep 60")

    async def forget() -> dict[str, Any]:
        event = asyncio.create_task(event_of(trigger_of("one")))
        while "one" not in head.jobs:
            await asyncio.sleep(0.05)
        job = head.jobs.pop("one")
        job.process.kill()
        job.process.wait()
        return await event

    assert asyncio.run(forget()) == {
        "status": "LOST", "exit_code": None,
        "reason": "Ray does not know this job any more: its head was restarted",
        "report": None,
    }  # fmt: skip


def test_the_deadline_counts_from_the_job_s_start_and_is_not_tried_again(head: Head) -> None:
    """A triggerer that attached to the job again gave it all its time once more, and so did a retry."""
    head.stage_is("exec sleep 60")
    attach_or_submit("one")
    head.jobs["one"].started_s -= 100.0
    late = trigger_of("one", "two", seconds=90.0)
    event = asyncio.run(event_of(late))
    assert (event["status"], list(head.jobs), head.jobs["one"].stopped) == ("DEADLINE", ["one"], True)
    with pytest.raises(AirflowFailException, match="stage prepare failed: the execution deadline passed"):
        prepare().finish({}, event)


def test_what_ended_by_itself_is_told_however_late(head: Head) -> None:
    """No triggerer may have been there."""
    head.stage_is("exit 2")
    attach_or_submit("one")
    head.jobs["one"].process.wait()
    head.jobs["one"].started_s -= 1e6
    event = asyncio.run(event_of(trigger_of("one")))
    assert (event["status"], event["exit_code"]) == ("FAILED", 2)


@pytest.mark.parametrize("characters", [None, 1, 40, 10_000])
def test_log_lines_come_once_each_even_if_the_tail_breaks(
    head: Head, caplog: pytest.LogCaptureFixture, characters: int | None
) -> None:
    """A real tail breaks rarely, and never at a chosen place."""
    head.tail_characters = characters
    head.stage_is("for i in $(seq 300); do echo line $i; done; sleep 0.2; printf last")
    event = follow("one", caplog)
    assert event == {"status": "SUCCEEDED", "exit_code": 0, "reason": "", "report": None}
    assert lines(caplog) == [*(f"line {number}" for number in range(1, 301)), "last"]
