"""A downstream model on the summaries that came since the last one; see `doc_md`."""

from airflow.sdk import DAG, AssetOrTimeSchedule, CronTriggerTimetable

from vista.orchestration.assets import SUMMARIES
from vista.orchestration.stages import TASK_DEFAULTS, release_of_next_summaries

TRIAGE = """
### retrain_downstream

Asks for the newest summaries that `export_summaries` delivered and no downstream model was trained on, and
goes on in the run that delivered them: retraining, gate, release, clean-up. All epochs since the last
retraining are read at once. Events of the asset only wake it: what is to do is found out from the reports of
the runs, so that no event can be lost for good. Nothing to do: everything after `next_summaries` is skipped.

| A run | Do |
|---|---|
| fails in a task | The task's page says what to do. Clear it, or leave it: the next run tries again. |
| never has anything to do | Only runs of `export_summaries` wait: `production_refresh` retrains its own. |
"""

with DAG(
    "retrain_downstream",
    description="Retrain and release a downstream model on new summaries",
    doc_md=TRIAGE,
    schedule=AssetOrTimeSchedule(
        timetable=CronTriggerTimetable("*/10 * * * *", timezone="UTC"), assets=[SUMMARIES]
    ),
    catchup=False,
    max_active_runs=1,
    default_args=TASK_DEFAULTS,
    tags=["vista"],
) as dag:
    release_of_next_summaries()
