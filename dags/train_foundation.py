"""A foundation model alone, for trying one out; see `doc_md`."""

from airflow.sdk import DAG

from vista.jobs import FOUNDATION
from vista.orchestration.stages import TASK_DEFAULTS, form, jobs_in_order

TRIAGE = """
### train_foundation

Events -> examples -> foundation training: the first stages of `production_refresh`, and the same form.
Nothing is exported or released. Runs may overlap; their trainings take turns (pool `vista_training`).

| A run | Do |
|---|---|
| fails in a task | The task's page says what to do. Clear it: what is done is not repeated. |
| is to become a release | Start `production_refresh` with the same `run_id` and values. |
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
    jobs_in_order(*FOUNDATION)
