"""In place of the stage train_foundation: the newest released foundation as it is, measured on the test day.

Its summaries of new days belong to the space and the checkpoint that serve: only the days without an epoch
have to be exported.
"""

import shutil

from vista.config import RefreshConfig, Settings
from vista.data.batches import BatchPlan
from vista.data.schema import Examples
from vista.errors import InputError
from vista.evaluate.metrics import Scores
from vista.evaluate.refresh_report import TrainedOn
from vista.model.checkpoint import CheckpointMeta, load, load_meta
from vista.model.ranker import Ranker
from vista.train.jobs import tested
from vista.train.loop import batch_plan, history_forward
from vista.train.registry import FOUNDATION
from vista.train.stage import Fitted, StageContext
from vista.train.train_foundation import MODEL, FoundationReport, register_version, reported
from vista.train.warm_start import WarmStart, warm_start


def adopt_foundation(config: RefreshConfig, settings: Settings) -> FoundationReport:
    """Copy the checkpoint into the run, score the test day. Raises `InputError` if no released foundation
    knows the ids and values of this data set, or none is from before its test day."""
    if not config.warm_start:
        raise InputError(
            "adopt_foundation: the data must have the space's value buckets: give --warm-start True"
        )
    stage = StageContext.open(config, settings)
    start = warm_start(stage, trains=False)
    tracked = stage.track(FOUNDATION, start.space, {"start": str(start.checkpoint)})
    with tracked.running():
        tracked.add_inputs([stage.input()])
        if not stage.result(MODEL).exists():
            adopt(stage, start)
        report = reported(stage, start.space, start.checkpoint, tracked, adopted=True)
        register_version(stage, report, tracked)
    return report


def adopt(stage: StageContext, start: WarmStart) -> None:
    """Make the result of the stage: the checkpoint as it is, and its scores of the test day."""
    meta, result = load_meta(start.checkpoint), stage.result(MODEL)
    unfinished = result.begin()
    shutil.copytree(start.checkpoint, unfinished.checkpoint)
    scores, other_auc = scores_of(stage, start, meta)
    fitted = Fitted(
        model=MODEL,
        trained_on=trained_on(stage, meta),
        other_auc=other_auc,
        note=f"adopted from {start.checkpoint}",
    )
    unfinished.write(fitted, scores)
    result.end(unfinished)


def trained_on(stage: StageContext, meta: CheckpointMeta) -> TrainedOn:
    """The days of this data set that the model, or those that it went on from, were trained on."""
    dataset = stage.dataset
    first, end = dataset.split().first_day, dataset.days.first_after(meta.trained_until_us)
    rows = int(dataset.examples(first, end).num_candidates_E.sum())
    return TrainedOn(first_day=first, end_day=end, rows=rows)


def scores_of(stage: StageContext, start: WarmStart, meta: CheckpointMeta) -> tuple[Scores, dict[str, float]]:
    """What a training's `tested` gives, of the adopted model."""
    model, _ = load(start.checkpoint)
    assert isinstance(model, Ranker), "an epoch's checkpoint is a foundation model"

    def plan(examples: Examples) -> BatchPlan:
        return batch_plan(examples, stage.recipe.foundation, max_uih=meta.max_uih)

    return tested(model, history_forward(model), stage.dataset, stage.dataset.split().n, plan)
