"""One training loop, for the workers of Ray Train and for a single process alike.

The loss of a step is divided by the candidates of the whole (global) batch, so that the result depends on
the number of workers only by rounding. Randomness is a function of (seed, epoch, step, rank): to resume
exactly (on a GPU, whose sums have no fixed order, up to rounding), only the weights, the optimiser and the
position have to be kept. A model is trained where its weights are.

Shape suffixes: C candidates of a worker's batch, T tasks, N rows of the data set's candidate table.
"""

import hashlib
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vista.config import TrainConfig
from vista.data.batches import BatchPlan, batches
from vista.data.schema import Batch, Examples
from vista.errors import InputError, StageError
from vista.evaluate.metrics import auc
from vista.model.checkpoint import Model
from vista.model.inputs import device_of, tensors
from vista.model.ranker import Ranker, RankerOutput, loss
from vista.train.adam import FlatAdam
from vista.train.state import Point, Progress, load_state, save_state

LOG = logging.getLogger(__name__)
LOG_EVERY_S = 5.0
PLATEAU_FACTOR = 0.1
DIVERGED = "lower the learning rate, or look for values that are not finite in the data"

Forward = Callable[[Batch], RankerOutput]


@dataclass(frozen=True, slots=True)
class World:
    """This process among the workers of one training; `torch.distributed` is set up if there are several."""

    rank: int = 0
    size: int = 1

    def add(self, tensor: Tensor) -> Tensor:
        """Sum over all workers, in place; every worker has to call it."""
        if self.size > 1:
            torch.distributed.all_reduce(tensor)
        return tensor


