"""A task's configuration: the form's defaults, what the deployment sets, what this run was given."""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from vista.config import Frozen
from vista.orchestration import deployment
from vista.orchestration.deployment import NAMES

if TYPE_CHECKING:
    from airflow.sdk import Context

Config = TypeVar("Config", bound=Frozen)


def run_id_of(dag_run_id: str) -> str:
    """A directory name for an Airflow run.

    >>> run_id_of("manual__2026-01-02T03:04:05+00:00")
    'manual__2026-01-02T03-04-05-00-00'
    """
    return re.sub(r"[^A-Za-z0-9._-]+", "-", dag_run_id)[:128]


def config_of(kind: type[Config], context: "Context", values: Mapping[str, Any] | None = None) -> Config:
    """The configuration of a job in this run; `values`, from an earlier task, come before all else.

    A run of a partition reads until its day, and is named after the DAG and the day: whoever starts it, and
    however often, it is one run. Raises `AirflowFailException` for values that the job refuses, and
    `AirflowSkipException` for a scheduled day of a deployment that has not said what its days are.
    """
    run, fields = context["dag_run"], kind.model_fields
    try:
        deployed = deployment.values()
        if run.partition_key and run.run_type == "scheduled" and not deployed:
            raise AirflowSkipException(
                f"no events are named for {run.partition_key}: set the Variable {deployment.VALUES!r}, then "
                "backfill the day if you want it, with *All Runs*"
            )
        if unknown := sorted((run.conf or {}).keys() - context["dag"].params.keys()):
            takes = ", ".join(context["dag"].params) or "no values"
            raise ValueError(f"{unknown[0]!r} is unknown: {run.dag_id} takes {takes}")
        given = dict(context["params"]) | deployed | (run.conf or {}) | dict(values or {})
        given = {name: value for name, value in given.items() if name in fields}
        for name in [name for name, value in given.items() if value is None]:  # a text the form left empty
            given[name] = fields[name].default
        if (typed := str(given.get("run_id") or "")) != run_id_of(typed):
            folder = run_id_of(typed)
            raise ValueError(f"run_id {typed!r}: write {folder!r}, the name of the run's folder in runs/")
        if run.partition_key and "until" in fields:
            given["until"] = given.get("until") or run.partition_key
        own_name = run_id_of(f"{run.dag_id}-{run.partition_key}" if run.partition_key else run.run_id)
        given |= {name: own_name for name in NAMES if name in fields and not given.get(name)}
        return kind.model_validate(given)
    except ValueError as error:
        task_id = context["ti"].task_id
        raise AirflowFailException(f"stage {task_id} failed: the run's values: {error}") from error
