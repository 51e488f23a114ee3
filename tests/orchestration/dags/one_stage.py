"""The first stage of a refresh alone, for tests that kill what runs it."""

from datetime import timedelta

from airflow.sdk import DAG

from vista.orchestration.operator import RayJobOperator
from vista.orchestration.stages import TASK_DEFAULTS, form

with DAG(
    "one_stage",
    schedule=None,
    catchup=False,
    is_paused_upon_creation=False,
    default_args={**TASK_DEFAULTS, "retry_delay": timedelta(seconds=1)},
    params=form(),
):
    RayJobOperator(task_id="prepare")
