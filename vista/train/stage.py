"""What the stages of this folder share: the run's files, the results of its models, its MLflow runs."""

import shutil
import uuid
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vista.config import Frozen, Recipe, RefreshConfig, Settings
from vista.data.dataset import Dataset
from vista.errors import CheckpointError
from vista.evaluate.metrics import Metrics, Scores, measure
from vista.evaluate.refresh_report import TrainedOn
from vista.model.checkpoint import CheckpointMeta
from vista.recipes import recipe_of
from vista.runs import RunDirectory, read_as, reading, write_whole
from vista.train.state import Point, Progress
from vista.train.tracking import Tracked, flattened, git_revision, track

SCORES_FILE = "scores.npz"
FITTED_FILE = "fitted.json"
CHECKPOINT_DIRECTORY = "checkpoint"


def checkpoint_meta(checkpoint: Path) -> CheckpointMeta:
    """What a checkpoint is, without its weights. Raises `CheckpointError` if it cannot be read."""
    remedy = "restore it, or start a new run"
    return read_as(CheckpointMeta, checkpoint / "model.json", remedy, raising=CheckpointError)


@dataclass(frozen=True, slots=True)
class StageContext:
    """One run, as its stages see it."""

    config: RefreshConfig
    settings: Settings
    recipe: Recipe
    run: RunDirectory
    dataset: Dataset

    @classmethod
    def open(cls, config: RefreshConfig, settings: Settings) -> "StageContext":
        """Raises `InputError` if the stage prepare has not finished."""
        run = RunDirectory.open(settings.runs, config)
        return cls(config, settings, recipe_of(config), run, Dataset.open(run.data))

    def result(self, model: str) -> "Result":
        return Result(self.run.training(model) / "result")

    def track(self, model: str, space: str, params: dict[str, Any]) -> Tracked:
        """This run's MLflow run of one model; experiments are named after the recipe."""
        tags = {
            "vista.run_id": self.config.run_id,
            "vista.model": model,
            "vista.space": space,
            "vista.data_digest": self.dataset.info.digest,
            "vista.git_revision": git_revision(),
        }
        name = f"{self.config.run_id}/{model}"
        return track(self.settings, f"vista-{self.recipe.name}", name, params, tags)

    def test_rows(self) -> NDArray[np.int64]:
        """Ids of the test day's candidates, in ascending order: what every model is measured on."""
        n = self.dataset.split().n
        return np.sort(self.dataset.examples(n, n + 1).candidate_ids())

    def measure(self, scores: Scores) -> Metrics:
        """The metrics of probabilities by candidate id on the test day."""
        rows, candidates = self.test_rows(), self.dataset.candidates
        users_N, labels_N = candidates.user_id_C[rows], candidates.labels_CT[rows, 0]
        return measure(users_N, labels_N, scores.own_N[rows], scores.frozen_N[rows])

    def params(self) -> dict[str, Any]:
        return flattened(self.config) | flattened(self.recipe)


class Fitted(Frozen):
    """How a model came to be. `best_epoch` counts from 0; the curve is empty for LightGBM."""

    model: str
    trained_on: TrainedOn
    best_epoch: int | None = None
    best_auc: float | None = None
    curve: tuple[Point, ...] = ()
    note: str = ""

    @classmethod
    def of(cls, model: str, trained_on: TrainedOn, progress: Progress) -> "Fitted":
        return cls(
            model=model,
            trained_on=trained_on,
            best_epoch=progress.best_epoch,
            best_auc=progress.best_auc,
            curve=progress.curve,
        )


@dataclass(frozen=True, slots=True)
class Result:
    """A finished model's directory: test scores by candidate id, `Fitted`, its checkpoint if it is kept.

    It is there as a whole or not at all.
    """

    path: Path

    @property
    def checkpoint(self) -> Path:
        return self.path / CHECKPOINT_DIRECTORY

    def exists(self) -> bool:
        return self.path.exists()

    def begin(self) -> "Result":
        """A place to write the result to, until `end`."""
        unfinished = Result(self.path.with_name(f".result-{uuid.uuid4().hex}"))
        unfinished.path.mkdir(parents=True)
        return unfinished

    def end(self, unfinished: "Result") -> None:
        """Put what was written in place; the first of several equal ones stays."""
        if self.exists():
            shutil.rmtree(unfinished.path)
        else:
            unfinished.path.rename(self.path)

    def write(self, fitted: Fitted, scores: Scores) -> None:
        np.savez(self.path / SCORES_FILE, own_N=scores.own_N, frozen_N=scores.frozen_N)
        write_whole(self.path / FITTED_FILE, fitted.model_dump_json(indent=2))

    def scores(self) -> Scores:
        """Probabilities of the test day's candidates by candidate id; NaN elsewhere. Raises `StageError` if
        they are damaged."""
        path, signs = self.path / SCORES_FILE, (EOFError, KeyError, zipfile.BadZipFile)
        with reading(path, self._make_again(), *signs), np.load(path) as kept:
            return Scores(kept["own_N"], kept["frozen_N"])

    def fitted(self) -> Fitted:
        """Raises `StageError` if it is damaged."""
        return read_as(Fitted, self.path / FITTED_FILE, self._make_again())

    def _make_again(self) -> str:
        stage = "train_foundation" if self.path.parent.name == "foundation" else "retrain_downstream"
        return (
            f"delete {self.path} and stages/{stage}.json of the run; then `make run RESUME=1` makes "
            "them again"
        )
