"""Runs one job of `vista.jobs` as a Ray job: submits it, waits deferred, maps its end to Airflow's errors."""

import asyncio
import hashlib
import re
import shlex
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowException, AirflowFailException
from pydantic import ValidationError

from vista.config import RefreshConfig
from vista.orchestration.packaging import package
from vista.orchestration.ray_jobs import patiently
from vista.orchestration.trigger import RayJobTrigger, connect, stop_and_wait

if TYPE_CHECKING:
    from airflow.sdk import Context

INPUT_ERROR = 2
DEADLINE_S = 6 * 3_600.0
PYTHON = '"${VISTA_PYTHON:-python}"'
"""Expanded by the shell on Ray's node: only the node knows where its environment is."""


def submission_id(dag_id: str, run_id: str, task_id: str, map_index: int, attempt: int) -> str:
    """The name of one attempt in Ray: the same for whoever asks, another one for a retried or cleared task.

    >>> submission_id("d", "r", "t", -1, 1) == submission_id("d", "r", "t", -1, 1)
    True
    """
    names = "\0".join((dag_id, run_id, task_id, str(map_index), str(attempt)))
    return f"vista-{task_id}-{attempt}-{hashlib.sha256(names.encode()).hexdigest()[:16]}"


def run_id_of(dag_run_id: str) -> str:
    """A directory name for an Airflow run.

    >>> run_id_of("manual__2026-01-02T03:04:05+00:00")
    'manual__2026-01-02T03-04-05-00-00'
    """
    return re.sub(r"[^A-Za-z0-9._-]+", "-", dag_run_id)[:128]


def entrypoint(stage: str, config: RefreshConfig) -> str:
    """The shell command of a stage; only the values that differ from the defaults are written."""
    given = config.model_dump(exclude_defaults=True)
    options = [text for name, value in given.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    return f"exec {PYTHON} -m vista {shlex.join([stage, *options])}"


class RayJobOperator(BaseOperator):
    """One stage of a refresh as a Ray job; `task_id` names the stage, the run's params are its configuration.

    The job is found again by its name, so a worker that dies after submitting never submits twice. Exit code
    2 (the input cannot be used) fails at once; anything else is retried as Airflow's `retries` says.
    """

    def __init__(
        self, *, connection_id: str = "ray_default", deadline_s: float = DEADLINE_S, **arguments: Any
    ) -> None:
        super().__init__(**arguments)
        self.connection_id = connection_id
        self.deadline_s = deadline_s

    def execute(self, context: "Context") -> None:
        ti = context["ti"]
        try:
            config = RefreshConfig.model_validate(dict(context["params"]))
        except ValidationError as error:
            raise AirflowFailException(f"stage {self.task_id} failed: the run's conf: {error}") from error
        if not config.run_id:
            config = config.model_copy(update={"run_id": run_id_of(ti.run_id)})
        map_index = -1 if ti.map_index is None else ti.map_index
        names = [
            submission_id(ti.dag_id, ti.run_id, ti.task_id, map_index, attempt)
            for attempt in range(1, ti.try_number + 1)
        ]
        asyncio.run(self._submit(names, config, ti.run_id))
        self.defer(
            trigger=RayJobTrigger(self.connection_id, names[-1], time.time() + self.deadline_s),
            method_name="finish",
        )

    async def _submit(self, names: Sequence[str], config: RefreshConfig, dag_run_id: str) -> None:
        """Attach to the attempt `names[-1]` or start it; earlier attempts must not run beside it."""
        *earlier, name = names
        metadata = {"dag": self.dag_id, "dag_run": dag_run_id, "task": self.task_id, "run": config.run_id}
        metadata["config"] = config.model_dump_json()
        async with await connect(self.connection_id) as jobs:

            async def attach_or_start() -> None:
                for old in earlier:
                    await stop_and_wait(jobs, old)
                if await jobs.find(name) is None:
                    await jobs.submit(name, entrypoint(self.task_id, config), package(), metadata)

            await patiently(attach_or_start)

    def finish(self, context: "Context", event: dict[str, Any]) -> str:
        """Called when the trigger has fired. Returns the submission's status for XCom."""
        if event["status"] == "SUCCEEDED":
            return str(event["status"])
        message = f"stage {self.task_id} failed: {event['reason']}"
        if event["exit_code"] == INPUT_ERROR:
            raise AirflowFailException(message)
        raise AirflowException(message)
