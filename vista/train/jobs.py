"""Trainings as values: what a worker is sent, and what it builds from it."""

import math
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from vista.config import Frozen, ModelConfig, TrainConfig
from vista.data.batches import BatchPlan
from vista.data.dataset import Dataset
from vista.data.frozen import frozen
from vista.data.schema import Batch, Examples
from vista.delivery.catalog import open_catalog
from vista.delivery.interfaces import Epoch
from vista.delivery.publish import export_id, usable
from vista.errors import CheckpointError, InputError
from vista.evaluate.metrics import Scores
from vista.evaluate.refresh_report import TrainedOn
from vista.model.checkpoint import Model, load, load_meta
from vista.model.downstream import Downstream
from vista.model.inherit import inherit
from vista.model.inputs import device_of, tensors
from vista.model.ranker import Ranker, RankerOutput, SlotName
from vista.summary.join import SummaryReader
from vista.train.loop import Forward, Task, batch_plan, history_forward, other_auc, predict
from vista.train.warm_start import holding


class Days(Frozen):
    """Trained on days [first, valid), stopped early on [valid, end); empty if valid == end."""

    first: int
    valid: int
    end: int


class RankerJob(Frozen):
    """The training of a model that reads raw histories: the foundation, or a baseline. `start` is a
    checkpoint that it goes on from."""

    dataset: Path
    slot: SlotName
    model: ModelConfig
    train: TrainConfig
    max_uih: int
    days: Days
    start: Path | None = None


class DownstreamJob(Frozen):
    """The training of stage 2 and the MLP on some published epochs of one space, by their numbers."""

    dataset: Path
    foundation: Path
    catalog_url: str
    space: str
    epochs: tuple[int, ...]
    train: TrainConfig
    days: Days


Job = RankerJob | DownstreamJob


class Training:
    """A job with its data, and its model on a device. Workers of one job build equal ones."""

    def __init__(self, job: Job, device: torch.device | str = "cpu") -> None:
        self.job = job
        self.dataset = Dataset.open(job.dataset)
        torch.default_generator.manual_seed(job.train.seed)
        self.model: Model
        if isinstance(job, RankerJob):
            known_until_us = self.dataset.day_start_us(job.days.valid)
            ranker = Ranker(job.model, self.dataset.spec(known_until_us), job.slot)
            if job.start is not None:
                earlier, _ = load(job.start)
                assert isinstance(earlier, Ranker)
                inherit(ranker, earlier)
            self.model, self.forward = ranker.to(device), history_forward(ranker)
            self.max_uih = job.max_uih
        else:
            foundation, _ = load(job.foundation)
            assert isinstance(foundation, Ranker)
            downstream = Downstream.from_foundation(foundation)
            self.reader = SummaryReader(job_epochs(job))
            self.model, self.forward = downstream.to(device), summary_forward(downstream, self.reader)
            self.max_uih = downstream.config.recent_tail  # stage 2 reads summaries, and no more than this

    def task(self) -> Task:
        """What `fit` needs."""
        days = self.job.days
        train = self.dataset.examples(days.first, days.valid)
        if not len(train):
            raise InputError(
                f"days {days.first} .. {days.valid - 1} of {self.job.dataset} hold no candidates to train "
                "on: give more days of events"
            )
        valid = self.dataset.examples(days.valid, days.end)
        return Task(
            model=self.model,
            forward=self.forward,
            config=self.job.train,
            train=lambda epoch: self.plan(train, epoch),
            valid=self.plan(valid) if len(valid) else None,
            labels_N=self.labels_N(),
        )

    def plan(self, examples: Examples, epoch: int | None = None) -> BatchPlan:
        """The batches of an epoch; in the order of the examples if no epoch is given."""
        return batch_plan(examples, self.job.train, max_uih=self.max_uih, epoch=epoch)

    def predict(self, first_day: int, end_day: int) -> NDArray[np.float32]:
        """Probabilities by candidate id for the candidates of some days; NaN elsewhere."""
        plan = self.plan(self.dataset.examples(first_day, end_day))
        return predict(self.model, self.forward, plan, self.dataset.info.candidates)[:, 0]

    def tested(self, day: int) -> tuple[Scores, dict[str, float]]:
        """What `tested` finds of the model as it is."""
        return tested(self.model, self.forward, self.dataset, day, self.plan)

    def labels_N(self) -> NDArray[np.float32]:
        """The first task's labels by candidate id."""
        return self.dataset.candidates.labels_CT[:, 0]

    def trained_on(self) -> TrainedOn:
        """Days and candidates that weights and stopping were chosen on."""
        days = self.job.days
        rows = int(self.dataset.examples(days.first, days.end).num_candidates_E.sum())
        return TrainedOn(first_day=days.first, end_day=days.end, rows=rows)


