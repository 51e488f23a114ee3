"""The whole refresh, from events to a promoted release; see `doc_md`."""

from airflow.sdk import DAG

from vista.orchestration.stages import REFRESH, TASK_DEFAULTS, form, stages_in_order

TRIAGE = """
### production_refresh

Events -> examples -> foundation training -> summaries -> delivery -> downstream training -> release.
Every task is a Ray job that runs `python -m vista <task>`; the form is `RefreshConfig`.

| A task fails with | Do |
|---|---|
| exit code 2, `error: ...` | The input cannot be used: mend what the message names, trigger a new run. |
| killed by signal 9 | Out of memory or a lost node. It resumes by itself; if it repeats, lower `max_uih`. |
| Ray cannot be reached | Mend the head or its network: the retry goes on with the job that still runs. |
| answered 401 | Put the head's token into the password of the connection `ray_default`, clear the task. |
| out of memory on Ray's node | Ray killed a worker: lower the batch, the workers or `max_uih` in a new run. |
| Ray does not know this job any more | Its head was restarted: the retry resumes. |
| the deadline passed | The job was stopped. Clear the task: it resumes at its last checkpoint. |

A cleared task and a new run with the same `run_id` resume: finished stages return their report at once.
"""

with DAG(
    "production_refresh",
    description="One refresh, from events to a promoted downstream model",
    doc_md=TRIAGE,
    schedule=None,
    catchup=False,
    max_active_runs=1,
    default_args=TASK_DEFAULTS,
    params=form(),
    tags=["vista"],
) as dag:
    stages_in_order(REFRESH)
