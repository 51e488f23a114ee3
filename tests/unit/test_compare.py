"""`python -m vista compare`: what differs, what is better, and why two runs cannot be compared."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from vista.__main__ import commands, main
from vista.config import Settings
from vista.errors import BackendError, InputError
from vista.evaluate.bootstrap import paired_bootstrap
from vista.evaluate.metrics import measure
from vista.evaluate.scored_rows import ScoredRows
from vista.train.compare import Comparison, compare
from vista.train.mlflow_store import client
from vista.train.model_run import SCORES_FILE, keep_scores, kept_scores, of_test_rows, pictures
from vista.train.tracking import Tracked, track

ROWS = 600


def scored(noise: float, seed: int = 0, labels_seed: int = 0) -> ScoredRows:
    """Fifty users; the less noise, the better the scores."""
    users_N = np.arange(ROWS, dtype=np.int64) % 50
    labels_N = np.random.default_rng(labels_seed).random(ROWS) < 0.4
    noise_N = np.random.default_rng(seed + 1).normal(size=ROWS) * noise
    scores_N = 1 / (1 + np.exp(-(labels_N - 0.5 + noise_N)))
    return ScoredRows(users_N, labels_N, scores_N.astype(np.float32))


def logged(
    settings: Settings,
    experiment: str,
    name: str,
    rows: ScoredRows | None,
    params: dict[str, object] | None = None,
    parent: Tracked | None = None,
    **tags: str,
) -> Tracked:
    """A finished run."""
    named = {"vista.data_digest": "d1", **{f"vista.{tag}": text for tag, text in tags.items()}}
    run = track(settings, experiment, name, params or {}, named, parent)
    if rows is not None:
        keep_scores(run, rows)
    measured = scored(1.0) if rows is None else rows
    run.finish(of_test_rows(measure(measured.users_N, measured.labels_N, measured.scores_N), {}))
    return run


@pytest.fixture(scope="module")
def grid(settings: Settings) -> Comparison:
    """Two models of two seeds below the newer of two grids; an unfinished cell beside them."""
    older = track(settings, "grid", "older", {}, {})
    logged(settings, "grid", "of the older", scored(1.0), {}, older, model="vista", seed="0")
    older.finish({})
    newer = track(settings, "grid", "newer", {}, {})
    for seed in ("0", "1"):
        for model, noise in (("vista", 1.0), ("din", 2.0)):
            params = {"kind": model, "train.epochs": 1, "train.seed": seed}
            rows = scored(noise, int(seed))
            logged(settings, "grid", f"{model}-{seed}", rows, params, newer, model=model, seed=seed)
    logged(settings, "grid", "permuted", None, {"kind": "vista"}, newer, model="vista_permuted", seed="0")
    track(settings, "grid", "unfinished", {}, {}, newer)
    newer.finish({})
    return compare(settings, "grid")


def test_a_grid_is_compared_by_its_newest_run(grid: Comparison) -> None:
    assert (grid.parent, grid.other_parents) == ("newer", ("older",))
    assert {run.name for run in grid.runs} == {"vista-0", "vista-1", "din-0", "din-1", "permuted"}
    assert grid.differing == ("kind", "train.epochs", "train.seed")  # permuted has one of them only


def test_the_best_stands_first(grid: Comparison, settings: Settings) -> None:
    areas = [run.metrics["test_auc"] for run in grid.runs if run.rows]
    assert areas == sorted(areas, reverse=True)
    by_loss = compare(settings, "grid", metrics=["test_log_loss"])
    losses = [run.metrics["test_log_loss"] for run in by_loss.runs if run.rows]
    assert losses == sorted(losses)
    assert by_loss.metrics == ("test_log_loss",)


def test_models_of_a_grid_are_compared_with_vista_of_the_same_seed(grid: Comparison) -> None:
    """With the very intervals of the bootstrap that the experiment's own report takes."""
    found = {run.name: run for run in grid.runs}
    assert found["vista-0"].difference is None
    for seed in (0, 1):
        one = found[f"din-{seed}"]
        assert one.reference == f"vista-{seed}"
        rows = {"vista": scored(1.0, seed), "din": scored(2.0, seed)}
        scores = {name: kept.scores_N for name, kept in rows.items()}
        expected = paired_bootstrap(
            rows["din"].users_N, rows["din"].labels_N.astype(np.float32), scores, "vista", seed=seed
        )
        assert one.difference is not None
        assert one.difference.auc == expected["din"].auc
        assert one.difference.ne == expected["din"].ne
        assert one.difference.auc.high < 0 < one.difference.ne.low


def test_a_model_is_not_compared_with_vista_of_another_seed(settings: Settings) -> None:
    """vista of seed 1 has failed."""
    whole = track(settings, "gaps", "whole", {}, {})
    for model, seed in (("vista", "0"), ("din", "0"), ("din", "1")):
        logged(settings, "gaps", f"{model}-{seed}", scored(1.0), {}, whole, model=model, seed=seed)
    whole.finish({})
    for reference in ("", "vista"):
        found = {run.name: run for run in compare(settings, "gaps", reference=reference).runs}
        assert (found["din-0"].reference, found["din-1"].reference) == ("vista-0", "")
        assert found["din-1"].why == "no run of vista has its seed (1)"
    named = {run.name: run for run in compare(settings, "gaps", reference="vista-0").runs}
    assert named["din-1"].reference == "vista-0", "whoever names a run means it"


