"""kill -9 of what runs a task, and what people do to a task that waits: one Ray job, one log."""

import contextlib
import os
import signal
import time
from collections.abc import Iterable

import pytest
from scripted_stages import wait_for_signal
from sockets import LOOPBACK, connected, listening
from stack import Stack, until

from infra.processes import descendants
from infra.ray_head import wait_for
from infra.servers import Server

pytestmark = pytest.mark.slow
NOT_MINE = "followed by another triggerer"


def counting(run: str, *parts: int) -> str:
    """A script that prints numbered lines in parts, each after a signal."""
    script, first = [], 1
    for number, lines in enumerate(parts):
        script += [
            wait_for_signal(f"{run}-{number}"),
            f"for i in $(seq {first} {first + lines - 1}); do echo line $i; done",
        ]
        first += lines
    return "\n".join(script)


def numbered(last: int) -> list[str]:
    return [f"line {number}" for number in range(1, last + 1)]


def test_the_head_listens_on_loopback_only(stack: Stack) -> None:
    sockets = listening(descendants(stack.head.guard.pid))
    assert {port for _, port in sockets} >= set(stack.head.address.ports.values())
    assert {address for address, _ in sockets} <= LOOPBACK


def test_triggerer_killed(stack: Stack) -> None:
    """Must-hold 4: one Ray submission, the run succeeds, each log line exactly once; and 2 without a browser:
    the form's value is in the Ray job's metadata."""
    run = stack.trigger("triggerer-killed", counting("triggerer-killed", 40, 40, 40), seeds=4)
    stack.stages.signal("triggerer-killed-0")
    until(lambda: run.state() == "deferred", "the trigger")
    until(lambda: "line 40" in run.log(1), "the first lines")
    stack.airflow.services["triggerer"].kill()
    stack.stages.signal("triggerer-killed-1")
    stack.airflow.services["triggerer"].start()
    until(lambda: "line 80" in run.log(1), "lines by the new triggerer")
    stack.stages.signal("triggerer-killed-2")
    run.until_state("success")
    assert run.statuses() == ["SUCCEEDED"]
    assert [line for line in run.log(1) if line.startswith("line ")] == numbered(120)
    (job,) = run.jobs()
    assert '"seeds":4' in job["metadata"]["config"]
    assert stack.airflow.call("GET", "/dags/one_stage/dagRuns/triggerer-killed")["conf"]["seeds"] == 4


def test_triggerer_killed_while_it_submits(stack: Stack) -> None:
    """It dies after it submitted and before it knows: the next one goes on with its job."""
    triggerer = stack.airflow.services["triggerer"]
    port = stack.head.address.ports["dashboard-port"]
    pages = {pid for pid in descendants(stack.head.guard.pid) if port in _ports(listening([pid]))}
    _signal_all(pages, signal.SIGSTOP)
    try:
        run = stack.trigger("killed-early", counting("killed-early", 5))
        until(lambda: port in _ports(connected(descendants(triggerer.pid))), "a triggerer that asks Ray")
    finally:
        _signal_all(pages, signal.SIGCONT)
    run.until_status("RUNNING")
    triggerer.kill()
    triggerer.start()
    stack.stages.signal("killed-early-0")
    run.until_state("success")
    assert run.statuses() == ["SUCCEEDED"]
    assert [line for line in run.log(1) if line.startswith("line ")] == numbered(5)


def test_marked_failed_before_a_triggerer_took_it_there_is_no_job(stack: Stack) -> None:
    """Nobody would have stopped one that the worker had submitted."""
    triggerer = stack.airflow.services["triggerer"]
    _signal(triggerer, signal.SIGSTOP)
    try:
        run = stack.trigger("too-early", wait_for_signal("too-early"))
        run.until_waiting()
        run.mark_failed()
    finally:
        _signal(triggerer, signal.SIGCONT)
    other = stack.trigger("after-it", "exit 0")
    other.until_state("success")  # so the triggerer has had its chance with the first
    assert (run.state(), run.statuses()) == ("failed", [])


