"""A grid of foundations: every cell is a run of its own, on data that are prepared once, and an MLflow run
below that of the grid."""

import logging

from pydantic import ValidationError

from vista.config import Frozen, GridCell, GridConfig, RefreshConfig, Settings
from vista.data.prepare import PrepareReport
from vista.errors import InputError, StageError
from vista.evaluate.metrics import Metrics
from vista.jobs import run_stage
from vista.recipes import recipe_of
from vista.runs import RunDirectory
from vista.train.model_run import keep_scores, of_test_rows
from vista.train.stage import StageContext
from vista.train.tracking import CurveLog, Tracked, flattened, track
from vista.train.train_foundation import MODEL

LOG = logging.getLogger(__name__)


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
    trained = run_stage("train_foundation", refresh, settings)
    report = cell_report(config, settings)
    tags = {"vista.run_id": report.run_id, "vista.training": trained["mlflow_run_id"]}
    parent = parent_of(config.grid, settings)
    child = track(settings, experiment_of(config.grid), report.run_id, flattened(config), tags, parent)
    log_training(StageContext.open(refresh, settings), child)
    child.finish(of_test_rows(report.metrics))
    return report


def log_training(stage: StageContext, child: Tracked) -> None:
    """Curves and scores beside those of the other cells, so that MLflow's page and `compare` have them."""
    result = stage.result(MODEL)
    CurveLog(child).add(result.fitted().curve)
    keep_scores(child, stage.scored_rows(result.scores()))


def grid(config: GridConfig, settings: Settings) -> GridReport:
    """Compare the cells that are trained, and end the grid's MLflow run. Raises `StageError`, after that, if
    others are not."""
    cells, missing = [], []
    for cell in config.cells():
        if RunDirectory.named(settings.runs, run_id_of(cell)).stage("train_foundation") is None:
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
    trained = RunDirectory.named(settings.runs, run_id_of(cell)).report_of("train_foundation")
    return CellReport(
        cell=cell,
        run_id=run_id_of(cell),
        mlflow_run_id=trained["mlflow_run_id"],
        metrics=Metrics.model_validate(trained["metrics"]),
    )


def parent_of(name: str, settings: Settings) -> Tracked:
    """The MLflow run that holds those of the cells."""
    return track(settings, experiment_of(name), name, {"grid": name}, {})


def experiment_of(name: str) -> str:
    """MLflow's experiment of a grid."""
    return f"vista-grid-{name}"
