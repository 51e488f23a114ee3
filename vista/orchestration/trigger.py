"""Waits for a Ray job without holding a worker: status by polling, log lines by the WebSocket tail."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

from airflow.sdk import BaseHook
from airflow.triggers.base import BaseTrigger, TriggerEvent

from vista.errors import BackendError
from vista.orchestration.ray_jobs import JobState, RayJobs, patiently

log = logging.getLogger(__name__)

POLL_S = 0.5
STOP_S = 20.0


async def connect(connection_id: str) -> RayJobs:
    """The client for an Airflow connection: host = the dashboard's URL, password = Ray's token."""
    connection = await BaseHook.aget_connection(connection_id)
    return RayJobs(connection.host or "", connection.password or "")


class RayJobTrigger(BaseTrigger):
    """Fires once, when the job has finished or `deadline_s` (seconds since 1970) has passed.

    The event's payload: status, exit_code, reason (why a job did not succeed, one line).
    """

    def __init__(self, connection_id: str, submission_id: str, deadline_s: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Airflow's, not annotated
        self.connection_id = connection_id
        self.submission_id = submission_id
        self.deadline_s = deadline_s

    def serialize(self) -> tuple[str, dict[str, Any]]:
        arguments = {
            "connection_id": self.connection_id,
            "submission_id": self.submission_id,
            "deadline_s": self.deadline_s,
        }
        return f"{type(self).__module__}.{type(self).__qualname__}", arguments

    async def run(self) -> AsyncIterator[TriggerEvent]:
        async with await connect(self.connection_id) as jobs:
            lines = LogLines()
            tail = asyncio.create_task(lines.follow(jobs, self.submission_id))
            try:
                state = await self._end(jobs)
            finally:
                tail.cancel()
            await lines.finish(jobs, self.submission_id)
        reason = _reason(state, lines.last_error)
        payload = {"status": state.status, "exit_code": state.exit_code, "reason": reason}
        yield TriggerEvent(payload)  # type: ignore[no-untyped-call]  # Airflow's, not annotated

    async def on_kill(self) -> None:
        """The task was marked failed or cleared by a person: the job must not go on."""
        async with await connect(self.connection_id) as jobs:
            await jobs.stop(self.submission_id)

    async def _end(self, jobs: RayJobs) -> JobState:
        while time.time() < self.deadline_s:
            state = await _state(jobs, self.submission_id)
            if state.finished:
                return state
            await asyncio.sleep(POLL_S)
        await stop_and_wait(jobs, self.submission_id)
        return JobState("DEADLINE", "the execution deadline passed, so the job was stopped", None)


class LogLines:
    """The lines of a job's log, each logged once, also when the tail has to be opened again."""

    def __init__(self) -> None:
        self.last_error = ""
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
        text = await patiently(lambda: jobs.log(submission_id))
        self._take(text[self._seen :])
        self._take("\n" if self._partial else "")

    def _take(self, text: str) -> None:
        self._seen += len(text)
        *lines, self._partial = (self._partial + text).split("\n")
        for line in lines:
            if line.startswith("error: "):
                self.last_error = line.removeprefix("error: ")
            log.info("%s", line)


async def _state(jobs: RayJobs, submission_id: str) -> JobState:
    state = await patiently(lambda: jobs.find(submission_id))
    return state or JobState("FAILED", "Ray does not know this job any more: its head was restarted", None)


async def stop_and_wait(jobs: RayJobs, submission_id: str) -> None:
    """Stop a job and wait until it has stopped. Raises `BackendError` if it goes on."""
    await jobs.stop(submission_id)
    give_up_s = time.monotonic() + STOP_S
    while (state := await jobs.find(submission_id)) is not None and not state.finished:
        if time.monotonic() > give_up_s:
            raise BackendError(f"Ray job {submission_id} did not stop within {STOP_S:.0f} s: stop it by hand")
        await asyncio.sleep(POLL_S)


def _reason(state: JobState, last_error: str) -> str:
    if state.status == "SUCCEEDED":
        return ""
    if state.exit_code is not None and state.exit_code < 0:
        return f"its process was killed by signal {-state.exit_code}"
    if last_error:
        return last_error
    lines = [line for line in state.message.splitlines() if line.strip()]
    return lines[-1] if lines else f"the Ray job ended as {state.status} without a message"
