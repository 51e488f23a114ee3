"""A grid's cells: one data set, a run and an MLflow run each, below the grid's own, as whole as others."""

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
from vista.train.mlflow_store import client
from vista.train.model_run import kept_scores
from vista.train.stage import StageContext

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
    assert rows(settings, "select name from experiments where experiment_id > 0") == [("vista-grid",)]
    parents = rows(settings, "select value from tags where key = 'mlflow.parentRunId'")
    assert parents == [(report.mlflow_run_id,)]
    figures = {key for (key,) in rows(settings, "select key from latest_metrics")}
    assert figures >= {"test_auc", "test_ne", "best_test_auc", "cells", "missing"}
    assert rows(settings, "select name from registered_models") == [], "nobody wants to release a cell"


def test_a_cell_s_run_has_what_a_refresh_s_foundation_has(settings: Settings) -> None:
    store, (cell,) = client(settings.mlflow_url), grid(GRID.model_copy(update={"seeds": "2"}), settings).cells
    run, stage = store.get_run(cell.mlflow_run_id), StageContext.open(refresh_of(cell.cell), settings)
    assert (run.info.run_name, run.info.status) == ("seeds-2-width-16-length-20-seed-0", "FINISHED")
    wanted = {"grid": "shapes", "seeds": "2", "width": "16", "max_uih": "20", "model.seeds": "2"}
    assert run.data.params.items() >= wanted.items()
    tags = {
        name: run.data.tags[f"vista.{name}"] for name in ("run_id", "recipe", "data_digest", "seed", "model")
    }
    assert tags == {
        "run_id": "shapes-seeds-2-width-16-length-20-seed-0", "recipe": "smoke", "seed": "0",
        "data_digest": stage.dataset.info.digest, "model": "seeds-2-width-16-length-20",
    }  # fmt: skip
    assert len(run.inputs.dataset_inputs) == 1
    kept = {one.path for folder in ("", "figures") for one in store.list_artifacts(run.info.run_id, folder)}
    assert kept >= {"checkpoint", "config", "scores.parquet", "figures/calibration.svg"}
    (one,) = compare(settings, "vista-grid", "shapes").runs
    assert len(kept_scores(settings.mlflow_url, one.id, one.rows).scores_N) == 8 * 120  # a user's day, users


def test_cells_of_a_grid_are_paired_by_their_seed(settings: Settings) -> None:
    pairs = GridConfig(grid="pairs", recipe="smoke", seeds="2,4", widths="16", lengths="20", repeats=2)
    for cell in pairs.cells():
        share_data(cell, refresh_of(cell), settings)
        foundation_in_place(refresh_of(cell), settings)
        grid_cell(cell, settings)
    found = compare(settings, "vista-grid")
    assert (found.parent, found.other_parents, found.differing) == ("pairs", ("shapes",), ("seed", "seeds"))
    references = {run.name: run.reference for run in found.runs if run.difference}
    small, large = "seeds-2-width-16-length-20", "seeds-4-width-16-length-20"
    assert references == {f"{large}-seed-{seed}": f"{small}-seed-{seed}" for seed in (0, 1)}
    assert {len(run.data) for run in found.runs} == {64}
    named = compare(settings, "vista-grid", reference=large).runs
    assert {run.reference for run in named if run.difference} == {f"{large}-seed-{seed}" for seed in (0, 1)}


def test_a_cell_that_fails_is_seen(settings: Settings) -> None:
    (cell,) = GridConfig(grid="broken", recipe="smoke", seeds="2", widths="16", lengths="20").cells()
    share_data(cell, refresh_of(cell), settings)
    stage = foundation_in_place(refresh_of(cell), settings)
    (stage.result("foundation").path / "scores.npz").write_bytes(b"")
    with pytest.raises(StageError, match=r"scores\.npz cannot be read"):
        grid_cell(cell, settings)
    experiment = client(settings.mlflow_url).get_experiment_by_name("vista-grid")
    runs = client(settings.mlflow_url).search_runs(
        [experiment.experiment_id], "params.run_id LIKE 'broken-%'"
    )
    assert [run.info.status for run in runs] == ["FAILED"]


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
