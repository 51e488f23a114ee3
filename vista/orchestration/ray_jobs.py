"""A small client of Ray's Jobs REST API; Airflow's environment has no ray.

Source: Ray 2.60, `python/ray/dashboard/modules/job/job_head.py` and its OpenAPI page.
"""

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeVar

import aiohttp

from vista.errors import BackendError
from vista.orchestration.packaging import Package

log = logging.getLogger(__name__)

T = TypeVar("T")
FINISHED = frozenset({"SUCCEEDED", "FAILED", "STOPPED"})
REQUEST_TIMEOUT_S = 60.0
CONNECT_TIMEOUT_S = 10.0
ASK_AGAIN_S = 0.5
ASK_AGAIN_AT_MOST_S = 5.0
STOP_S = 20.0


class HeadAwayError(BackendError):
    """The head does not answer, or its agent has not started yet: asking again may help."""


async def patiently(ask: Callable[[], Awaitable[T]], outage_s: float) -> T:
    """The answer of `ask`, which may be repeated; a head that is away is waited for, `outage_s` long."""
    began_s, pause_s = 0.0, ASK_AGAIN_S
    while True:
        try:
            answer = await ask()
        except HeadAwayError as error:
            if not began_s:
                began_s = time.monotonic()
                log.warning("%s; asking again for %.0f s", error, outage_s)
            elif time.monotonic() > began_s + outage_s:
                raise HeadAwayError(f"{error}; asked again for {outage_s:.0f} s") from error
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, ASK_AGAIN_AT_MOST_S)
        else:
            if began_s:
                log.warning("Ray answers again after %.0f s", time.monotonic() - began_s)
            return answer


@dataclass(frozen=True, slots=True)
class JobState:
    """What Ray knows about a job. `exit_code` is the driver's, negative for a signal, None while it runs;
    `started_s` is when it was submitted, in seconds since 1970."""

    status: str
    message: str
    exit_code: int | None
    started_s: float = 0.0

    @property
    def finished(self) -> bool:
        return self.status in FINISHED


class RayJobs:
    """One session with a Ray head. Everything raises `BackendError` if the head cannot be used."""

    def __init__(self, address: str, token: str) -> None:
        self._address = address.rstrip("/")
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    async def __aenter__(self) -> Self:
        timeout = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S, sock_connect=CONNECT_TIMEOUT_S)
        self._session = aiohttp.ClientSession(headers=self._headers, timeout=timeout)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def find(self, submission_id: str) -> JobState | None:
        """The state of a job, None if there is no such submission."""
        status, body = await self._request("GET", f"/api/jobs/{submission_id}", missing_is_fine=True)
        if status == 404:
            return None
        details = self._details(body, "status", "start_time")
        message, exit_code = details.get("message") or "", details.get("driver_exit_code")
        return JobState(details["status"], message, exit_code, details["start_time"] / 1_000)

    async def submit(
        self, submission_id: str, entrypoint: str, code: Package, metadata: Mapping[str, str]
    ) -> None:
        """Start `entrypoint` in a directory that holds `code`. No secret may be in the arguments: Ray shows
        and logs them."""
        await self._upload(code)
        request = {
            "submission_id": submission_id,
            "entrypoint": entrypoint,
            "runtime_env": {"working_dir": code.uri},
            "metadata": dict(metadata),
        }
        await self._request("POST", "/api/jobs/", json=request)

    async def stop(self, submission_id: str) -> None:
        """Ask Ray to stop a job; a job that is unknown or has ended stays as it is."""
        await self._request("POST", f"/api/jobs/{submission_id}/stop", missing_is_fine=True)

    async def tail(self, submission_id: str) -> AsyncIterator[str]:
        """The text of the job's log from its beginning, as it grows. May end before the job does
        (ray #57002, #60665): ask `find`, not the tail, whether the job runs."""
        url = f"{self._address}/api/jobs/{submission_id}/logs/tail"
        try:
            async with self._session.ws_connect(url, heartbeat=30.0) as socket:
                async for message in socket:
                    if message.type is aiohttp.WSMsgType.TEXT:
                        yield message.data
        except (aiohttp.ClientError, TimeoutError) as error:
            raise self._unreachable(error) from error

    async def log(self, submission_id: str) -> str:
        """The whole text of the job's log until now; empty for a job that Ray does not know."""
        status, body = await self._request("GET", f"/api/jobs/{submission_id}/logs", missing_is_fine=True)
        return "" if status == 404 else str(self._details(body, "logs")["logs"])

    async def _upload(self, code: Package) -> None:
        path = f"/api/packages/gcs/{code.name}"
        status, _ = await self._request("GET", path, missing_is_fine=True)
        if status == 404:
            await self._request("PUT", path, data=code.content)

    async def _request(
        self, method: str, path: str, *, missing_is_fine: bool = False, **body: Any
    ) -> tuple[int, str]:
        try:
            async with self._session.request(method, self._address + path, **body) as response:
                status, text = response.status, await response.text()
        except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError) as error:  # waiting would not mend it
            raise BackendError(
                f"the host of the Airflow connection to Ray is {self._address!r}: write http://HOST:PORT, "
                "the port in it"
            ) from error
        except (aiohttp.ClientError, TimeoutError) as error:
            raise self._unreachable(error) from error
        if status >= 400 and not (missing_is_fine and status == 404):
            last_line = (text.strip().splitlines() or [response.reason or ""])[-1]
            answer = f"Ray at {self._address} answered {status} to {method} {path}: {last_line}"
            if status >= 500:
                raise HeadAwayError(f"{answer}; see the head's dashboard.log")
            raise BackendError(f"{answer}; check the Airflow connection's host and token")
        return status, text

    def _details(self, body: str, *names: str) -> dict[str, Any]:
        """What an answer holds, `names` at least: any server with a page may have answered."""
        try:
            found = json.loads(body)
        except ValueError:
            found = None
        if not isinstance(found, dict) or not found.keys() >= set(names):
            raise BackendError(
                f"{self._address} does not answer as Ray's dashboard does: check the host of the Airflow "
                "connection"
            )
        return found

    def _unreachable(self, error: BaseException) -> HeadAwayError:
        reason = str(error) or type(error).__name__
        return HeadAwayError(f"Ray at {self._address} cannot be reached ({reason}): is the head running?")


async def stop_and_wait(jobs: RayJobs, submission_id: str) -> JobState | None:
    """Stop a job and wait until it has ended; its state, None for a job that Ray does not know.

    Ray forgets a request to stop a job whose process it has not started yet, so the request is repeated.
    Raises `BackendError` if the job goes on.
    """
    give_up_s = time.monotonic() + STOP_S
    while (state := await jobs.find(submission_id)) is not None and not state.finished:
        if time.monotonic() > give_up_s:
            raise BackendError(f"Ray job {submission_id} did not stop within {STOP_S:.0f} s: stop it by hand")
        await jobs.stop(submission_id)
        await asyncio.sleep(ASK_AGAIN_S)
    return state