def test_marked_failed_stops_this_job_alone(stack: Stack, full_size: bool) -> None:
    """Must-hold 3: within 10 s, and no other job is touched."""
    mine, other = (stack.trigger(name, wait_for_signal(name)) for name in ("mine", "other"))
    for run in (mine, other):
        run.until_waiting()
        run.until_status("RUNNING")
    mine.mark_failed()
    marked_s = time.monotonic()
    mine.until_status("STOPPED")
    assert time.monotonic() - marked_s < (10 if full_size else 60)
    assert (mine.state(), other.state(), other.statuses()) == ("failed", "deferred", ["RUNNING"])
    stack.stages.signal("other")
    other.until_state("success")


def test_two_trainings_take_turns(stack: Stack) -> None:
    """A training that waits for Ray keeps the pool's one slot."""
    first = stack.trigger("first", wait_for_signal("first"), "one_training")
    first.until_status("RUNNING")
    first.until_waiting()
    second = stack.trigger("second", wait_for_signal("second"), "one_training")
    other = stack.trigger("no-training", "exit 0")
    other.until_state("success")  # so the scheduler has had its chance with the second
    assert (second.state(), second.statuses()) == ("scheduled", [])
    stack.stages.signal("first")
    first.until_state("success")
    second.until_status("RUNNING")
    stack.stages.signal("second")
    second.until_state("success")


def test_cleared_task_starts_anew(stack: Stack) -> None:
    """A cleared task gets a new name, and its old job has ended before the new one begins."""
    run = stack.trigger("cleared", wait_for_signal("cleared"))
    run.until_waiting()
    run.until_status("RUNNING")
    run.clear()
    run.until_status("STOPPED", "RUNNING")
    stack.stages.signal("cleared")
    run.until_state("success")
    first, second = run.jobs()
    assert first["end_time"] <= second["start_time"]
    # Airflow sometimes fails an attempt whose trigger fires at once; the retry finds the same job.
    assert (second["status"], run.attempt() > 1) == ("SUCCEEDED", True)


def test_paused_triggerer_does_not_stop_a_job_that_another_follows(stack: Stack) -> None:
    """Airflow tells a triggerer that slept too long to cancel what another one took over as if a person had
    ended the task."""
    run = stack.trigger("taken-over", counting("taken-over", 3, 3))
    stack.stages.signal("taken-over-0")
    until(lambda: run.state() == "deferred", "the trigger")
    until(lambda: "line 3" in run.log(1), "the first lines")
    sleeper = stack.airflow.services["triggerer"]
    other = Server(
        "triggerer-2", sleeper.place, [*sleeper.command, "--skip-serve-logs"], sleeper.answers,
        sleeper.start_s, sleeper.environment,
    )  # fmt: skip
    _signal(sleeper, signal.SIGSTOP)
    try:
        other.start()
        until(lambda: run.text(1).count(" starting") == 2, "another triggerer has taken over")
    finally:
        _signal(sleeper, signal.SIGCONT)
    try:
        until(lambda: NOT_MINE in run.text(1) + sleeper.log.read_text(), "the first one has noticed")
        assert run.statuses() == ["RUNNING"]
        stack.stages.signal("taken-over-1")
        run.until_state("success")
    finally:
        other.stop()
    assert run.statuses() == ["SUCCEEDED"]


def test_job_lost_with_its_head(stack: Stack) -> None:
    """kill -9 of Ray's head: the attempt fails and says so, the next one runs on the new head."""
    run = stack.trigger("head-killed", f"test -e again || {{ touch again; {wait_for_signal('never')}; }}")
    run.until_waiting()
    until(lambda: (stack.stages.place / "again").exists(), "the first job")  # Ray says RUNNING before it runs
    head = stack.head
    for pid in descendants(head.guard.pid):
        with contextlib.suppress(ProcessLookupError):  # it ended with the one before
            os.kill(pid, signal.SIGKILL)
    head.guard.wait()
    stack.head = stack.start_head(head.address)
    wait_for(stack.head, stack.stages.place)
    run.until_state("success")
    assert run.statuses() == ["SUCCEEDED"]
    assert run.attempt() > 1
    assert "Ray does not know this job any more" in run.text(1)


def _signal(server: Server, number: int) -> None:
    _signal_all({server.pid, *descendants(server.pid)}, number)


def _signal_all(pids: set[int], number: int) -> None:
    for pid in pids:
        os.kill(pid, number)


def _ports(places: Iterable[tuple[str, int]]) -> set[int]:
    return {port for _, port in places}
