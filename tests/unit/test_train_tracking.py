"""What the stages leave in MLflow when their trainings are done: the foundation's run, the export's."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from delivery_samples import keep_report
from training_data import epoch_times, foundation_in_place, opened, published

from vista.config import RefreshConfig, Settings
from vista.delivery.catalog import open_catalog
from vista.delivery.publish import export_id
from vista.jobs import run_stage
from vista.model.checkpoint import CheckpointMeta, load_meta
from vista.train.delivery_run import DELIVERY, end_delivery, track_delivery
from vista.train.export_summaries import export_summaries
from vista.train.mlflow_store import client
from vista.train.model_run import ROWS, kept_scores
from vista.train.registry import CHECKPOINT, FOUNDATION
from vista.train.stage import StageContext
from vista.train.train_foundation import train_foundation

CONFIG = RefreshConfig(recipe="smoke", run_id="tracked", recent_tail=3)


@pytest.fixture(scope="module")
def stage(settings: Settings) -> StageContext:
    """A run whose foundation is trained (as it was initialised), and tracked, twice."""
    torch.set_num_threads(1)
    stage = foundation_in_place(CONFIG, settings)
    report = train_foundation(CONFIG, settings)
    assert train_foundation(CONFIG, settings) == report
    stage.run.keep_stage_report("train_foundation", report, seconds=0.0)
    return stage


def the_run(settings: Settings, experiment: str) -> Any:
    store = client(settings.mlflow_url)
    (run,) = store.search_runs([store.get_experiment_by_name(experiment).experiment_id])
    return run


def test_the_foundations_run_has_what_people_look_for(stage: StageContext, settings: Settings) -> None:
    run, store = the_run(settings, FOUNDATION), client(settings.mlflow_url)
    assert (run.info.run_name, run.info.status) == ("tracked", "FINISHED")
    assert (
        run.data.params.items() >= {"recipe": "smoke", "recent_tail": "3", "model.recent_tail": "3"}.items()
    )
    tags = run.data.tags
    digest = stage.dataset.info.digest
    assert (tags["vista.recipe"], tags["vista.data_digest"]) == ("smoke", digest)
    (read,) = run.inputs.dataset_inputs
    assert digest.startswith(read.dataset.digest)
    result = stage.result("foundation")
    rows = kept_scores(settings.mlflow_url, run.info.run_id, tags[ROWS])
    assert (rows.scores_N == stage.scored_rows(result.scores()).scores_N).all()
    assert run.data.metrics["test_auc"] == stage.measure(result.scores()).auc
    kept = {one.path for folder in ("", "figures") for one in store.list_artifacts(run.info.run_id, folder)}
    assert kept >= {"checkpoint", "config", "scores.parquet", "figures/calibration.svg"}
    (version,) = store.search_model_versions(f"name = '{FOUNDATION}'")
    assert version.run_id == run.info.run_id
    assert version.tags["vista.digest"] == load_meta(Path(version.tags[CHECKPOINT])).digest


def publish_all(stage: StageContext, meta: CheckpointMeta) -> None:
    """The run's epochs, without Ray."""
    catalog = open_catalog(stage.settings.catalog_url)
    for as_of_us in epoch_times(stage):
        codec = stage.recipe.delivery.codec
        epoch = catalog.open_epoch(
            space=meta.space,
            export_id=export_id(meta.space, meta.digest, as_of_us, codec),
            as_of_us=as_of_us,
            trained_until_us=meta.trained_until_us,
            checkpoint=stage.run.report_of("train_foundation")["checkpoint"],
            codec=codec,
            buckets=stage.dataset.buckets,
        )
        published(stage, epoch)
    catalog.close()


@pytest.fixture(scope="module")
def meta(stage: StageContext) -> CheckpointMeta:
    """Of the foundation; its epochs are published."""
    meta = load_meta(Path(stage.run.report_of("train_foundation")["checkpoint"]))
    publish_all(stage, meta)
    return meta


def test_the_exports_run_names_the_foundations_and_its_epochs(
    meta: CheckpointMeta, stage: StageContext, settings: Settings
) -> None:
    report = export_summaries(CONFIG, settings)
    run = the_run(settings, DELIVERY)
    assert run.data.tags["vista.foundation_run"] == the_run(settings, FOUNDATION).info.run_id
    assert run.data.tags["vista.table"] == report.epochs[-1].location
    linked = {(one.dataset.name, one.dataset.digest) for one in run.inputs.dataset_inputs}
    assert linked == {(meta.space, str(one.epoch)) for one in report.epochs}
    assert run.data.metrics["users"] == report.epochs[-1].rows
    region = {"coverage": 1.0, "lag_records": 0, "oldest_summary_age_s": None}
    delivered = {"delivered": True, "appended_records": 7, "regions": {"east": region}}
    end_delivery(track_delivery(stage, meta.space), delivered)
    metrics = the_run(settings, DELIVERY).data.metrics
    assert (metrics["coverage/east"], metrics["appended_records"]) == (1.0, 7)
    assert "oldest_summary_age_s/east" not in metrics


def test_a_kept_export_counts_while_the_catalog_has_its_epochs(
    meta: CheckpointMeta, stage: StageContext, settings: Settings, tmp_path: Path
) -> None:
    """A catalog that was restored from before this run's export: all that came after it is done again."""
    kept = run_stage("export_summaries", CONFIG, settings)
    later = ("deliver", "retrain_downstream", "promote", "clean_up")
    for name in later:
        keep_report(stage.run, name, {"promoted": False})
    assert run_stage("export_summaries", CONFIG, settings) == kept
    assert all(stage.run.stage(name) for name in later)
    changes = {"catalog_url": f"sqlite:///{tmp_path}/c.db", "warehouse": str(tmp_path / "warehouse")}
    restored = settings.model_copy(update=changes)
    beside = replace(stage, settings=restored)
    opened(beside, 0, meta.space)  # another run's, which was faster: the numbers are others now
    publish_all(beside, meta)  # so that the stage needs no Ray
    anew = run_stage("export_summaries", CONFIG, restored)
    assert anew["newest_epoch"] == kept["newest_epoch"] + 1
    assert stage.run.report_of("export_summaries") == anew
    assert not any(stage.run.stage(name) for name in later)
    assert run_stage("export_summaries", CONFIG, restored) == anew
