"""DAGs of the platform, and parts of `production_refresh` that are quicker than all of it."""

from datetime import timedelta

from airflow.sdk import DAG

import dags.experiments
import dags.production_refresh
import dags.retrain_downstream
from vista.jobs import RELEASE
from vista.orchestration.stages import TASK_DEFAULTS, form, jobs_in_order

retrain_downstream = dags.retrain_downstream.dag
experiments = dags.experiments.dag
QUICK = {**TASK_DEFAULTS, "retry_delay": timedelta(seconds=1)}

with DAG(
    "one_day",
    schedule=dags.production_refresh.dag.schedule,
    catchup=False,  # without a scheduled run Airflow would make up every day since the backfill's last
    max_active_runs=dags.production_refresh.dag.max_active_runs,
    default_args={**QUICK, "start_date": None},
    is_paused_upon_creation=False,
    params=form(),
) as one_day:
    jobs_in_order("prepare")

with DAG(
    "one_release",
    schedule=None,
    default_args=QUICK,
    is_paused_upon_creation=False,
    params=form(),
) as one_release:
    jobs_in_order(*RELEASE)
