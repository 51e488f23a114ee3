"""Are the summaries that serve where they should be? See `doc_md`."""

from airflow.sdk import DAG, CronTriggerTimetable

from vista.config import CheckConfig
from vista.orchestration.stages import TASK_DEFAULTS, form, jobs_in_order

TRIAGE = """
### check_delivery

Coverage, lag and age of what serves, in every region. What is missing is replayed from the log or refilled
from the table, and the audit says so. What is left, and summaries older than `max_age_s`, fail the run, and
whoever the connection `vista_alerts` names is told. The Variable `vista` may set `max_age_s`: two cadences.

| A run fails with | Do |
|---|---|
| `these are left:` | What could not be mended, a line each: docs/operations.md has what to do by symptom. |
| `its oldest summary is ... old` | Refreshes fail or are not promoted: look at `production_refresh`. |
"""

with DAG(
    "check_delivery",
    description="Check and mend the delivery of what serves",
    doc_md=TRIAGE,
    schedule=CronTriggerTimetable("*/15 * * * *", timezone="UTC"),
    catchup=False,
    max_active_runs=1,
    default_args=TASK_DEFAULTS,
    params=form(CheckConfig),
    tags=["vista"],
) as dag:
    jobs_in_order("check_delivery")
