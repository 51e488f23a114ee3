"""One cell: an arm of a block, trained with one seed and measured on the test rows, in a process of its own.

    python -m vista.train.experiments.cell < JOB

A cell that is told through a pipe ends when the pipe closes, so that none outlives its launcher.

The process has one thread, and the cell is there as a whole or not at all, so that any scheduler may run,
kill and repeat it: the training goes on after the last epoch that it ended. `code_digest` of this module is
what a cell's result depends on beside its job.
"""

import logging
import os
import shutil
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from vista.config import Frozen
from vista.data.dataset import Dataset
from vista.data.files import check_unchanged, checksum
from vista.data.schema import Examples
from vista.errors import StageError
from vista.evaluate.metrics import Metrics, Scores, measure
from vista.model.ranker import Ranker
from vista.runs import drop_if_damaged, read_sealed, write_sealed
from vista.train.experiments.blocks import Arm, Block
from vista.train.experiments.fingerprint import code_digest
from vista.train.experiments.probes import Probes, probe
from vista.train.experiments.splits import Rows
from vista.train.lightgbm_baseline import fit_lightgbm
from vista.train.loop import Snapshot, Task, batch_plan, fit, history_forward, other_auc, predict
from vista.train.state import Progress, read_state

LOG = logging.getLogger(__name__)

CODE = "vista.train.experiments.cell"
"""This module: what it imports decides a cell's result."""

CELL_FILE = "cell.json"
SCORES_FILE = "scores.npy"
MADE_AGAIN = "the cell is made again"


class Training(Frozen):
    """How the weights came to be. `wait_share` is the part of the time that the training stood still for its
    batches; validation is not counted in any of them."""

    epochs: int
    best_epoch: int
    valid_auc: float
    train_s: float
    rows_per_s: float
    wait_share: float


class Cell(Frozen):
    """What was found. `training` is None for LightGBM, `probes` for arms that are not probed; the checksum is
    that of `scores.npy`. `seconds` are those of the process that ended it, and of the epochs before.
    `metrics` and `scores.npy` are of the first task; `other_auc` is the test AUC of each further one
    whose rows hold both labels."""

    block: str
    arm: str
    seed: int
    metrics: Metrics
    seconds: float
    training: Training | None = None
    probes: Probes | None = None
    other_auc: dict[str, float] = Field(default_factory=dict)
    scores_checksum: str = ""  # `put` fills it in


class CellJob(Frozen):
    """A cell to make: from the prepared data set, by the code whose digest is `code`, into `directory`."""

    block: Block
    arm: Arm
    seed: int
    dataset: Path
    code: str
    directory: Path

    @property
    def title(self) -> str:
        return f"{self.block.name}, {self.arm.name}, seed {self.seed}"

    @property
    def unfinished(self) -> Path:
        """Folder of a training that has not ended: a state per epoch."""
        return self.directory.with_name(f".{self.directory.name}.unfinished")

    def last_epoch(self) -> Path | None:
        """The state after the last epoch that is kept."""
        return max(self.unfinished.glob("epoch-*"), default=None)


@dataclass(frozen=True, slots=True)
class _Trained:
    """Probabilities of the test rows by candidate id, and how they came to be."""

    scores: Scores
    training: Training | None = None
    probes: Probes | None = None
    other_auc: dict[str, float] = field(default_factory=dict)


def make_cell(job: CellJob) -> Cell:
    """Train, measure, and put `cell.json` and `scores.npy` (in the order of `Rows.test_ids`) in place."""
    started = time.monotonic()
    earlier_s = _trained_s(job)
    torch.set_num_threads(1)
    dataset = Dataset.open(job.dataset)
    rows = Rows.of(dataset, job.block.split)
    if job.arm.permuted_labels:
        rows = rows.permuted(job.seed)
    trained = (_lightgbm if job.arm.kind == "lightgbm" else _ranker)(job, dataset, rows)
    candidates, ids_N = rows.test.candidates, rows.test_ids()
    scores = trained.scores.take(ids_N)
    cell = Cell(
        block=job.block.name,
        arm=job.arm.name,
        seed=job.seed,
        metrics=measure(
            candidates.user_id_C[ids_N], candidates.labels_CT[ids_N, 0], scores.own_N, scores.frozen_N
        ),
        seconds=round(time.monotonic() - started + earlier_s, 1),
        training=trained.training,
        probes=trained.probes,
        other_auc=trained.other_auc,
    )
    cell = put(job.directory, cell, scores.own_N)
    shutil.rmtree(job.unfinished, ignore_errors=True)
    return cell


def put(directory: Path, cell: Cell, scores_N: NDArray[np.float32]) -> Cell:
    """Write the files of a cell, all or none of them; returns it with the checksum of its scores."""
    with _whole(directory) as unfinished:
        np.save(unfinished / SCORES_FILE, scores_N)
        kept = cell.model_copy(update={"scores_checksum": checksum(unfinished / SCORES_FILE)})
        write_sealed(unfinished / CELL_FILE, kept.model_dump(mode="json"))
    return kept


