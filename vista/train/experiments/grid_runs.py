"""An experiment in MLflow: a run for the whole grid and, below it, a run per cell.

Whoever comes to the same grid again, after an interruption, finds the same run: it is named by options,
recipes, data and code.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from vista.config import ExperimentConfig, Settings
from vista.evaluate.scored_rows import ScoredRows
from vista.train.experiments.cell import CELL_FILE, Cell, CellJob
from vista.train.experiments.fingerprint import short_digest
from vista.train.experiments.grids import Experiment
from vista.train.mlflow_store import MANY, client, mapped
from vista.train.model_run import keep_scores, of_test_rows, pictures
from vista.train.tracking import PARENT, Tracked, flattened, track

WHICH_CELLS = ("sets", "models", "seeds", "first_seed")
"""Options of an experiment."""


@dataclass(frozen=True, slots=True)
class Grid:
    """The run of a grid, and the experiment that it and its cells are in."""

    experiment: str
    run: Tracked


def experiment_name(name: str) -> str:
    """MLflow's for `experiment NAME`."""
    return f"vista-experiment-{name}"


def track_grid(
    settings: Settings, grid: Experiment, config: ExperimentConfig, code: str, data_digests: Mapping[str, str]
) -> Grid:
    """The run of the whole grid; `data_digests` by block."""
    recipes = [block.model_dump_json(exclude={"data": {"path"}}) for block in grid.blocks]
    which = [*(str(getattr(config, name)) for name in WHICH_CELLS), *recipes, *data_digests.values()]
    digests = {f"vista.data_digest/{block}": digest for block, digest in data_digests.items()}
    name = f"{grid.name}-{short_digest(code, *which)[:8]}"
    tags = {"vista.code_digest": code, **digests}
    experiment = experiment_name(grid.name)
    return Grid(experiment, track(settings, experiment, name, flattened(config), tags))


@mapped
def finished_cells(grid: Grid) -> set[str]:
    """Names of the cells of which everything is logged."""
    store = client(grid.run.url)
    experiment_id = store.get_experiment_by_name(grid.experiment).experiment_id
    below = f"tags.`{PARENT}` = '{grid.run.run_id}' and attributes.status = 'FINISHED'"
    return {run.info.run_name for run in store.search_runs([experiment_id], below, max_results=MANY)}


def cell_name(job: CellJob) -> str:
    """A cell's within its grid."""
    return f"{job.block.data_set}-{job.block.inputs}-{job.arm.name}-{job.seed}"


def track_cell(
    settings: Settings, grid: Grid, job: CellJob, cell: Cell, data_digest: str, rows: ScoredRows | None
) -> None:
    """Log a cell that is made. `rows` are None if it was tested on other labels than others of its block."""
    data = job.block.data.model_dump(mode="json", exclude={"path", "generated"})
    params = flattened(job.arm) | {f"data.{name}": value for name, value in data.items()}
    params |= {"block": job.block.name, "train.seed": job.seed}
    tags = {"vista.model": job.arm.name, "vista.seed": str(job.seed), "vista.data_digest": data_digest}
    run = track(settings, grid.experiment, cell_name(job), params, tags, grid.run)
    metrics = of_test_rows(cell.metrics, cell.other_auc) | {"seconds": cell.seconds}
    for name, part in (("training", cell.training), ("probes", cell.probes)):
        found = part.model_dump(exclude_none=True) if part else {}
        metrics |= {f"{name}.{one}": value for one, value in found.items()}
    if rows is not None:
        keep_scores(run, rows)
    drawn = {} if rows is None else pictures((), {job.arm.name: rows})
    config = {"config.json": job.model_dump_json(indent=2, exclude={"dataset", "directory"})}
    run.finish(metrics, {job.directory / CELL_FILE: "cell"}, config | drawn)
