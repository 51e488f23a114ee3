"""One stage of a refresh alone, for tests that kill what runs it, or run two at once."""

from datetime import timedelta

from airflow.sdk import DAG

from vista.orchestration.stages import TASK_DEFAULTS, form, jobs_in_order

for dag_id, stage in (("one_stage", "prepare"), ("one_training", "train_foundation")):
    with DAG(
        dag_id,
        schedule=None,
        catchup=False,
        is_paused_upon_creation=False,
        default_args={**TASK_DEFAULTS, "retry_delay": timedelta(seconds=1)},
        params=form(),
    ) as dag:
        jobs_in_order(stage)
    globals()[dag_id] = dag
