"""Stage: train the foundation model with Ray Train and measure it on the test day.

A cold run trains on the days [first_day, k) and begins a space. A warm one goes on from an earlier checkpoint
of the space that serves, on the days from there to the test day.
"""

import hashlib
import logging
from pathlib import Path

from vista.config import Frozen, RefreshConfig, Settings
from vista.evaluate.metrics import Metrics
from vista.evaluate.refresh_report import TrainedOn
from vista.model.checkpoint import CheckpointMeta, load_meta, save
from vista.train.compute import ray_session, train_on_ray
from vista.train.jobs import RankerJob, Training, training_days
from vista.train.model_run import keep_scores, of_test_rows, pictures
from vista.train.registry import ARTIFACT, FOUNDATION, register
from vista.train.stage import Fitted, StageContext
from vista.train.state import load_best
from vista.train.tracking import Tracked
from vista.train.vocabulary import Vocabulary
from vista.train.warm_start import warm_start

LOG = logging.getLogger(__name__)
MODEL = "foundation"


class FoundationReport(Frozen):
    """`checkpoint` is a directory that `vista.model.checkpoint.load` reads, `start` the one that the training
    went on from, if it did, or that was `adopted` as it is; metrics are of the test day. The weights were
    fitted on days before `fitted_end_day`, of an adopted one at most on those of `trained_on`."""

    space: str
    checkpoint: str
    start: Path | None
    digest: str
    trained_until_us: int
    mlflow_run_id: str
    metrics: Metrics
    trained_on: TrainedOn
    fitted_end_day: int | None = None
    adopted: bool = False


def train_foundation(config: RefreshConfig, settings: Settings) -> FoundationReport:
    """Train, evaluate, register. Run again after a crash, it resumes from the last checkpoint."""
    stage = StageContext.open(config, settings)
    job, space = planned(stage)
    training = checked(job)
    tracked = stage.track(FOUNDATION, space, {} if job.start is None else {"start": str(job.start)})
    with tracked.running():
        report = trained(stage, training, space, tracked)
        register_version(stage, report, tracked)
    return report


def checked(job: RankerJob) -> Training:
    """What is wrong with the data is found here, before any worker starts."""
    training = Training(job)
    training.task()
    return training


def trained(stage: StageContext, training: Training, space: str, tracked: Tracked) -> FoundationReport:
    """Train, unless that is done, and log it."""
    job, result = training.job, stage.result(MODEL)
    assert isinstance(job, RankerJob)
    tracked.add_inputs([stage.input()])
    if not result.exists():
        with ray_session(job.train.workers):
            storage = stage.run.training(MODEL)
            state = train_on_ray(job, tracked, storage=storage, name=stage.config.run_id)
        finish(stage, training, space, state)
    return reported(stage, space, job.start, tracked, fitted_end_day=job.days.valid)


def reported(
    stage: StageContext,
    space: str,
    start: Path | None,
    tracked: Tracked,
    *,
    fitted_end_day: int | None = None,
    adopted: bool = False,
) -> FoundationReport:
    """The report of the stage's result, which is logged and ends the MLflow run."""
    result = stage.result(MODEL)
    meta, fitted, scores = load_meta(result.checkpoint), result.fitted(), result.scores()
    report = FoundationReport(
        space=space,
        checkpoint=str(result.checkpoint),
        start=start,
        digest=meta.digest,
        trained_until_us=meta.trained_until_us,
        mlflow_run_id=tracked.run_id,
        metrics=stage.measure(scores),
        trained_on=fitted.trained_on,
        fitted_end_day=fitted_end_day,
        adopted=adopted,
    )
    rows = stage.scored_rows(scores)
    keep_scores(tracked, rows)
    tracked.finish(
        of_test_rows(report.metrics, fitted.other_auc),
        {stage.run.config_file: "config", result.checkpoint: ARTIFACT},
        pictures(fitted.curves(MODEL), {MODEL: rows}),
    )
    return report


def register_version(stage: StageContext, report: FoundationReport, tracked: Tracked) -> None:
    """Make the checkpoint a version of the registered foundation."""
    register(tracked, FOUNDATION, stage.version_tags(report.space, Path(report.checkpoint)))


def planned(stage: StageContext) -> tuple[RankerJob, str]:
    """What this run trains, and the space of its summaries. A warm training goes on where its start ended: no
    day twice, none left out."""
    job = foundation_job(stage)
    if not stage.config.warm_start:
        return job, space_of(stage)
    start = warm_start(stage)
    days = training_days(start.first_day, stage.dataset.split().n, stage.recipe.windows.valid_days)
    return job.model_copy(update={"days": days, "start": start.checkpoint}), start.space


def foundation_job(stage: StageContext, *, history_share: int = 1) -> RankerJob:
    """The foundation's cold training; `history_share` 10 reads the newest tenth of what it reads."""
    windows, recipe = stage.dataset.split(), stage.recipe
    return RankerJob(
        dataset=stage.run.data,
        slot=recipe.foundation_slot,
        model=recipe.model,
        train=recipe.foundation,
        max_uih=max(1, recipe.data.max_uih // history_share),
        days=training_days(windows.first_day, windows.k, recipe.windows.valid_days),
    )


def space_of(stage: StageContext) -> str:
    """The name of the space that this run's cold training begins; the same when the run is resumed."""
    text = f"{stage.config.run_id}\n{stage.recipe.model_dump_json()}\n{stage.dataset.info.digest}"
    return f"{stage.recipe.name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def finish(stage: StageContext, training: Training, space: str, state: Path) -> None:
    """Score the test day with the best weights and put the model's result in place."""
    result = stage.result(MODEL)
    progress = load_best(state, training.model)
    test_day = stage.dataset.split().n
    LOG.info("foundation: best epoch %s, scoring day %d", progress.best_epoch, test_day)
    scores, other_auc = training.tested(test_day)
    unfinished = result.begin()
    meta = CheckpointMeta(
        kind=stage.recipe.foundation_slot,
        config=training.model.config,
        spec=training.model.spec,
        space=space,
        trained_until_us=stage.dataset.day_start_us(training.job.days.end),
        max_uih=training.max_uih,
    )
    save(unfinished.checkpoint, training.model, meta)
    Vocabulary.of(stage.dataset, training.model.spec).write(unfinished.checkpoint)
    fitted = Fitted.of(MODEL, training.trained_on(), progress, other_auc)
    unfinished.write(fitted, scores)
    result.end(unfinished)
