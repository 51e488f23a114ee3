"""A grid of foundations: every cell is a run of its own, on data that are prepared once. In MLflow all grids
are one experiment: a run for each and, below it, a run per cell. Cells are no versions of the foundation."""

import logging
import time

from pydantic import ValidationError

from vista.config import Frozen, GridCell, GridConfig, RefreshConfig, Settings
from vista.data.prepare import PrepareReport
from vista.errors import InputError, StageError
from vista.evaluate.metrics import Metrics
from vista.jobs import run_stage
from vista.recipes import recipe_of
from vista.runs import RunDirectory
from vista.train.stage import StageContext
from vista.train.tracking import Tracked, track
from vista.train.train_foundation import checked, foundation_job, space_of, trained

LOG = logging.getLogger(__name__)

GRIDS = "vista-grid"
"""The experiment."""
STAGE = "train_foundation"
"""A cell's report is kept as that of this stage."""


class CellReport(Frozen):
    """A trained cell; metrics are of the test day."""

    cell: GridCell
    run_id: str
    mlflow_run_id: str
    metrics: Metrics


class GridReport(Frozen):
    """All cells, by falling AUC."""

    mlflow_run_id: str
    cells: tuple[CellReport, ...]


def grid_cell(config: GridCell, settings: Settings) -> CellReport:
    """Train and measure one cell. Run again, it trains nothing anew."""
    refresh = refresh_of(config)
    recipe_of(refresh)  # its limits, before anything is prepared or kept
    share_data(config, refresh, settings)
    started = time.monotonic()
    stage = StageContext.open(refresh, settings)
    training, space = checked(foundation_job(stage)), space_of(stage)
    tracked = track_cell(config, stage, space)
    with tracked.running():
        report = trained(stage, training, space, tracked)
    stage.run.keep_stage_report(STAGE, report, seconds=time.monotonic() - started)
    return cell_report(config, settings)


def track_cell(cell: GridCell, stage: StageContext, space: str) -> Tracked:
    """The MLflow run of a cell, made unless it exists. Its model is its shape, so that seeds are paired."""
    shape = cell.name.removesuffix(f"-seed-{cell.seed}")
    tags = stage.tags(space) | {"vista.model": shape, "vista.seed": str(cell.seed)}
    params = {"grid": cell.grid} | stage.params()
    return track(stage.settings, GRIDS, cell.name, params, tags, parent_of(cell.grid, stage.settings))


def grid(config: GridConfig, settings: Settings) -> GridReport:
    """Compare the cells that are trained, and end the grid's MLflow run. Raises `StageError`, after that, if
    others are not."""
    cells, missing = [], []
    for cell in config.cells():
        if RunDirectory.named(settings.runs, run_id_of(cell)).stage(STAGE) is None:
            missing.append(cell.name)
        else:
            cells.append(cell_report(cell, settings))
    cells.sort(key=lambda report: -report.metrics.auc)
    for report in cells:
        LOG.info("%-48s AUC %.4f  NE %.4f", report.cell.name, report.metrics.auc, report.metrics.ne)
    parent = parent_of(config.grid, settings)
    best = {"best_test_auc": cells[0].metrics.auc} if cells else {}
    parent.finish({"cells": len(cells), "missing": len(missing), **best})
    if missing:
        raise StageError(
            f"{len(missing)} of {len(missing) + len(cells)} cells are not trained ({', '.join(missing)}): "
            "their tasks say why; clear those, then this one. The others are compared"
        )
    return GridReport(mlflow_run_id=parent.run_id, cells=tuple(cells))


def run_id_of(cell: GridCell) -> str:
    """The run of a cell."""
    return f"{cell.grid}-{cell.name}"


def refresh_of(cell: GridCell) -> RefreshConfig:
    """A cell as a run. Raises `InputError` for a value that no run can have."""
    values = cell.model_dump(exclude={"grid"})
    try:
        return RefreshConfig(run_id=run_id_of(cell), **values)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"cell {cell.name}: {first['loc'][0]} {first['input']}: {first['msg']}") from error


def share_data(cell: GridCell, refresh: RefreshConfig, settings: Settings) -> None:
    """Prepare the grid's data if they are not; the cell's run reads the same files. How events are read does
    not depend on what the cells differ in."""
    shared = RefreshConfig(
        run_id=f"{cell.grid}-data", recipe=cell.recipe, data_dir=cell.data_dir, until=cell.until
    )
    prepared = PrepareReport.model_validate(run_stage("prepare", shared, settings))
    run = RunDirectory.open(settings.runs, refresh)
    if run.stage("prepare") is None:
        run.data.unlink(missing_ok=True)
        run.data.symlink_to(RunDirectory.named(settings.runs, shared.run_id).data)
        run.keep_stage_report("prepare", prepared, seconds=0.0)


def cell_report(cell: GridCell, settings: Settings) -> CellReport:
    """What a trained cell is."""
    report = RunDirectory.named(settings.runs, run_id_of(cell)).report_of(STAGE)
    return CellReport(
        cell=cell,
        run_id=run_id_of(cell),
        mlflow_run_id=report["mlflow_run_id"],
        metrics=Metrics.model_validate(report["metrics"]),
    )


def parent_of(name: str, settings: Settings) -> Tracked:
    """The MLflow run that holds those of the cells."""
    return track(settings, GRIDS, name, {"grid": name}, {})
