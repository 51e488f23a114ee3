"""Submits a Ray job and waits for it without holding a worker: status by polling, log lines by the WebSocket
tail."""

import asyncio
import contextlib
import json
import logging
import re
import signal
import time
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from typing import Any

from airflow.sdk import BaseHook
from airflow.sdk.exceptions import AirflowNotFoundException
from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance
from airflow.triggers.base import BaseTrigger, TriggerEvent

from vista.errors import BackendError
from vista.orchestration.job_log import JOB_LOG, lines_in_task_log
from vista.orchestration.packaging import package
from vista.orchestration.ray_jobs import JobState, RayJobs, patiently, stop_and_wait
from vista.revision import git_revision

log = logging.getLogger(__name__)

DEADLINE = "DEADLINE"
"""The status of a job that was stopped because it took too long."""
POLL_S = 0.5
MEMORY_KILL = re.compile(r"OOM kill reason: (?P<figures>.*)")
WRITTEN_S = 30.0
OUTAGE_S = 900.0
"""A trigger holds no worker, so it can wait for a head that is restarted or whose network is down."""


_stopping: set[asyncio.Task[None]] = set()
"""Jobs that are being stopped. Airflow cancels `on_kill` too, a second later: it repeats its cancellation."""


async def connect(connection_id: str) -> RayJobs:
    """The client for an Airflow connection: host = the dashboard's URL, password = Ray's token. Raises
    `BackendError` if there is none."""
    try:
        connection = await BaseHook.aget_connection(connection_id)
    except AirflowNotFoundException as error:
        raise BackendError(
            f"there is no Airflow connection {connection_id}: add it, with the URL of Ray's dashboard as "
            "host and Ray's token as password"
        ) from error
    return RayJobs(connection.host or "", connection.password or "")