def read_cell(directory: Path) -> Cell:
    """What `put` wrote, without the scores. Raises `StageError` if it was changed."""
    return read_sealed(Cell, directory / CELL_FILE, MADE_AGAIN)


def check_cell(directory: Path) -> None:
    """Raises `StageError` if one of its files is not what `put` wrote."""
    check_unchanged(directory / SCORES_FILE, read_cell(directory).scores_checksum, MADE_AGAIN)


@contextmanager
def _whole(directory: Path) -> Iterator[Path]:
    """An empty folder that becomes `directory`, unless another process has made that meanwhile: what both
    hold is equal but for the seconds."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{directory.name}.", dir=directory.parent) as scratch:
        unfinished = Path(scratch) / directory.name
        unfinished.mkdir()
        yield unfinished
        try:
            unfinished.rename(directory)
        except OSError:
            if not directory.exists():
                raise


def _ranker(job: CellJob, dataset: Dataset, rows: Rows) -> _Trained:
    assert job.arm.kind != "lightgbm"
    config = job.arm.train.model_copy(update={"seed": job.seed})
    max_uih, candidates = job.block.data.max_uih, rows.train.candidates
    torch.default_generator.manual_seed(job.seed)
    ranker = Ranker(job.arm.model, dataset.spec(rows.known_until_us()), job.arm.kind)
    forward = history_forward(ranker)

    def keep(snapshot: Snapshot) -> None:
        if snapshot.progress.step == 0:
            with _whole(job.unfinished / f"epoch-{snapshot.progress.epoch:03}") as directory:
                snapshot.write(directory)

    progress = fit(
        Task(
            model=ranker,
            forward=forward,
            config=config,
            train=lambda epoch: batch_plan(rows.train, config, max_uih=max_uih, epoch=epoch),
            valid=batch_plan(rows.valid, config, max_uih=max_uih),
            labels_N=candidates.labels_CT[:, 0],
        ),
        resume=job.last_epoch(),
        keep=keep,
    )
    plans = [batch_plan(part, config, max_uih=max_uih) for part in (rows.test, rows.frozen_test(dataset))]
    own_CT, frozen_CT = (predict(ranker, forward, plan, dataset.info.candidates) for plan in plans)
    return _Trained(
        scores=Scores(own_CT[:, 0], frozen_CT[:, 0]),
        training=_training(progress, len(rows.train.candidate_ids())),
        probes=probe(ranker, plans[0], rows.test_ids()) if job.arm.probed else None,
        other_auc=other_auc(ranker.spec.tasks, rows.test, own_CT),
    )


def _training(progress: Progress, rows: int) -> Training:
    epochs_s, waits_s = (_of_epochs(progress, name) for name in ("epoch_s", "wait_s"))
    train_s = sum(epochs_s)
    assert progress.best_epoch is not None, "every epoch is validated"
    assert progress.best_auc is not None, "the validation rows hold both labels"
    return Training(
        epochs=len(epochs_s),
        best_epoch=progress.best_epoch,
        valid_auc=progress.best_auc,
        train_s=train_s,
        rows_per_s=rows * len(epochs_s) / train_s,
        wait_share=sum(waits_s) / train_s,
    )


def _trained_s(job: CellJob) -> float:
    """Seconds of the epochs that earlier processes have trained; those whose state is damaged are deleted."""
    while (last := job.last_epoch()) is not None and drop_if_damaged(last, read_state):
        pass  # the training goes on from the epoch before
    return 0.0 if last is None else sum(_of_epochs(read_state(last)[0], "epoch_s"))


def _of_epochs(progress: Progress, name: str) -> list[float]:
    """What the curve says at the end of each epoch."""
    return [point.values[name] for point in progress.curve if name in point.values]


def _lightgbm(job: CellJob, dataset: Dataset, rows: Rows) -> _Trained:
    model = fit_lightgbm(dataset, rows.train, rows.valid, job.seed)

    def by_candidate(examples: Examples) -> NDArray[np.float32]:
        scores_C = np.full(dataset.info.candidates, np.nan, np.float32)
        scores_C[examples.candidate_ids()] = model.predict(examples)
        return scores_C

    return _Trained(Scores(by_candidate(rows.test), by_candidate(rows.frozen_test(dataset))))


def _end_with_launcher() -> None:
    os.read(0, 1)  # not through sys.stdin, whose lock a thread must not hold when Python ends
    os._exit(1)


def main() -> None:
    """Make the cell of the `CellJob` that the first line of standard input holds, as JSON."""
    job = CellJob.model_validate_json(sys.stdin.buffer.readline())
    if stat.S_ISFIFO(os.fstat(0).st_mode):
        threading.Thread(target=_end_with_launcher, daemon=True).start()
    logging.basicConfig(level=logging.INFO, format=f"%(asctime)s {job.title}: %(message)s", stream=sys.stderr)
    if code_digest(CODE) != job.code:
        raise StageError(
            f"{job.title}: the code was changed since the experiment began, and the cell would be kept as "
            "that of the earlier code: start the experiment again"
        )
    make_cell(job)


if __name__ == "__main__":
    main()
