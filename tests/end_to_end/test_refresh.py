"""The whole DAG on the smoke recipe, through `make run`'s launcher: real Ray, real Airflow, real MLflow."""

import json
import re
import signal
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pytest
from mlflow import MlflowClient
from refreshes import Launched, Places

from vista.data.sources.generated import TASTES
from vista.evaluate.report import read_report
from vista.jobs import STAGES
from vista.train.compute import SIGN_OF_LIFE_S
from vista.train.registry import DOWNSTREAM, FOUNDATION

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

KEYS = {
    "dataset", "rows", "models", "paired", "regions", "space", "epoch", "release", "mlflow", "install_s",
    "stages",
}  # fmt: skip
MODELS = {"vista_foundation", "vista_downstream", "din", "mean_pool", "no_history", "lightgbm"}


def test_report_has_what_was_promised(smoke_refresh: Places) -> None:
    report = json.loads((smoke_refresh.latest / "report.json").read_text())
    assert report.keys() >= KEYS
    assert report["models"].keys() >= MODELS
    for figures in report["models"].values():
        assert figures.keys() >= {"auc", "ne", "gauc", "trained_on"}
        assert 0.3 < figures["auc"] < 1.0
    assert report["regions"].keys() == {"east", "west"}
    for region in report["regions"].values():
        assert (region["coverage"], region["lag_records"]) == (1.0, 0)
    assert [stage["name"] for stage in report["stages"]] == list(STAGES)
    assert all(stage["seconds"] > 0 for stage in report["stages"])
    assert report["summary_map"]["groups"] == list(TASTES)
    assert set(report["summary_map"]["group"]) == set(TASTES)
    page = (smoke_refresh.latest / "report.html").read_text()
    assert "retrain_downstream" in page


def test_screen_shows_progress_and_figures(smoke_refresh: Places) -> None:
    shown = (smoke_refresh.path / "screen.txt").read_text()
    for stage in STAGES:
        assert f"{stage}: started" in shown
        assert f"{stage}: finished in" in shown
    report = read_report(smoke_refresh.latest)
    for name, figures in report.models.items():
        assert name in shown
        assert f"{figures.auc:.4f}" in shown
    for words in ("east", "west", "coverage", report.release or "not promoted", "report.html", "make ui"):
        assert words in shown
    assert "Traceback" not in shown


def test_progress_is_not_repeated(smoke_refresh: Places) -> None:
    """A line that says nothing new comes only as a sign of life; trainings side by side are told apart."""
    shown = (smoke_refresh.path / "screen.txt").read_text()
    said = [
        (int(at), text) for at, text in re.findall(r"^\[ *(\d+) s\] +vista\S*: (.*)$", shown, re.MULTILINE)
    ]
    done = [(at, text) for at, text in said if text.endswith(" done")]
    assert {text for _, text in done} >= {"baselines: 4 of 4 done"}
    for (before_s, before), (at_s, text) in pairwise(done):
        assert text != before or at_s - before_s > SIGN_OF_LIFE_S - 2, text  # whole seconds, twice
    for baseline in ("din", "mean_pool", "no_history"):
        assert any(text.startswith(f"{baseline}: epoch ") for _, text in said)


def test_values_reach_mlflow(smoke_refresh: Places) -> None:
    """The form's values, Airflow's ids, curves, pictures, and the way from what serves to what it was made
    from."""
    store = MlflowClient(f"sqlite:///{smoke_refresh.path}/home/mlflow.db")
    report = read_report(smoke_refresh.latest)
    serving = {name: store.get_model_version_by_alias(name, "champion") for name in (FOUNDATION, DOWNSTREAM)}
    assert all(version.tags["vista.release"] == report.release for version in serving.values())
    downstream, foundation = serving[DOWNSTREAM], serving[FOUNDATION]
    assert downstream.tags["vista.foundation_version"] == str(foundation.version)
    assert foundation.tags[f"vista.downstream_version.{downstream.version}"] == downstream.run_id
    experiments = {one.name: one.experiment_id for one in store.search_experiments()}
    assert set(experiments) == {"Default", FOUNDATION, DOWNSTREAM, "vista-delivery"}
    (delivery,) = store.search_runs([experiments["vista-delivery"]])
    assert delivery.data.metrics["coverage/east"] == 1.0
    assert delivery.data.tags["vista.epoch"] == str(report.epoch)
    tasks = {"train_foundation": foundation.run_id, "retrain_downstream": downstream.run_id}
    for task, run_id in tasks.items():
        run = store.get_run(run_id)
        assert (run.data.params["recipe"], run.info.run_name) == ("smoke", report.run_id)
        assert run.data.tags["airflow.dag_id"] == "production_refresh"
        assert (run.data.tags["airflow.task_id"], run.data.tags["airflow.try_number"]) == (task, "1")
        assert run.data.metrics["system/system_memory_usage_percentage"] > 0
        assert len(store.get_metric_history(run_id, "loss")) > 1
        kept = {
            one.path for folder in ("", "figures", "report") for one in store.list_artifacts(run_id, folder)
        }
        assert kept >= {"checkpoint", "config", "scores.parquet", "figures/calibration.svg"}
    assert kept >= {"report/report.html", "figures/training-curves.svg", "figures/paired-differences.svg"}
    assert downstream.run_id == report.mlflow.run_id


def test_no_secret_is_written(smoke_refresh: Places) -> None:
    for path in smoke_refresh.path.rglob("*"):
        if path.is_file() and path.suffix in (".log", ".out", ".err", ".txt", ".json"):
            text = path.read_text(errors="replace")
            assert "RAY_AUTH_TOKEN" not in text, path
            assert "Bearer " not in text, path


def test_a_failed_stage_is_named_with_its_reason_and_remedy(tmp_path: Path) -> None:
    """A log without its columns, which only the stage finds out; a folder without a log is refused before."""
    log = tmp_path / "log_standard_pure.csv"
    log.write_text("user_id,video_id\n1,2\n")
    places = Places(tmp_path / "places")
    launched = places.start(["DATASET=kuairand", f"DATA_DIR={tmp_path}"])
    try:
        assert launched.process.wait(300) == 1
    finally:
        launched.end()
    last = launched.shown().strip().splitlines()[-5:]
    assert "error: stage prepare failed: " in "\n".join(last)
    assert f"{log.name} has no column" in "\n".join(last)
    assert last[-1].strip() == "to go on with this run after mending it: make run RESUME=1"
    assert "trying again" not in launched.shown()


def tokens_of(launched: Launched) -> set[bytes]:
    """Those of Ray that its processes have in their environments, where alone they may be."""
    found, name = set(), b"RAY_AUTH_TOKEN="
    for pid in launched.processes():
        with suppress(OSError):  # it ended meanwhile
            words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            found |= {word.removeprefix(name) for word in words if word.startswith(name)}
    return found


def test_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    """No process, and no secret in any file; what Ray itself has logged is among them."""
    places = Places(tmp_path / "places")
    launched = places.start(["DATASET=smoke"])
    try:
        launched.wait_for("prepare: started", 240)
        tokens = tokens_of(launched)
        launched.process.send_signal(signal.SIGINT)
        assert launched.process.wait(60) == 130
        assert launched.leaves_nothing(5)
    finally:
        launched.end()
    assert "make run RESUME=1" in launched.shown()
    assert tokens
    assert all(len(token) > 20 for token in tokens)
    written = [path for path in places.path.rglob("*") if path.is_file()]
    assert {"raylet.out", "screen.txt"} <= {path.name for path in written}
    assert not [path for path in written if any(token in path.read_bytes() for token in tokens)]
