"""A grid's cells: one data set, a run and an MLflow run each, below the grid's own."""

import sqlite3
from pathlib import Path

import pytest
import torch
from training_data import foundation_in_place, settings_of

from vista.config import GridCell, GridConfig, RefreshConfig, Settings
from vista.errors import InputError, StageError
from vista.runs import RunDirectory
from vista.train.compare import compare
from vista.train.experiments.grid import grid, grid_cell, refresh_of, share_data
from vista.train.model_run import kept_scores

GRID = GridConfig(grid="shapes", recipe="smoke", seeds="2,4", widths="16", lengths="20")


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A grid of two cells whose first one is trained (as it was initialised), and reported twice."""
    torch.set_num_threads(1)
    settings = settings_of(tmp_path_factory.mktemp("home"))
    first = GRID.cells()[0]
    share_data(first, refresh_of(first), settings)
    run = RunDirectory.open(settings.runs, refresh_of(first))
    assert run.data.resolve() == (settings.runs / "shapes-data" / "data").resolve()
    foundation_in_place(refresh_of(first), settings)
    assert grid_cell(first, settings) == grid_cell(first, settings)
    return settings


def rows(settings: Settings, query: str) -> list[tuple[str, ...]]:
    with sqlite3.connect(settings.home / "mlflow.db") as store:
        return store.execute(query).fetchall()


def test_a_cell_is_a_run_with_its_shape() -> None:
    first, second = GRID.cells()
    assert (first.seeds, second.seeds, first.width, first.max_uih) == (2, 4, 16, 20)
    assert refresh_of(first) == RefreshConfig(
        recipe="smoke", run_id="shapes-seeds-2-width-16-length-20-seed-0", seeds=2, width=16, max_uih=20
    )
    assert len({cell.name for cell in GridConfig(repeats=3).cells()}) == 24


def test_cells_are_nested_in_one_experiment(settings: Settings) -> None:
    with pytest.raises(
        StageError, match=r"1 of 2 cells are not trained \(seeds-4-width-16-length-20-seed-0\)"
    ):
        grid(GRID, settings)  # the other one is compared
    report = grid(GRID.model_copy(update={"seeds": "2"}), settings)
    (cell,) = report.cells
    assert cell.cell == GRID.cells()[0]
    experiments = rows(settings, "select name from experiments where name like 'vista-grid%'")
    assert experiments == [("vista-grid-shapes",)]
    parents = rows(settings, "select value from tags where key = 'mlflow.parentRunId'")
    assert parents == [(report.mlflow_run_id,)]
    shapes = dict(rows(settings, "select key, value from params where key in ('seeds', 'width', 'max_uih')"))
    assert shapes == {"seeds": "2", "width": "16", "max_uih": "20"}
    figures = {key for (key,) in rows(settings, "select key from latest_metrics")}
    assert figures >= {"test_auc", "test_ne", "best_test_auc", "cells", "missing"}


def test_a_cell_keeps_its_scores_for_the_comparison(settings: Settings) -> None:
    grid(GRID.model_copy(update={"seeds": "2"}), settings)
    (run,) = compare(settings, "vista-grid-shapes").runs
    kept = kept_scores(settings.mlflow_url, run.id, run.rows)
    assert len(kept.scores_N) == 8 * 120  # candidates of a user's day, users


def test_another_data_set_under_a_grid_s_name_is_refused(settings: Settings, tmp_path: Path) -> None:
    other = GridCell.model_validate(GRID.cells()[0].model_dump() | {"until": "2022-01-12", "seed": 7})
    with pytest.raises(InputError, match="was started with other values"):
        grid_cell(other, settings)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"width": 5}, "cell seeds-2-width-5-length-20-seed-0: width 5: Input should be greater"),
        ({"seeds": 5_000}, "seeds 5000: Input should be less"),
        ({"width": 17}, "width 17 is not a multiple of heads"),
    ],
)
def test_a_cell_that_no_run_can_be_is_refused_before_anything_is_kept(
    value: dict[str, int], message: str, tmp_path: Path
) -> None:
    cell = GridCell.model_validate(GRID.cells()[0].model_dump() | value)
    with pytest.raises(InputError, match=message):
        grid_cell(cell, settings_of(tmp_path))
    assert list(tmp_path.iterdir()) == []
