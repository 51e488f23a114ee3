"""Stage: train the downstream model from published summaries, compare it with the baselines, decide."""

import logging
from pathlib import Path

import numpy as np

from vista.config import Frozen, RefreshConfig, Settings
from vista.data.dataset import Dataset
from vista.delivery.retention import pinned
from vista.evaluate.bootstrap import PairedDifference, paired_bootstrap
from vista.evaluate.gate import GateDecision, decide
from vista.evaluate.refresh_report import ModelFigures
from vista.evaluate.slices import candidate_slices
from vista.model.checkpoint import load_meta, save
from vista.runs import read_as, write_whole
from vista.summary.join import SummaryReader
from vista.train.baselines import baseline_jobs, train_baseline
from vista.train.champion import Champion, score_champion
from vista.train.compute import ray_session, run_tasks, train_on_ray
from vista.train.delivery_run import epoch_input
from vista.train.jobs import DownstreamJob, Training, job_epochs, judged_epochs, training_days
from vista.train.model_run import keep_scores, of_test_rows, pictures
from vista.train.registry import ARTIFACT, DOWNSTREAM, link, register
from vista.train.stage import Fitted, Result, StageContext
from vista.train.state import load_best
from vista.train.tracking import Tracked
from vista.train.vocabulary import Vocabulary

LOG = logging.getLogger(__name__)
MODEL = "downstream"
REFERENCE = "vista_downstream"
EPOCHS_FILE = "epochs.json"
JOINED_AT_ONCE = 8_192


class JoinReport(Frozen):
    """All rows of the days k .. n joined with summaries, each checked against the future (`LeakError`)."""

    rows: int
    without_summary: int
    max_summary_age_s: float


class ChosenEpochs(Frozen):
    """The numbers of the epochs of its space that a run's downstream model reads."""

    epochs: tuple[int, ...]


class DownstreamReport(Frozen):
    """`downstream` is a checkpoint directory; `models` by name on the same rows of the test day."""

    downstream: str
    digest: str
    space: str
    mlflow_run_id: str
    join: JoinReport
    models: dict[str, ModelFigures]
    paired: dict[str, PairedDifference]
    champion: Champion
    gate: GateDecision


def retrain_downstream(config: RefreshConfig, settings: Settings) -> DownstreamReport:
    """Train, compare, decide. Run again after a crash, it keeps the models that are finished."""
    stage = StageContext.open(config, settings)
    job = downstream_job(stage)
    with pinned(job_epochs(job)):
        return _retrain(stage, job)


def _retrain(stage: StageContext, job: DownstreamJob) -> DownstreamReport:
    training = Training(job)
    training.task()
    join = check_join(training.dataset, training.reader, job.days.first)
    LOG.info("join: %d rows checked, %d without a summary", join.rows, join.without_summary)
    tracked = stage.track(DOWNSTREAM, job.space)
    with tracked.running():
        result = stage.result(MODEL)
        baselines = [one for one in baseline_jobs(stage) if not one.result.exists()]
        if baselines or not result.exists():
            with ray_session(job.train.workers):
                if not result.exists():
                    storage = stage.run.training(MODEL)
                    state = train_on_ray(job, tracked, storage=storage, name=stage.config.run_id)
                    finish(stage, training, state)
                run_tasks(train_baseline, baselines, "baselines")
        report = _compare(stage, job, join, tracked)
        _track_result(stage, tracked, report)
    return report


def downstream_job(stage: StageContext) -> DownstreamJob:
    """The training on days [k, n). On days that the foundation, whose weights it begins with, was fitted on a
    validation would measure what those remember: they do not stop it."""
    windows = stage.dataset.split()
    foundation = stage.run.report_of("train_foundation")
    days = training_days(windows.k, windows.n, stage.recipe.windows.valid_days)
    fitted_end_day = foundation.get("fitted_end_day") or foundation["trained_on"]["end_day"]
    return DownstreamJob(
        dataset=stage.run.data,
        foundation=Path(foundation["checkpoint"]),
        catalog_url=stage.settings.catalog_url,
        space=stage.run.report_of("export_summaries")["space"],
        epochs=chosen_epochs(stage),
        train=stage.recipe.downstream,
        days=days.model_copy(update={"valid": min(days.end, max(days.valid, fitted_end_day))}),
    )


def chosen_epochs(stage: StageContext) -> tuple[int, ...]:
    """What a model on the run's foundation may read: chosen once and then kept, since other runs go on
    publishing and releasing; anew only if the run has exported other epochs since."""
    kept, exported = stage.run.training(MODEL) / EPOCHS_FILE, stage.run.report_of("export_summaries")
    if kept.exists():
        remedy = f"delete {kept.parent}, then `make run RESUME=1` trains the downstream model anew"
        before = read_as(ChosenEpochs, kept, remedy).epochs
        if {one["epoch"] for one in exported["epochs"]} <= set(before):
            return before
    foundation = stage.run.report_of("train_foundation")["checkpoint"]
    judged = judged_epochs(stage.settings.catalog_url, exported["space"], foundation)
    chosen = ChosenEpochs(epochs=tuple(sorted(one.epoch for one in judged)))
    write_whole(kept, chosen.model_dump_json())
    return chosen.epochs


