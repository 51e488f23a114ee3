"""The models that VISTA is compared with in every refresh; each is one Ray task on one CPU."""

from pathlib import Path

import numpy as np
import torch

from vista.config import BaselineName, Frozen
from vista.data.dataset import Dataset
from vista.evaluate.refresh_report import TrainedOn
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
    unfinished = job.result.begin()
    if job.ranker is None:
        unfinished.write(*_lightgbm(job))
    else:
        torch.set_num_threads(1)
        training = Training(job.ranker)
        progress = fit(training.task())
        fitted = Fitted.of(job.name, training.trained_on(), progress)
        unfinished.write(fitted, training.predict(job.test_day, job.test_day + 1))
    job.result.end(unfinished)


def _lightgbm(job: BaselineJob) -> tuple[Fitted, np.ndarray]:
    from vista.train.lightgbm_baseline import fit_lightgbm

    dataset = Dataset.open(job.dataset)
    train = dataset.examples(job.days.first, job.days.valid)
    valid = dataset.examples(job.days.valid, job.days.end)
    test = dataset.examples(job.test_day, job.test_day + 1)
    probabilities, used = fit_lightgbm(dataset, train, valid, test, job.seed)
    scores_N = np.full(dataset.info.candidates, np.nan, np.float32)
    scores_N[test.candidate_ids()] = probabilities
    rows = int(dataset.examples(job.days.first, job.days.end).num_candidates_E.sum())
    trained_on = TrainedOn(first_day=job.days.first, end_day=job.days.end, rows=rows)
    return Fitted(model=job.name, trained_on=trained_on, note=f"{used.rounds} trees"), scores_N
