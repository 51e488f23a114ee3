"""The whole refresh, from events to a promoted release; see `doc_md`."""

from airflow.sdk import DAG, CronPartitionTimetable

from vista.jobs import FOUNDATION, RELEASE, SUMMARIES
from vista.orchestration.stages import TASK_DEFAULTS, form, jobs_in_order

TRIAGE = """
### production_refresh

Events -> examples -> foundation training -> summaries -> delivery -> downstream training -> release, every
day for the events until the end of the day before (UTC; the partition). A backfill of some days is made with
one active run at a time; so are the days of an outage, oldest first. Every task is a Ray job that runs
`python -m vista TASK`; the form is `RefreshConfig`. A scheduled run has the values of the Variable `vista`,
a JSON object of these fields; without one the day is skipped. The first run has no `warm_start`, later ones
do.

| A run | Do |
|---|---|
| fails in a task | The task's page says what to do. Clear it: what is done is not repeated. |
| of a day is repeated | Nothing is done. To make it again: the form, *Until* = the day, another *Run Id*. |
| ends without a promotion | `promote` says why; `python -m vista promote --run-id RUN --reason WHY` does. |
| was skipped for days | Unpause the DAG: it catches up, or backfill the days that you want. |
"""

# no start_date: the days that are caught up with begin when the DAG is first unpaused, not at a date of ours
with DAG(
    "production_refresh",
    description="One refresh, from events to a promoted downstream model",
    doc_md=TRIAGE,
    schedule=CronPartitionTimetable("0 0 * * *", timezone="UTC", run_offset=-1, key_format="%Y-%m-%d"),
    catchup=True,
    max_active_runs=1,
    default_args={**TASK_DEFAULTS, "start_date": None},
    params=form(),
    tags=["vista"],
) as dag:
    jobs_in_order(*FOUNDATION, *SUMMARIES, *RELEASE)