def check_join(dataset: Dataset, reader: SummaryReader, first_day: int) -> JoinReport:
    """Join every example of the days k .. n, a part at a time. Raises `LeakError` for a row of the future."""
    examples = dataset.examples(first_day, dataset.split().n + 1)
    rows = missing = 0
    max_age_us = 0
    for part in np.array_split(np.arange(len(examples)), len(examples) // JOINED_AT_ONCE + 1):
        cut_us_B = examples.cut_us_E[part]
        _, found_B, as_of_us_B = reader.lookup(examples.user_id_E[part], cut_us_B)
        rows += int(examples.num_candidates_E[part].sum())
        missing += int(examples.num_candidates_E[part][~found_B].sum())
        max_age_us = max(max_age_us, int((cut_us_B - as_of_us_B)[found_B].max(initial=0)))
    return JoinReport(rows=rows, without_summary=missing, max_summary_age_s=max_age_us / 1e6)


def finish(stage: StageContext, training: Training, state: Path) -> None:
    """Score the test day with the best weights and put the model's result in place."""
    job, result = training.job, stage.result(MODEL)
    assert isinstance(job, DownstreamJob)
    progress = load_best(state, training.model)
    scores, other_auc = training.tested(stage.dataset.split().n)
    unfinished = result.begin()
    foundation = load_meta(job.foundation)
    changes = {
        "kind": "downstream",
        "trained_until_us": stage.dataset.day_start_us(job.days.end),
        "max_uih": training.max_uih,
    }
    save(unfinished.checkpoint, training.model, foundation.model_copy(update=changes))
    Vocabulary.of(stage.dataset, foundation.spec).write(unfinished.checkpoint)
    unfinished.write(Fitted.of(REFERENCE, training.trained_on(), progress, other_auc), scores)
    result.end(unfinished)


def model_results(stage: StageContext) -> dict[str, Result]:
    """The finished models of a run by their names in the report."""
    named = {"vista_foundation": stage.result("foundation"), REFERENCE: stage.result(MODEL)}
    return named | {name: stage.result(name) for name in stage.recipe.baselines}


def _compare(stage: StageContext, job: DownstreamJob, join: JoinReport, tracked: Tracked) -> DownstreamReport:
    """All models on the same rows, and the gate's decision."""
    rows, candidates, gate = stage.test_rows(), stage.dataset.candidates, stage.recipe.gate
    users_N, labels_N = candidates.user_id_C[rows], candidates.labels_CT[rows, 0]
    results = model_results(stage)
    scores = {name: result.scores().own_N[rows] for name, result in results.items()}
    champion, champion_N = score_champion(stage)
    LOG.info("champion: %s", champion.release if champion.comparable else champion.why)
    delivered = stage.run.report_of("deliver")
    coverage = {name: region["coverage"] for name, region in delivered["regions"].items()}
    decision = decide(
        gate,
        users_N,
        labels_N,
        scores[REFERENCE],
        None if champion_N is None else champion_N[rows],
        candidate_slices(stage.dataset, rows),
        coverage or dict.fromkeys(stage.settings.region_urls, 0.0),  # not delivered
        delivered["canaries_equal"],
        stage.config.seed,
        not_compared=champion.not_compared,
    )
    checkpoint = results[REFERENCE].checkpoint
    return DownstreamReport(
        downstream=str(checkpoint),
        digest=load_meta(checkpoint).digest,
        space=job.space,
        mlflow_run_id=tracked.run_id,
        join=join,
        models={name: figures(stage, result) for name, result in results.items()},
        paired=paired_bootstrap(users_N, labels_N, scores, REFERENCE, gate.resamples, stage.config.seed),
        champion=champion,
        gate=decision,
    )


def figures(stage: StageContext, result: Result) -> ModelFigures:
    """A finished model's metrics on the test day, and what it was trained on."""
    measured, fitted = stage.measure(result.scores()).model_dump(), result.fitted()
    return ModelFigures(**measured, other_auc=fitted.other_auc, trained_on=fitted.trained_on)


def _track_result(stage: StageContext, tracked: Tracked, report: DownstreamReport) -> None:
    results = model_results(stage)
    scored = {name: stage.scored_rows(result.scores()) for name, result in results.items()}
    keep_scores(tracked, scored[REFERENCE])
    reference = report.models[REFERENCE]
    metrics = of_test_rows(reference, reference.other_auc) | {"gate_promote": float(report.gate.promote)}
    for name, one in report.models.items():
        metrics |= of_test_rows(one, one.other_auc, f"/{name}")
    curves = [curve for name, result in results.items() for curve in result.fitted().curves(name)]
    checkpoint = results[REFERENCE].checkpoint
    tracked.finish(
        metrics,
        {stage.run.config_file: "config", checkpoint: ARTIFACT},
        pictures(curves, scored, report.paired),
    )
    version = register(tracked, DOWNSTREAM, stage.version_tags(report.space, checkpoint))
    _link(stage, tracked, version, report.space)


def _link(stage: StageContext, tracked: Tracked, version: str, space: str) -> None:
    """The way back to the foundation and to the table's newest epoch."""
    exported = stage.run.report_of("export_summaries")
    newest = exported["epochs"][-1]
    epoch = f"{space}/{newest['epoch']}"
    tracked.add_inputs([stage.input(), epoch_input(space, newest, "training")])
    tracked.tag({"vista.epoch": str(newest["epoch"]), "vista.table": newest["location"]})
    foundation = stage.run.report_of("train_foundation")["mlflow_run_id"]
    if foundation:
        tracked.tag({"vista.foundation_run": foundation})
    link(tracked.url, version, foundation, f"epoch {epoch} ({newest['location']})")
