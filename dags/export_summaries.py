"""Summaries of new days by the foundation that serves; see `doc_md`."""

from airflow.sdk import DAG

from vista.jobs import ADOPT, SUMMARIES
from vista.orchestration.assets import FOUNDATION_CHAMPION
from vista.orchestration.stages import TASK_DEFAULTS, form, jobs_in_order

TRIAGE = """
### export_summaries

Takes the newest released foundation as it is and makes what is missing of its epochs: table partition, log,
every region, verified. It runs when another foundation was released, and whenever you want summaries of newer
events. Days that have their epoch are not made again; one that is older than the release stays in the table.
`retrain_downstream` goes on from here. Without a form, the run has the values of the Variable `vista`.

| A run | Do |
|---|---|
| fails in a task | The task's page says what to do. Clear it: what is done is not repeated. |
| says that nothing is released | Run `production_refresh` first. |
"""

with DAG(
    "export_summaries",
    description="Export and deliver summaries of new days by the foundation that serves",
    doc_md=TRIAGE,
    schedule=[FOUNDATION_CHAMPION],
    catchup=False,
    max_active_runs=1,
    default_args=TASK_DEFAULTS,
    params=form(warm_start=True),
    tags=["vista"],
) as dag:
    jobs_in_order("prepare", ADOPT, *SUMMARIES)
