"""The models that VISTA is compared with in every refresh; each is one Ray task on one CPU."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from vista.config import BaselineName, Frozen
from vista.data.dataset import Dataset
from vista.data.frozen import frozen
from vista.data.schema import Examples
from vista.evaluate.metrics import Scores
from vista.evaluate.refresh_report import TrainedOn
from vista.train.compute import log_like_the_driver
from vista.train.jobs import Days, RankerJob, Training, training_days
from vista.train.loop import fit
from vista.train.stage import Fitted, Result, StageContext
from vista.train.train_foundation import foundation_job

NEWEST_SHARE = 10


class BaselineJob(Frozen):
    """One baseline; `ranker` is None for LightGBM, which has no settings of its own."""

    name: BaselineName
    dataset: Path
    days: Days
    test_day: int
    seed: int
    directory: Path
    ranker: RankerJob | None

    @property
    def result(self) -> Result:
        return Result(self.directory)


def baseline_jobs(stage: StageContext) -> list[BaselineJob]:
    """The recipe's baselines, largest first, trained on the days [first_day, n); `vista_newest_tenth` is the
    foundation on a tenth of the history, on the foundation's days."""
    windows = stage.dataset.split()
    days = training_days(windows.first_day, windows.n, stage.recipe.windows.valid_days)
    jobs = []
    for name in sorted(stage.recipe.baselines, key=COSTLIEST_FIRST.index):
        ranker = None
        if name == "vista_newest_tenth":
            ranker = foundation_job(stage, history_share=NEWEST_SHARE)
        elif name != "lightgbm":
            ranker = foundation_job(stage).model_copy(update={"slot": name, "days": days})
        jobs.append(
            BaselineJob(
                name=name,
                dataset=stage.run.data,
                days=ranker.days if ranker else days,
                test_day=windows.n,
                seed=stage.config.seed,
                directory=stage.result(name).path,
                ranker=ranker,
            )
        )
    return jobs


COSTLIEST_FIRST: tuple[BaselineName, ...] = (
    "mha", "sasrec", "vista_newest_tenth", "hstu", "din", "mean_pool", "ttsn", "lightgbm", "no_history",
)  # fmt: skip


def train_baseline(job: BaselineJob) -> None:
    """Train one baseline, score the test day and put its result in place."""
    log_like_the_driver("" if job.ranker is None else f"{job.name}: ")  # LightGBM says its name
    unfinished = job.result.begin()
    if job.ranker is None:
        unfinished.write(*_lightgbm(job))
    else:
        torch.set_num_threads(1)
        training = Training(job.ranker)
        progress = fit(training.task())
        scores, other_auc = training.tested(job.test_day)
        unfinished.write(Fitted.of(job.name, training.trained_on(), progress, other_auc), scores)
    job.result.end(unfinished)


def _lightgbm(job: BaselineJob) -> tuple[Fitted, Scores]:
    from vista.train.lightgbm_baseline import fit_lightgbm

    dataset = Dataset.open(job.dataset)
    train = dataset.examples(job.days.first, job.days.valid)
    valid = dataset.examples(job.days.valid, job.days.end)
    model = fit_lightgbm(dataset, train, valid, job.seed)

    def predict(examples: Examples) -> NDArray[np.float32]:
        scores_N = np.full(dataset.info.candidates, np.nan, np.float32)
        scores_N[examples.candidate_ids()] = model.predict(examples)
        return scores_N

    test = dataset.examples(job.test_day, job.test_day + 1)
    as_of_start = frozen(dataset, test, dataset.day_start_us(job.test_day))
    rows = int(dataset.examples(job.days.first, job.days.end).num_candidates_E.sum())
    trained_on = TrainedOn(first_day=job.days.first, end_day=job.days.end, rows=rows)
    fitted = Fitted(model=job.name, trained_on=trained_on, note=f"{model.rounds} trees")
    return fitted, Scores(predict(test), predict(as_of_start))
