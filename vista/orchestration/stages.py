"""What DAG files are made of: the stages in order, the form, the defaults of every task."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from airflow.sdk import Param
from airflow.sdk.bases.operator import chain

from vista.config import RefreshConfig
from vista.jobs import STAGES
from vista.orchestration.operator import DEADLINE_S, RayJobOperator

TASK_DEFAULTS: dict[str, Any] = {
    "owner": "vista",
    "retries": 1,
    "retry_delay": timedelta(seconds=5),
    "execution_timeout": timedelta(seconds=DEADLINE_S + 600),
}
"""The trigger enforces `DEADLINE_S` and stops the job; Airflow's own time-out is the net below it."""


TRAINING_POOL = "vista_training"
"""Airflow's pool with one slot, which a task keeps while it waits: two trainings never share a GPU."""
TRAININGS = ("train_foundation", "retrain_downstream")
FOUNDATION = ("prepare", "train_foundation")
REFRESH = tuple(STAGES)


def stages_in_order(names: Sequence[str]) -> list[RayJobOperator]:
    """Tasks for stages of `vista.jobs.STAGES`, one after the other."""
    tasks = [
        RayJobOperator(
            task_id=name,
            doc_md=f"`python -m vista {name}`: {STAGES[name].help}",
            pool=TRAINING_POOL if name in TRAININGS else None,
        )
        for name in names
    ]
    chain(*tasks)
    return tasks


def form() -> dict[str, Param]:
    """Airflow's form of a run: the fields of `RefreshConfig` with their limits.

    Nested schemas do not render, so an optional field becomes one schema with the types "null" and its own.
    So does a text that may be empty: the form cannot be sent while one without "null" is.
    """
    properties = RefreshConfig.model_json_schema()["properties"]
    return {name: _param(name, schema) for name, schema in properties.items()}


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