def tested(
    model: Model, forward: Forward, dataset: Dataset, day: int, plan: Callable[[Examples], BatchPlan]
) -> tuple[Scores, dict[str, float]]:
    """Probabilities by candidate id for the candidates of a day, also as of its start (NaN elsewhere), and
    AUC of the tasks after the first, which alone has probabilities."""
    examples = dataset.examples(day, day + 1)
    as_of_start = frozen(dataset, examples, dataset.day_start_us(day))
    plans = plan(examples), plan(as_of_start)
    own_NT, frozen_NT = (predict(model, forward, one, dataset.info.candidates) for one in plans)
    return Scores(own_NT[:, 0], frozen_NT[:, 0]), other_auc(model.spec.tasks, examples, own_NT)


def summary_forward(model: Downstream, reader: SummaryReader) -> Forward:
    """A downstream model on batches: each example with the summary as of its cut, or the fallback."""

    def forward(batch: Batch) -> RankerOutput:
        summary_BSD, found_B, _ = reader.lookup(batch.user_id_B, batch.cut_us_B)
        device = device_of(model)
        summary_or_fallback_BSD = model.with_fallback(
            torch.from_numpy(summary_BSD).to(device), torch.from_numpy(found_B).to(device)
        )
        output: RankerOutput = model(tensors(batch, device), summary_or_fallback_BSD)
        return output

    return forward


def usable_epochs(catalog_url: str, space: str) -> list[Epoch]:
    """The published epochs of a space that are not withdrawn."""
    with closing(open_catalog(catalog_url)) as catalog:
        return [*usable(catalog, space).values()]


def job_epochs(job: DownstreamJob) -> list[Epoch]:
    """What the training reads: its epochs, but for those that were withdrawn since it was planned."""
    return [one for one in usable_epochs(job.catalog_url, job.space) if one.epoch in job.epochs]


def judged_epochs(catalog_url: str, space: str, foundation: str) -> list[Epoch]:
    """The usable epochs that a model on `foundation`, a checkpoint, may read: that foundation's own, and as
    of times before them those of foundations whose releases hold. Others were refused, or nobody has judged
    them yet."""
    with closing(open_catalog(catalog_url)) as catalog:
        epochs = [*usable(catalog, space).values()]
        released = {one.foundation for one in holding(catalog.releases()) if one.space == space}
    own = _made_by(foundation, epochs)
    first_us = min((one.as_of_us for one in own), default=math.inf)
    earlier = [one for one in epochs if one.as_of_us < first_us]
    judged = {one.epoch: one for checkpoint in released for one in _made_by(checkpoint, earlier)}
    return [*judged.values(), *own]


def _made_by(foundation: str, epochs: Sequence[Epoch]) -> list[Epoch]:
    """By the checkpoint's place, or by its digest: a foundation that a run adopts is a copy."""
    digest = None
    with suppress(CheckpointError):  # `prune` deletes old ones, their epochs stay
        digest = load_meta(Path(foundation)).digest
    return [
        one
        for one in epochs
        if one.checkpoint == foundation
        or (digest and one.export_id == export_id(one.space, digest, one.as_of_us, one.codec))
    ]


def training_days(first: int, end: int, valid_days: int) -> Days:
    """The newest `valid_days` of [first, end) stop the training early; none if nothing would be left.

    >>> training_days(0, 5, 1)
    Days(first=0, valid=4, end=5)
    >>> training_days(0, 1, 1)
    Days(first=0, valid=1, end=1)
    """
    return Days(first=first, valid=end - valid_days if end - first > valid_days else end, end=end)
