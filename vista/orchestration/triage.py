"""What to do when a task fails: shown on its page in Airflow."""

EVERY_JOB = """
| Any job fails with | Do |
|---|---|
| exit code 2, `error: ...` | The input cannot be used: mend what the message names, trigger a new run. |
| killed by signal 9 | Out of memory or a lost node. It resumes by itself; if it repeats, lower `max_uih`. |
| Ray cannot be reached | Mend the head or its network: the retry goes on with the job that still runs. |
| there is no Airflow connection | Add `ray_default`: host and password as the message says; clear the task. |
| write http://HOST:PORT | Write that as the host of the connection `ray_default`; clear the task. |
| answered 401 | Put the head's token into the password of the connection `ray_default`, clear the task. |
| out of memory on Ray's node | Ray killed a worker: lower the batch, the workers or `max_uih` in a new run. |
| Ray does not know this job any more | Its head was restarted: the retry resumes. |
| the deadline passed | The job was stopped for good. Clear the task: it resumes where it was. |
"""

OF_A_JOB = {
    "prepare": """
The newest day does not look like the others: wait for the rest of its events, then clear the task.
Rejected rows: `rejects.jsonl` in the run's folder has each of them with its reason.
""",
    "train_foundation": """
It waits in the pool `vista_training` while another training runs.
`warm_start` and nothing is released: make the first run without it.
""",
    "adopt_foundation": """
The data set has other ids or values than the space that serves: run `production_refresh` without
`warm_start`, which opens a new space.
""",
    "export_summaries": """
The catalog or the warehouse does not answer: mend it, clear the task; whole shards are kept.
""",
    "deliver": """
A region lacks room, users or a canary: the message names it, and `python -m vista repair` refills it.
An epoch that is older than the release stays in the table: that is no failure.
""",
    "retrain_downstream": """
It waits in the pool `vista_training` while another training runs.
A leak: withdraw the epoch that the message names, export again.
""",
    "promote": """
Another release came meanwhile: clear `retrain_downstream` of this run. The models are kept, and compared with
that. Runs of the DAG `retrain_downstream` do so by themselves: the next one goes on.
A region does not take the release: `python -m vista repair`, then clear the task.
""",
    "clean_up": """
What was promoted serves all the same. Clear the task when the back ends answer.
""",
    "next_summaries": """
The catalog does not answer. Nothing is lost: the next run reads from the same watermark.
""",
    "check_delivery": """
The log ends with what could not be mended, and `python -m vista verify` shows it again.
docs/operations.md has what to do by symptom.
""",
    "grid_cell": """
Only this cell is missing in the grid. Clear it: what is trained is kept.
""",
    "grid": """
MLflow does not answer: clear the task when it does.
""",
}

APPROVAL_TRIAGE = """
Waits for a person if the Variable `vista_approval` is `true` and the gate lets the models pass.
Nobody answered for 20 hours: it counts as rejected, so that the next day's refresh begins. All the same:
`python -m vista promote --run-id RUN --reason WHY`.
"""

CELLS_TRIAGE = """
Writes the form's lists out. It fails for values that cannot be used: trigger a new run.
"""


def triage(job: str, what: str) -> str:
    """The page of a job's task."""
    return f"`python -m vista {job}`: {what}\n{OF_A_JOB[job]}{EVERY_JOB}"
