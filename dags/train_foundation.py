"""A foundation model alone, for trying one out; see `doc_md`."""

from airflow.sdk import DAG

from vista.orchestration.stages import FOUNDATION, TASK_DEFAULTS, form, stages_in_order

TRIAGE = """
### train_foundation

Events -> examples -> foundation training: the first stages of `production_refresh`, and the same form.
Nothing is exported or released. Runs may overlap; their trainings take turns (pool `vista_training`).

| A task fails with | Do |
|---|---|
| anything | The table of `production_refresh` holds here too. |

A new run of `production_refresh` with the same `run_id` and values goes on from here.
"""

with DAG(
    "train_foundation",
    description="Prepare data and train a foundation model",
    doc_md=TRIAGE,
    schedule=None,
    catchup=False,
    default_args=TASK_DEFAULTS,
    params=form(),
    tags=["vista"],
) as dag:
    stages_in_order(FOUNDATION)
