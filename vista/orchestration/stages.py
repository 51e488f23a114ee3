"""What DAG files are made of: groups of tasks, forms, the defaults of every task."""

from datetime import timedelta
from typing import Any

from airflow.sdk import Param, XComArg, get_current_context, task
from airflow.sdk.bases.operator import chain

from vista.config import Frozen, GridConfig, RefreshConfig
from vista.jobs import JOBS, RELEASE
from vista.orchestration.approval import PromotionApproval
from vista.orchestration.assets import MAYBE
from vista.orchestration.conf import config_of
from vista.orchestration.deployment import alert
from vista.orchestration.operator import RayJobOperator
from vista.orchestration.triage import APPROVAL_TRIAGE, CELLS_TRIAGE, triage

TASK_DEFAULTS: dict[str, Any] = {
    "owner": "vista",
    "retries": 1,
    "retry_delay": timedelta(seconds=5),
    "on_failure_callback": [alert],
}

TRAINING_POOL = "vista_training"
"""Airflow's pool with one slot, which a task keeps while it waits: two trainings never share a GPU."""
TRAININGS = ("train_foundation", "retrain_downstream", "grid_cell")

HOUR_S = 3_600.0
DEADLINES_S = {
    "prepare": 3 * HOUR_S,
    "train_foundation": 24 * HOUR_S,
    "adopt_foundation": HOUR_S,
    "export_summaries": 12 * HOUR_S,
    "deliver": 6 * HOUR_S,
    "retrain_downstream": 12 * HOUR_S,
    "promote": HOUR_S,
    "clean_up": HOUR_S,
    "next_summaries": HOUR_S / 4,
    "check_delivery": HOUR_S,
    "grid_cell": 24 * HOUR_S,
    "grid": HOUR_S / 4,
}
"""The trigger enforces a job's deadline and stops it; the net below it is the operator's `LATE_S` while the
task waits, and Airflow's own time-out while it does not."""
NET_S = 600.0
KEEPS = {"retrain_downstream": ("gate",), "next_summaries": ("config",)}


def arguments_of(job: str) -> dict[str, Any]:
    """How a task runs a job, whatever its place."""
    return {
        "task_id": job,
        "doc_md": triage(job, JOBS[job].help),
        "deadline_s": DEADLINES_S[job],
        "execution_timeout": timedelta(seconds=DEADLINES_S[job] + NET_S),
        "pool": TRAINING_POOL if job in TRAININGS else None,
        "outlets": [MAYBE[job][0]] if job in MAYBE else [],
        "keeps": KEEPS.get(job, ()),
    }


def jobs_in_order(*names: str, values: Any = None) -> list[RayJobOperator]:
    """Tasks for jobs, one after the other; `promote` after the approval of what was trained."""
    tasks: list[RayJobOperator] = []
    for name in names:
        told = approve_after(tasks[-1]).output if name == "promote" else None
        tasks.append(RayJobOperator(**arguments_of(name), values=values, told=told))
    chain(*tasks)
    return tasks


def approve_after(retrained: RayJobOperator) -> PromotionApproval:
    """The task between a retraining and its promotion; it passes at once unless approval is on."""
    approval = PromotionApproval(
        task_id="approve_promotion",
        retrained=retrained.task_id,
        doc_md=APPROVAL_TRIAGE,
        execution_timeout=timedelta(seconds=NET_S),
    )
    retrained >> approval
    return approval


def release_of_next_summaries() -> list[RayJobOperator]:
    """The newest summaries that wait, then RELEASE in the run that delivered them."""
    found = RayJobOperator(**arguments_of("next_summaries"))
    tasks = jobs_in_order(*RELEASE, values=XComArg(found, "config"))
    return [found, *tasks]


def grid_tasks() -> None:
    """The list of cells, a training for each, one after the other, and the table."""

    @task(
        doc_md=CELLS_TRIAGE,
        execution_timeout=timedelta(seconds=NET_S),
        multiple_outputs=False,
    )
    def cells() -> list[dict[str, Any]]:
        config = config_of(GridConfig, get_current_context())
        return [cell.model_dump() for cell in config.cells()]

    trained = RayJobOperator.partial(**arguments_of("grid_cell")).expand(values=cells())
    trained >> RayJobOperator(**arguments_of("grid"), trigger_rule="all_done")


def form(config: type[Frozen] = RefreshConfig, **defaults: object) -> dict[str, Param]:
    """Airflow's form of a job: the fields of its configuration with their limits, some with other defaults.

    Nested schemas do not render, so an optional field becomes one schema with the types "null" and its own.
    So does a text that may be empty: the form cannot be sent while one without "null" is.
    """
    properties = config.model_json_schema()["properties"]
    return {
        name: _param(name, schema | ({"default": defaults[name]} if name in defaults else {}))
        for name, schema in properties.items()
    }


def _param(name: str, schema: dict[str, Any]) -> Param:
    flat = {key: value for key, value in schema.items() if key not in ("anyOf", "default")}
    for choice in schema.get("anyOf", []):
        if choice["type"] != "null":
            flat |= choice | {"type": ["null", choice["type"]]}
    if schema["default"] == "":
        flat["type"] = ["null", "string"]
    if "enum" in flat and "null" in flat["type"]:
        flat["enum"] = [None, *flat["enum"]]
    return Param(schema["default"], **flat)
