"""Runs one job of `vista.jobs` as a Ray job: says which, waits deferred, maps its end to Airflow's errors."""

import hashlib
import shlex
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException

from vista.config import Frozen
from vista.jobs import job as job_called
from vista.orchestration.assets import MAYBE, news_of
from vista.orchestration.conf import config_of
from vista.orchestration.trigger import DEADLINE, RayJobTrigger

if TYPE_CHECKING:
    from airflow.sdk import Context

INPUT_ERROR = 2
CONNECTION = "ray_default"
LATE_S = 3_600.0
"""How long after its deadline a job's end may be told: no triggerer may be there to tell it."""
PYTHON = '"${VISTA_PYTHON:-python}"'
"""Expanded by the shell on Ray's node: only the node knows where its environment is."""


def submission_id(dag_id: str, run_id: str, task_id: str, map_index: int, attempt: int) -> str:
    """The name of one attempt in Ray: the same for whoever asks, another one for a retried or cleared task.

    >>> submission_id("d", "r", "t", -1, 1) == submission_id("d", "r", "t", -1, 1)
    True
    """
    names = "\0".join((dag_id, run_id, task_id, str(map_index), str(attempt)))
    return f"vista-{task_id}-{attempt}-{hashlib.sha256(names.encode()).hexdigest()[:16]}"


def first_attempt(try_number: int, max_tries: int, retries: int) -> int:
    """The first attempt since a person cleared the task; those until now are retries of it.

    Clearing grants the task its retries once more, from the attempt that is cleared.

    >>> first_attempt(2, max_tries=1, retries=1), first_attempt(3, max_tries=3, retries=1)
    (1, 3)
    """
    return min(max(1, max_tries - retries + 1), try_number)


def entrypoint(job: str, config: Frozen, told: Mapping[str, str] | None = None) -> str:
    """The shell command of a job; only the values that differ from the defaults are written. `told` are
    further options."""
    given = config.model_dump(exclude_defaults=True) | dict(told or {})
    options = [text for name, value in given.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    return f"exec {PYTHON} -m vista {shlex.join([job, *options])}"


class RayJobOperator(BaseOperator):
    """One job of `vista.jobs` as a Ray job; `task_id` names it.

    The run's conf is its configuration, and `values` what an earlier task found out; `told` are further
    options. Those parts of its report that are in `keeps` are the task's XComs. One that is null means that
    there is nothing to do: what comes after is skipped.

    The trigger submits it, so whoever ends the task ends the job: a task has no trigger, and no job, before
    it waits. The job is found again by its name, so a triggerer that dies never submits twice, and a retry
    goes on with an earlier attempt's job if that still runs or has succeeded meanwhile. A cleared task
    starts anew. Exit code 2 (the input cannot be used) and the deadline fail at once; anything else is
    retried as Airflow's `retries` says.
    """

    template_fields: Sequence[str] = ("values", "told")

    def __init__(
        self,
        *,
        deadline_s: float,
        values: Any = None,
        told: Any = None,
        keeps: Sequence[str] = (),
        **arguments: Any,
    ) -> None:
        super().__init__(multiple_outputs=bool(keeps), **arguments)
        self.values = values
        self.told = told
        self.keeps = keeps
        self.deadline_s = deadline_s

    def execute(self, context: "Context") -> None:
        ti = context["ti"]
        config = config_of(job_called(self.task_id).config, context, self.values)
        map_index = -1 if ti.map_index is None else ti.map_index
        names = [
            submission_id(ti.dag_id, ti.run_id, ti.task_id, map_index, attempt)
            for attempt in range(1, ti.try_number + 1)
        ]
        # with the revision that the trigger adds they become MLflow's tags (vista.train.tracking)
        metadata = {"dag": self.dag_id, "dag_run": ti.run_id, "task": self.task_id}
        metadata |= {"map_index": str(map_index), "try": str(len(names))}
        metadata |= {"run": str(getattr(config, "run_id", "")), "config": config.model_dump_json()}
        trigger = RayJobTrigger(
            CONNECTION,
            names,
            first_attempt(ti.try_number, ti.max_tries, self.retries or 0),
            entrypoint(self.task_id, config, self.told),
            metadata,
            self.deadline_s,
        )
        timeout = timedelta(seconds=self.deadline_s + LATE_S)
        self.defer(trigger=trigger, method_name="finish", timeout=timeout)

    def finish(self, context: "Context", event: dict[str, Any]) -> dict[str, Any]:
        """Called when the trigger has fired. Returns what the job's report has of `keeps`."""
        if event["status"] != "SUCCEEDED":
            message = f"stage {self.task_id} failed: {event['reason']}"
            if event["exit_code"] == INPUT_ERROR or event["status"] == DEADLINE:
                raise AirflowFailException(message)
            raise AirflowException(message)
        report = event["report"]
        if report is None and (self.keeps or self.outlets):
            raise AirflowException(f"stage {self.task_id} failed: its log does not end with its report")
        self._tell_news(context, report)
        kept = {name: report[name] for name in self.keeps}
        if None in kept.values():
            raise AirflowSkipException(f"stage {self.task_id} has found nothing to do")
        return kept

    def _tell_news(self, context: "Context", report: dict[str, Any]) -> None:
        if self.outlets:
            config: Any = config_of(job_called(self.task_id).config, context, self.values)
            alias, asset = MAYBE[self.task_id]
            if news := news_of(self.task_id, report, config.run_id):
                context["outlet_events"][alias].add(asset, extra=news)