@dataclass(frozen=True, slots=True)
class Task:
    """What is trained: a model, how it reads a batch, and on which examples.

    `train` gives the plan of an epoch, `valid` the plan of the validation examples (None: no early stopping,
    the last weights are the result). `labels_N` holds the first task's labels by candidate id.
    """

    model: Model
    forward: Forward
    config: TrainConfig
    train: Callable[[int], BatchPlan]
    valid: BatchPlan | None
    labels_N: NDArray[np.float32]

    def __post_init__(self) -> None:
        if self.config.schedule == "plateau" and self.valid is None:
            raise InputError(
                "schedule 'plateau' watches the validation AUC, and no examples are kept for validation: "
                "give more days of events, or take the schedule 'linear'"
            )


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A moment to resume from; `write` puts it into a directory."""

    progress: Progress
    write: Callable[[Path], None]


def fit(
    task: Task,
    world: World | None = None,
    *,
    resume: Path | None = None,
    keep: Callable[[Snapshot], None] | None = None,
) -> Progress:
    """Train `task.model` in place and leave its best weights in it.

    `resume` is a directory that a snapshot was written to; `keep` is called every `checkpoint_every_steps`
    and after every epoch, by all workers at the same steps.
    """
    fitting = _Fitting(task, world or World(), keep)
    if resume is not None:
        fitting.resume(resume)
    while not fitting.progress.done:
        fitting.run_epoch()
    return fitting.finish()


class _Fitting:
    """The state of one `fit`."""

    def __init__(self, task: Task, world: World, keep: Callable[[Snapshot], None] | None) -> None:
        self.task, self.model, self.config = task, task.model, task.config
        self.world, self.keep = world, keep
        assert world.size == 1 or not task.model.config.mlp_batch_norm, "batch norm sees a part of the batch"
        self.progress = Progress()
        self.curve: list[Point] = []
        self.best: dict[str, Tensor] = {}
        self.optimiser = FlatAdam(task.model, task.config.embedding_l2)
        self.said_at = time.monotonic()
        self.wait_s = 0.0

    def resume(self, directory: Path) -> None:
        self.progress, self.best = load_state(directory, self.model, self.optimiser)
        self.curve = list(self.progress.curve)

    def finish(self) -> Progress:
        self.model.load_state_dict(self.best)
        return self.progress

    def run_epoch(self) -> None:
        plan = self.task.train(self.progress.epoch)
        first, every = self.progress.step, self.config.checkpoint_every_steps
        parts = batches(plan, start_step=first, rank=self.world.rank, world_size=self.world.size)
        started, self.wait_s = time.monotonic(), 0.0
        for step, batch in enumerate(self._waited(parts), start=first):
            self._step(step, plan.steps, batch)
            if (step + 1) % every == 0 and step + 1 < plan.steps:
                self._keep()
        seconds = {"epoch_s": time.monotonic() - started, "wait_s": self.wait_s}
        self.curve.append(Point(step=self.progress.global_step, values=seconds))
        self._end_epoch()

    def _waited(self, parts: Iterator[Batch]) -> Iterator[Batch]:
        """`parts`; the seconds that the training stands still for them are added to `wait_s`."""
        asked = time.monotonic()
        for batch in parts:
            self.wait_s += time.monotonic() - asked
            yield batch
            asked = time.monotonic()

    def _step(self, step: int, steps: int, batch: Batch) -> None:
        epoch = self.progress.epoch
        generator_of(device_of(self.model)).manual_seed(
            seed_of(self.config.seed, epoch, step, self.world.rank)
        )
        done_share = (epoch + step / steps) / self.config.epochs
        rate = learning_rate(self.config, done_share, self.progress.stalls)
        self.model.train()
        values = self._backward(batch)
        self.world.add(self.optimiser.gradient_N)
        done = self.progress.global_step + 1
        self.optimiser.step(rate, done)
        self.progress = self.progress.model_copy(update={"step": step + 1, "global_step": done})
        self.curve.append(Point(step=done, values={"learning_rate": rate, **values}))
        self._say(f"epoch {epoch + 1}/{self.config.epochs} step {step + 1}/{steps} loss {values['loss']:.4f}")

    def _backward(self, batch: Batch) -> dict[str, float]:
        """Accumulate this worker's share of the global batch's gradient; returns the global losses."""
        # loss, candidates, reconstruction, predictions: sums
        shares = torch.zeros(4, dtype=torch.float64, device="cpu")
        terms: list[Tensor] = []
        if len(batch.candidate_id_C):
            output = self.task.forward(batch)
            labels_CT = torch.from_numpy(batch.labels_CT).to(output.logits_CT.device)
            terms.append(loss(output, labels_CT, self.model.config.task_weights))
            shares[0], shares[1] = terms[0].item(), len(batch.candidate_id_C)
            if output.reconstruction_loss is not None:
                shares[3] = _predictions(batch, self.model.config.reconstruction_window)
                terms.append(output.reconstruction_loss * shares[3].item())
                shares[2] = terms[1].item()
        self.world.add(shares)
        loss_sum, candidates, reconstruction_sum, predictions = shares.tolist()
        if not math.isfinite(loss_sum + reconstruction_sum):
            step = self.progress.global_step + 1
            raise StageError(f"the loss of step {step} is {loss_sum + reconstruction_sum}: {DIVERGED}")
        scales = (1 / candidates, self.model.config.reconstruction_weight / max(1.0, predictions))
        if terms:
            total = torch.stack([term * scale for term, scale in zip(terms, scales, strict=False)]).sum()
            total.backward()  # type: ignore[no-untyped-call]
        values = {"loss": loss_sum / candidates}
        return values | ({"reconstruction_loss": reconstruction_sum / predictions} if predictions else {})

    def _end_epoch(self) -> None:
        epoch = self.progress.epoch
        area = self._validate()
        if area is not None:
            self.curve.append(Point(step=self.progress.global_step, values={"valid_auc": area}))
            self._say(f"epoch {epoch + 1}/{self.config.epochs} valid auc {area:.4f}", now=True)
        changes: dict[str, object] = {"epoch": epoch + 1, "step": 0}
        if area is None or self.progress.best_auc is None or area > self.progress.best_auc:
            changes |= {"best_auc": area, "best_epoch": epoch}
            self.best = {name: value.clone() for name, value in self.model.state_dict().items()}
        else:
            changes["stalls"] = self.progress.stalls + 1
        self.progress = self.progress.model_copy(update=changes)
        waited = epoch - (self.progress.best_epoch or 0)
        done = epoch + 1 == self.config.epochs or waited >= self.config.patience
        self.progress = self.progress.model_copy(update={"done": done})
        self._keep()

    def _validate(self) -> float | None:
        """AUC on the validation examples, or None if there are none or all have one label."""
        task = self.task
        if task.valid is None:
            return None
        scores_N = predict(self.model, task.forward, task.valid, len(task.labels_N), self.world)[:, 0]
        rows = np.flatnonzero(~np.isnan(scores_N))
        labels = task.labels_N[rows]
        return auc(labels, scores_N[rows]) if np.unique(labels).size == 2 else None

    def _keep(self) -> None:
        self.progress = self.progress.model_copy(update={"curve": tuple(self.curve)})
        if self.keep is not None:
            progress, task = self.progress, self.task
            self.keep(
                Snapshot(
                    progress, lambda path: save_state(path, progress, task.model, self.best, self.optimiser)
                )
            )

    def _say(self, text: str, now: bool = False) -> None:
        if self.world.rank == 0 and (now or time.monotonic() - self.said_at > LOG_EVERY_S):
            self.said_at = time.monotonic()
            LOG.info("%s", text)


def predict(
    model: Model, forward: Forward, plan: BatchPlan, rows: int, world: World | None = None
) -> NDArray[np.float32]:
    """Probabilities of every task for the candidates of `plan`, by candidate id [rows, T]; NaN elsewhere.

    With several workers each scores its part and all get the whole. Raises `StageError` if a score is NaN.
    """
    world = world or World()
    scores_NT = torch.zeros(rows, len(model.spec.tasks), device="cpu")
    seen_N = torch.zeros(rows, device="cpu")
    model.eval()
    with torch.inference_mode():
        for batch in batches(plan, rank=world.rank, world_size=world.size):
            if len(batch.candidate_id_C):
                ids_C = torch.from_numpy(batch.candidate_id_C)
                scores_NT[ids_C] = torch.sigmoid(forward(batch).logits_CT.float()).cpu()
                seen_N[ids_C] = 1.0
    world.add(scores_NT)
    world.add(seen_N)
    if lost := int(scores_NT.isnan().any(1).sum()):
        raise StageError(f"{lost} of {seen_N.sum():.0f} scores are NaN: {DIVERGED}")
    scores_NT[seen_N == 0] = torch.nan
    probabilities: NDArray[np.float32] = scores_NT.numpy()
    return probabilities


def other_auc(
    tasks: tuple[str, ...], examples: Examples, probabilities_CT: NDArray[np.float32]
) -> dict[str, float]:
    """AUC of each task after the first on the candidates of `examples`, if they hold both of its labels."""
    ids_N = examples.candidate_ids()
    labels_NT, scores_NT = examples.candidates.labels_CT[ids_N], probabilities_CT[ids_N]
    return {
        name: auc(labels_NT[:, task], scores_NT[:, task])
        for task, name in enumerate(tasks)
        if task > 0 and np.unique(labels_NT[:, task]).size == 2
    }


def history_forward(model: Ranker) -> Forward:
    """A model that reads raw histories, on batches."""

    def forward(batch: Batch) -> RankerOutput:
        output: RankerOutput = model(tensors(batch, device_of(model)))
        return output

    return forward


def batch_plan(
    examples: Examples, config: TrainConfig, *, max_uih: int, epoch: int | None = None
) -> BatchPlan:
    """The batches of an epoch; in the order of the examples if no epoch is given."""
    return BatchPlan.make(
        examples,
        max_tokens=config.max_tokens_per_batch,
        max_candidates=config.max_candidates_per_batch,
        max_uih=max_uih,
        seed=config.seed,
        epoch=epoch or 0,
        shuffle=epoch is not None,
    )


def learning_rate(config: TrainConfig, done: float, stalls: int) -> float:
    """Linear decay from `learning_rate` to its final fraction, `done` being the share of steps that are
    done; or a tenth of itself for each epoch without a better validation AUC (`stalls`).

    >>> learning_rate(TrainConfig(learning_rate=0.1, final_learning_rate_fraction=0.5), 1.0, 0)
    0.05
    >>> learning_rate(TrainConfig(learning_rate=0.5, schedule="plateau"), 1.0, 1)
    0.05
    """
    if config.schedule == "plateau":
        return config.learning_rate * PLATEAU_FACTOR**stalls
    return config.learning_rate * (1 - done * (1 - config.final_learning_rate_fraction))


def generator_of(device: torch.device) -> torch.Generator:
    """What a device's random numbers come from. `torch.manual_seed` visits all the others too."""
    if device.type == "cuda":
        return torch.cuda.default_generators[device.index]
    return torch.default_generator


def seed_of(*parts: int) -> int:
    """A seed that differs for every (seed, epoch, step, rank)."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:7], "little")


def _predictions(batch: Batch, window: int) -> int:
    """How many events the reconstruction loss of `batch` is a mean over: all but each user's oldest."""
    return int((np.diff(batch.seq_offsets).clip(1, window) - 1).sum())
