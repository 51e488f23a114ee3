"""A grid of foundations in one MLflow experiment; see `doc_md`."""

from airflow.sdk import DAG

from vista.config import GridConfig
from vista.orchestration.stages import TASK_DEFAULTS, form, grid_tasks

TRIAGE = """
### experiments

Every combination of summary seeds, width and history length is trained as a foundation on the same data and
measured on its test day. MLflow's experiment `vista-grid` holds a run per grid and, below it, one per cell;
`python -m vista compare vista-grid` puts those of the newest side by side. Trainings take turns (pool
`vista_training`). Nothing is registered, exported or released.

| A run | Do |
|---|---|
| fails in some cells | The others are whole. Clear the failed ones: what is trained is kept. |
| is to have more cells | Start it with the same `grid` and longer lists: only new cells are trained. |
"""

with DAG(
    "experiments",
    description="Train a grid of foundations and compare them",
    doc_md=TRIAGE,
    schedule=None,
    catchup=False,
    default_args=TASK_DEFAULTS,
    params=form(GridConfig),
    tags=["vista"],
) as dag:
    grid_tasks()
