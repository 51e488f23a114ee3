"""The report of a run, put together from its stages' reports and its models' scores."""

import numpy as np
from numpy.typing import NDArray

from vista.data.dataset import Dataset
from vista.data.sources.generated import TASTES, taste_of
from vista.evaluate.metrics import by_slice, calibration_bins
from vista.evaluate.refresh_report import (
    RefreshReport,
    RegionFigures,
    StageSeconds,
    SummaryMap,
    Tracking,
)
from vista.evaluate.slices import ACTIVITY_DAYS, Groups, activity, candidate_slices
from vista.evaluate.summary_map import MAP_USERS, summary_map
from vista.jobs import STAGES
from vista.runs import RunDirectory
from vista.summary.join import SummaryReader
from vista.train.jobs import usable_epochs
from vista.train.retrain_downstream import DownstreamReport, model_results
from vista.train.stage import StageContext

MIN_MAP_USERS = 3


def compose(stage: StageContext) -> RefreshReport:
    """The report of a run whose other stages are done; its stages' seconds are without this one's."""
    run, info = stage.run, stage.dataset.info
    promoted = run.report_of("promote")
    delivered = run.report_of("deliver")
    downstream = DownstreamReport.model_validate(run.report_of("retrain_downstream"))
    release = promoted["release"]
    rows, candidates = stage.test_rows(), stage.dataset.candidates
    users_N, labels_N = candidates.user_id_C[rows], candidates.labels_CT[rows, 0]
    scores = {name: result.scores().take(rows) for name, result in model_results(stage).items()}
    masks = candidate_slices(stage.dataset, rows)
    sliced = {name: by_slice(masks, users_N, labels_N, one) for name, one in scores.items()}
    return RefreshReport(
        run_id=stage.config.run_id,
        recipe=stage.recipe.name,
        dataset=info.name,
        dataset_digest=info.digest,
        clock=info.clock,
        rows=info.rows,
        test_rows=len(rows),
        users=info.users,
        oracle_auc=info.oracle_auc,
        models=downstream.models,
        slices={one: {name: sliced[name][one] for name in scores} for one in masks},
        paired=downstream.paired,
        gate=downstream.gate,
        regions={
            name: RegionFigures.model_validate(figures) for name, figures in delivered["regions"].items()
        },
        space=delivered["space"],
        epoch=delivered["epoch"],
        release=release["id"] if release else None,
        promoted=promoted["promoted"],
        reasons=tuple(promoted["reasons"]),
        mlflow=Tracking(url=stage.settings.mlflow_url, run_id=downstream.mlflow_run_id),
        install_s=None,  # known to the launcher only
        stages=stage_seconds(run),
        curves=tuple(
            curve for name, result in model_results(stage).items() for curve in result.fitted().curves(name)
        ),
        calibration={name: calibration_bins(labels_N, one.own_N) for name, one in scores.items()},
        summary_map=map_of(stage, delivered["space"], delivered["epoch"]),
    )


def stage_seconds(run: RunDirectory) -> tuple[StageSeconds, ...]:
    """The stages that are done, in order."""
    kept = {name: run.stage(name) for name in STAGES}
    return tuple(StageSeconds(name=name, seconds=one.seconds) for name, one in kept.items() if one)


def map_of(stage: StageContext, space: str, number: int) -> SummaryMap | None:
    """The delivered epoch's summaries by an attribute of their users; None for fewer than three users,
    or if it was withdrawn since."""
    dataset = stage.dataset
    epochs = [one for one in usable_epochs(stage.settings.catalog_url, space) if one.epoch == number]
    if not epochs:
        return None
    user_id_U = np.sort(dataset.users.id_R)
    user_id_B = user_id_U[:: max(1, len(user_id_U) // MAP_USERS)]
    as_of_us = epochs[0].as_of_us
    summary_BSD, found_B, _ = SummaryReader(epochs).lookup(user_id_B, np.full(len(user_id_B), as_of_us))
    if found_B.sum() < MIN_MAP_USERS:
        return None
    attribute, groups, ordered = _attribute(dataset, user_id_B[found_B], as_of_us)
    return summary_map(summary_BSD[found_B], attribute, groups.labels(), groups.names, ordered=ordered)


def _attribute(dataset: Dataset, user_id_B: NDArray[np.int64], as_of_us: int) -> tuple[str, Groups, bool]:
    """How active users are; of generated users, who are all alike in that, what was planted: their taste."""
    if dataset.info.name == "generated":
        return "what the user wants, as planted", Groups(TASTES, taste_of(user_id_B)), False
    return f"events in {ACTIVITY_DAYS} days", activity(dataset, user_id_B, as_of_us), True
