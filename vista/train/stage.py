"""What the stages of this folder share: the run's files, the results of its models, its MLflow runs."""

import shutil
import uuid
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from vista.config import Frozen, Recipe, RefreshConfig, Settings
from vista.data.dataset import Dataset
from vista.evaluate.metrics import Metrics, Scores, measure
from vista.evaluate.refresh_report import TrainedOn, TrainingCurve
from vista.evaluate.scored_rows import ScoredRows
from vista.model.checkpoint import load_meta
from vista.recipes import recipe_of
from vista.runs import RunDirectory, read_as, reading, write_whole
from vista.train.registry import CHECKPOINT
from vista.train.state import Point, Progress
from vista.train.tracking import Input, Tracked, flattened, track

SCORES_FILE = "scores.npz"
FITTED_FILE = "fitted.json"
CHECKPOINT_DIRECTORY = "checkpoint"
CURVES = ("loss", "reconstruction_loss", "valid_auc")


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

    def track(self, experiment: str, space: str, params: Mapping[str, Any] | None = None) -> Tracked:
        """This run's MLflow run in the experiment of one purpose."""
        params = self.params() | dict(params or {})
        return track(self.settings, experiment, self.config.run_id, params, self.tags(space))

    def tags(self, space: str) -> dict[str, str]:
        """Where something of this run comes from."""
        return {
            "vista.run_id": self.config.run_id,
            "vista.recipe": self.recipe.name,
            "vista.space": space,
            "vista.data_digest": self.dataset.info.digest,
        }

    def version_tags(self, space: str, checkpoint: Path) -> dict[str, str]:
        """Where a registered version comes from."""
        digest = load_meta(checkpoint).digest
        return self.tags(space) | {"vista.digest": digest, CHECKPOINT: str(checkpoint)}

    def input(self, context: str = "training") -> Input:
        """The events of this run, for MLflow."""
        info = self.dataset.info
        return Input(name=info.name, digest=info.digest, uri=str(self.run.data), context=context)

    def test_rows(self) -> NDArray[np.int64]:
        """Ids of the test day's candidates, in ascending order: what every model is measured on."""
        n = self.dataset.split().n
        return np.sort(self.dataset.examples(n, n + 1).candidate_ids())

    def measure(self, scores: Scores) -> Metrics:
        """The metrics of probabilities by candidate id on the test day."""
        rows, candidates = self.test_rows(), self.dataset.candidates
        users_N, labels_N = candidates.user_id_C[rows], candidates.labels_CT[rows, 0]
        return measure(users_N, labels_N, scores.own_N[rows], scores.frozen_N[rows])

    def scored_rows(self, scores: Scores) -> ScoredRows:
        """The test day's rows with one model's probabilities by candidate id."""
        rows, candidates = self.test_rows(), self.dataset.candidates
        labels_N = candidates.labels_CT[rows, 0].astype(np.bool_)
        return ScoredRows(candidates.user_id_C[rows], labels_N, scores.own_N[rows])

    def params(self) -> dict[str, Any]:
        return flattened(self.config) | flattened(self.recipe)


class Fitted(Frozen):
    """How a model came to be. `best_epoch` counts from 0; the curve is empty for LightGBM. `other_auc` is the
    test AUC of the tasks after the first, which alone has scores."""

    model: str
    trained_on: TrainedOn
    other_auc: dict[str, float] = Field(default_factory=dict)
    best_epoch: int | None = None
    best_auc: float | None = None
    curve: tuple[Point, ...] = ()
    note: str = ""

    @classmethod
    def of(
        cls, model: str, trained_on: TrainedOn, progress: Progress, other_auc: dict[str, float]
    ) -> "Fitted":
        return cls(
            model=model,
            trained_on=trained_on,
            other_auc=other_auc,
            best_epoch=progress.best_epoch,
            best_auc=progress.best_auc,
            curve=progress.curve,
        )

    def curves(self, model: str) -> list[TrainingCurve]:
        """The metrics of the training over its steps, for the report."""
        curves = []
        for metric in CURVES:
            known = [point for point in self.curve if metric in point.values]
            if known:
                steps = tuple(point.step for point in known)
                values = tuple(point.values[metric] for point in known)
                curves.append(TrainingCurve(model=model, metric=metric, steps=steps, values=values))
        return curves


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