def test_the_table_says_it(grid: Comparison) -> None:
    text = grid.text()
    lines = text.splitlines()
    assert lines[0] == "grid: 5 runs below newer (also: older; --parent)"
    (header,) = (line for line in lines if line.startswith("run ") and "compared with" in line)
    assert all(name in header for name in ("kind", "train.seed", "test_auc", "AUC difference"))
    (din,) = (line for line in lines if line.startswith("din-0 "))
    assert "vista-0" in din
    assert "(-0." in din
    assert f"({ROWS:,})" in text
    assert "permuted: no interval: it kept no scores" in lines


def test_counts_have_no_decimals(settings: Settings, grid: Comparison) -> None:
    text = compare(settings, "grid", metrics=["test_auc", "test_rows"]).text()
    (din,) = (line.split() for line in text.splitlines() if line.startswith("din-0 "))
    assert str(ROWS) in din
    assert f"{ROWS}.0000" not in din


def test_an_older_grid_and_another_reference_can_be_named(settings: Settings, grid: Comparison) -> None:
    assert [run.name for run in compare(settings, "grid", parent="older").runs] == ["of the older"]
    found = {run.name: run for run in compare(settings, "grid", reference="din").runs}
    assert (found["vista-1"].reference, found["din-1"].difference) == ("din-1", None)
    before = next(run for run in grid.runs if run.name == "din-1").difference
    after = found["vista-1"].difference
    assert before is not None
    assert after is not None
    assert after.auc.point == pytest.approx(-before.auc.point)
    with pytest.raises(
        InputError, match=r"--parent 'oldest' has no runs below it: choose one of newer, older"
    ):
        compare(settings, "grid", parent="oldest")
    with pytest.raises(InputError, match=r"--reference 'dien': there are "):
        compare(settings, "grid", reference="dien")
    with pytest.raises(InputError, match=r"--metrics 'auc': no run has it; there are .*test_auc"):
        compare(settings, "grid", metrics=["auc"])


def test_runs_on_other_rows_or_data_say_so(settings: Settings) -> None:
    for name, rows, data in (
        ("monday", scored(1.0), "d1"), ("again", scored(1.5), "d1"),
        ("tuesday", scored(1.0, labels_seed=1), "d1"), ("elsewhere", scored(1.0), "d2"),
    ):  # fmt: skip
        logged(settings, "days", name, rows, {"run_id": name}, data_digest=data)
    found = {run.name: run for run in compare(settings, "days").runs}
    assert found["again"].reference == "monday", "the oldest, where none is called vista"
    assert found["again"].difference is not None
    assert found["tuesday"].why == "no other run of its rows is compared with it"
    named = compare(settings, "days", reference="monday")
    found = {run.name: run for run in named.runs}
    rows = {run.name: run.rows for run in named.runs}
    assert found["tuesday"].why == (
        f"tested on other rows ({rows['tuesday'][:8]}) than monday ({rows['monday'][:8]})"
    )
    assert found["elsewhere"].why == "tested on other data (d2) than monday (d1)"
    assert "elsewhere: no interval: tested on other data (d2) than monday (d1)" in named.text()
    assert named.differing == (), "run ids always differ"


def test_scores_that_were_swapped_are_refused(settings: Settings, tmp_path: Path) -> None:
    run = logged(settings, "damaged", "one", scored(1.0))
    path = scored(1.0, labels_seed=1).write(tmp_path / SCORES_FILE)
    client(run.url).log_artifact(run.run_id, str(path))
    with pytest.raises(BackendError, match=rf"{run.run_id}: {SCORES_FILE} is of rows .* delete the run"):
        kept_scores(run.url, run.run_id, scored(1.0).digest)


def test_the_command_prints_a_table_or_json(
    settings: Settings, grid: Comparison, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VISTA_HOME", str(settings.home))
    shown = CliRunner().invoke(commands, ["compare", "grid", "--metrics", "test_ne, test_auc"])
    assert shown.exit_code == 0, shown.output
    assert "test_gauc" not in shown.output
    printed = CliRunner().invoke(commands, ["compare", "grid", "--json"])
    assert Comparison.model_validate(json.loads(printed.output)) == grid


def test_an_unknown_experiment_names_those_that_exist(
    settings: Settings, grid: Comparison, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.setenv("VISTA_HOME", str(settings.home))
    assert main(["compare", "gird"]) == 2
    said = capsys.readouterr().err
    assert "experiment 'gird' does not exist" in said
    assert grid.experiment in said.partition("there are ")[2]
    monkeypatch.setenv("VISTA_HOME", str(tmp_path))
    assert main(["compare", "grid"]) == 2
    assert "there is none; set VISTA_HOME" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [], "looking makes nothing"


def test_pictures_are_files_of_their_own() -> None:
    """A browser shows an SVG file only with its namespace."""
    drawn = pictures((), {"din": scored(1.0), "vista": scored(0.5)})
    assert set(drawn) == {"figures/calibration.svg"}, "no curve, no picture of curves"
    assert drawn["figures/calibration.svg"].startswith('<svg xmlns="http://www.w3.org/2000/svg" ')
    assert ">din<" in drawn["figures/calibration.svg"]