class RayJobTrigger(BaseTrigger):
    """Submits the job of a task's newest attempt, unless an earlier one's is to go on. Fires once: when the
    job has finished, when it was stopped `deadline_s` after its start, or when Ray is lost.

    `names` are the jobs' of all attempts until now. Those from before the task was cleared, at attempt
    `first`, must not run beside the new one. The event's payload: status, exit_code, reason (why a job did
    not succeed, one line), report (the JSON object that it printed, or None).
    """

    def __init__(
        self,
        connection_id: str,
        names: Sequence[str],
        first: int,
        command: str,
        metadata: Mapping[str, str],
        deadline_s: float,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Airflow's, not annotated
        self.connection_id = connection_id
        self.names = names
        self.first = first
        self.command = command
        self.metadata = metadata
        self.deadline_s = deadline_s

    def serialize(self) -> tuple[str, dict[str, Any]]:
        arguments = {
            "connection_id": self.connection_id,
            "names": self.names,
            "first": self.first,
            "command": self.command,
            "metadata": self.metadata,
            "deadline_s": self.deadline_s,
        }
        return f"{type(self).__module__}.{type(self).__qualname__}", arguments

    async def run(self) -> AsyncIterator[TriggerEvent]:
        try:
            payload = await self._follow()
        except BackendError as error:  # a trigger that raises fails its task without saying why
            payload = {"status": "UNKNOWN", "exit_code": None, "reason": str(error), "report": None}
        yield TriggerEvent(payload)  # type: ignore[no-untyped-call]  # Airflow's, not annotated

    async def on_kill(self) -> None:
        """The task was marked failed or cleared by a person: the job must not go on.

        Airflow calls this too when another triggerer has taken over (this one was paused, or slow): then
        the task is still deferred, and the job is the other one's.
        """
        task = asyncio.create_task(self._stop_unless_taken_over())
        _stopping.add(task)
        task.add_done_callback(_stopping.discard)
        await asyncio.shield(task)

    async def _stop_unless_taken_over(self) -> None:
        if await self._is_deferred():
            log.warning("Ray job %s is followed by another triggerer: it goes on", self.names[-1])
            return
        async with await connect(self.connection_id) as jobs:
            for name in self.names:  # of a retry the job may be an earlier attempt's
                await _stopped(jobs, name)

    async def _follow(self) -> dict[str, Any]:
        async with await connect(self.connection_id) as jobs:
            attempt = await patiently(lambda: self._attach_or_submit(jobs), OUTAGE_S)
            name = self.names[attempt - 1]
            lines = LogLines(await asyncio.to_thread(lines_in_task_log, self.task_instance, attempt))
            tail = asyncio.create_task(lines.follow(jobs, name))
            try:
                state = await self._end(jobs, name)
            finally:
                tail.cancel()
                await asyncio.wait([tail])
            if not tail.cancelled():
                tail.result()  # it never returns: this raises what ended it
            await lines.finish(jobs, name)
        await self._until_written(attempt, lines.count)
        reason = reason_of(state, lines)
        return {
            "status": state.status,
            "exit_code": state.exit_code,
            "reason": reason,
            "report": lines.report(),
        }

    async def _attach_or_submit(self, jobs: RayJobs) -> int:
        """The attempt whose job is this one's: its own, an earlier retry's, or its own, submitted now."""
        for name in self.names[: self.first - 1]:
            await stop_and_wait(jobs, name)
        for attempt in range(len(self.names), self.first - 1, -1):
            state = await jobs.find(self.names[attempt - 1])
            if state is not None and (
                attempt == len(self.names) or not state.finished or state.status == "SUCCEEDED"
            ):
                log.info("going on with %s, the job of attempt %d", self.names[attempt - 1], attempt)
                return attempt
        code, revision = await asyncio.to_thread(lambda: (package(), git_revision()))
        metadata = {**self.metadata, "revision": revision}
        await _to_its_end(jobs.submit(self.names[-1], self.command, code, metadata))
        return len(self.names)

    async def _end(self, jobs: RayJobs, name: str) -> JobState:
        while (state := await patiently(lambda: jobs.find(name), OUTAGE_S)) is not None:
            if state.finished:
                return state
            if time.time() > state.started_s + self.deadline_s:
                state = await _stopped(jobs, name)
                if state is not None and state.status == "SUCCEEDED":
                    return state
                return JobState(DEADLINE, "the execution deadline passed, so the job was stopped", None)
            await asyncio.sleep(POLL_S)
        return JobState("LOST", "Ray does not know this job any more: its head was restarted", None)

    async def _until_written(self, attempt: int, lines: int) -> None:
        """Airflow closes a trigger's log when it has fired, and what is still on the way there is lost."""
        give_up_s = time.monotonic() + WRITTEN_S
        while self.task_instance is not None and time.monotonic() < give_up_s:
            if await asyncio.to_thread(lines_in_task_log, self.task_instance, attempt) >= lines:
                return
            await asyncio.sleep(POLL_S)

    async def _is_deferred(self) -> bool:
        ti = self.task_instance
        if ti is None:
            return False
        states = await asyncio.to_thread(
            RuntimeTaskInstance.get_task_states,
            dag_id=ti.dag_id, task_ids=[ti.task_id], run_ids=[ti.run_id], map_index=ti.map_index,
        )  # fmt: skip
        return "deferred" in states.get(ti.run_id, {}).values()


async def _stopped(jobs: RayJobs, name: str) -> JobState | None:
    return await patiently(lambda: stop_and_wait(jobs, name), OUTAGE_S)


async def _to_its_end(request: Coroutine[Any, Any, None]) -> None:
    """A request that is not broken off: Ray may carry out what it has of it, after `on_kill` has looked."""
    task, cancelled = asyncio.create_task(request), None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:  # Airflow repeats it
            cancelled = error
    if cancelled is not None:
        raise cancelled
    task.result()


class LogLines:
    """The lines of a job's log, each logged once, also when the tail has to be opened again.

    The first `logged` lines are in the task's log already, written by a triggerer that was killed or during
    an earlier attempt.
    """

    def __init__(self, logged: int) -> None:
        self.last_error = ""  # as `vista.__main__` writes it
        self.memory_kill = ""  # as Ray writes it when it killed a worker of the job
        self.count = 0
        self._object: list[str] = []  # the newest JSON object, as `vista.__main__` prints a report
        self._logged = logged
        self._seen = 0  # characters; a tail starts at the log's beginning
        self._partial = ""

    async def follow(self, jobs: RayJobs, submission_id: str) -> None:
        """Log the lines as they come, until cancelled."""
        while True:
            skip = self._seen
            with contextlib.suppress(BackendError):  # the tail may break at any time: it is opened again
                async for text in jobs.tail(submission_id):
                    self._take(text[skip:])
                    skip = max(0, skip - len(text))
            await asyncio.sleep(POLL_S)

    async def finish(self, jobs: RayJobs, submission_id: str) -> None:
        """Log what the tail had not brought yet when the job finished."""
        text = await patiently(lambda: jobs.log(submission_id), OUTAGE_S)
        self._take(text[self._seen :])
        self._take("\n" if self._partial else "")

    def report(self) -> dict[str, Any] | None:
        """The newest JSON object that the job printed over several lines; None if there is no whole one."""
        try:
            return dict(json.loads("\n".join(self._object)))
        except ValueError:
            return None

    def _take(self, text: str) -> None:
        self._seen += len(text)
        *lines, self._partial = (self._partial + text).split("\n")
        for line in lines:
            if line.startswith("error: "):
                self.last_error = line.removeprefix("error: ")
            self.memory_kill = memory_kill_in(line) or self.memory_kill
            if line == "{":
                self._object = [line]
            elif self._object and self._object[-1] != "}":
                self._object.append(line)
            self.count += 1
            if self.count > self._logged:
                JOB_LOG.info("%s", line)


def reason_of(state: JobState, lines: LogLines) -> str:
    """Why a job did not succeed, in one line; empty if it did."""
    if state.status == "SUCCEEDED":
        return ""
    if state.exit_code is not None and state.exit_code < 0:
        by_memory = ": out of memory, unless somebody killed it" if state.exit_code == -signal.SIGKILL else ""
        return f"its process was killed by signal {-state.exit_code}{by_memory}"
    if lines.last_error:
        return lines.last_error
    if memory_kill := memory_kill_in(state.message) or lines.memory_kill:
        return f"out of memory on Ray's node: {memory_kill}; lower the batch, the workers or max_uih"
    last = [line for line in state.message.splitlines() if line.strip()]
    return last[-1] if last else f"the Ray job ended as {state.status} without a message"


def memory_kill_in(text: str) -> str:
    """Ray's figures about a worker that it killed for want of memory; empty if there are none.

    >>> memory_kill_in("OOM kill reason: Memory usage 9B exceeded threshold of 8B (95% of 9B limit)")
    'Memory usage 9B exceeded threshold of 8B (95% of 9B limit)'
    """
    found = MEMORY_KILL.search(text)
    return found["figures"] if found else ""
