"""Experiments on public splits: `python -m vista experiment kuairand`. Every cell (model, seed) is trained in
this process and kept, so that an interrupted experiment goes on where it stopped.

C all candidates, N rows of a split.
"""

import hashlib
import json
import logging
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from vista.config import DataConfig, Frozen, ModelConfig, Settings, TrainConfig, WindowConfig
from vista.data.dataset import Dataset
from vista.data.prepare import prepare_dataset
from vista.data.schema import Examples
from vista.errors import InputError
from vista.evaluate.bootstrap import PairedDifference, paired_bootstrap
from vista.evaluate.metrics import Metrics, measure
from vista.model.ranker import Ranker, SlotName
from vista.runs import write_whole
from vista.train.jobs import batch_plan, history_forward
from vista.train.loop import Task, fit, predict

LOG = logging.getLogger(__name__)
SOURCE = Path(__file__).parents[2]
CELL_MODULES = ("kernels", "vista/data", "vista/model", "vista/train/loop.py", "vista/train/adam.py")
"""What a cell's result depends on beside its configuration and the data."""

MODELS: tuple[SlotName, ...] = ("vista", "din", "mean_pool", "no_history")


class Experiment(Frozen):
    """A public split of a source and what is trained on it. Dates are YYYYMMDD, as the source's files say."""

    name: str
    data: DataConfig
    valid_from: int
    test_from: int
    model: ModelConfig
    train: TrainConfig
    resamples: int = 1_000


class ExperimentConfig(Frozen):
    """What the command line asks for."""

    data_dir: str = Field(description="folder with the source's files")
    seeds: int = Field(3, ge=1, description="each model is trained with the seeds 0 .. SEEDS - 1")
    models: str = Field(",".join(MODELS), description="comma-separated")
    out: str = Field("", description="folder of the results; empty: experiments/NAME below VISTA_RUNS")


class Cell(Frozen):
    """One trained model. Without GAUC: histories here are not frozen at the test boundary (data README)."""

    model: SlotName
    seed: int
    auc: float
    ne: float
    log_loss: float
    calibration: float
    valid_auc: float | None
    rows: int
    seconds: float


class ExperimentReport(Frozen):
    """`paired` is every model against `vista`, by seed; `when` is the day of the last cell."""

    experiment: Experiment
    data_digest: str
    code_digest: str
    when: str
    threads: int
    cells: tuple[Cell, ...]
    paired: dict[int, dict[str, PairedDifference]]

    def table(self) -> str:
        """Mean and standard deviation over seeds, and the range of the paired differences, as text."""
        lines = [f"{'model':<12} {'AUC':>15} {'log-loss':>9} {'NE':>9} {'s/run':>7}  AUC minus vista's"]
        for model in dict.fromkeys(cell.model for cell in self.cells):
            cells = [cell for cell in self.cells if cell.model == model]
            areas = [cell.auc for cell in cells]
            spread = stdev(areas) if len(areas) > 1 else 0.0
            pairs = [paired[model].auc for paired in self.paired.values() if model in paired]
            versus = "  ".join(f"{one.point:+.4f} ({one.low:+.4f} .. {one.high:+.4f})" for one in pairs)
            lines.append(
                f"{model:<12} {fmean(areas):.4f} +- {spread:.4f} {fmean(c.log_loss for c in cells):9.4f} "
                f"{fmean(c.ne for c in cells):9.4f} {fmean(c.seconds for c in cells):7.0f}  {versus}"
            )
        return "\n".join(lines)


def kuairand(data_dir: str) -> Experiment:
    """KuaiRand-Pure, ids only: train until 2022-05-05, valid 05-06, test 05-07 and 05-08.

    One pass with a decaying rate, because ids overfit (data README).
    """
    return Experiment(
        name="kuairand",
        data=DataConfig(
            source="kuairand",
            path=data_dir,
            day_offset_s=8 * 3_600,
            history_cut="event",
            max_uih=200,
            tasks=("is_click",),
        ),
        valid_from=20220506,
        test_from=20220507,
        model=ModelConfig(
            seeds=16, use_side_features=False, use_dense_features=False, reconstruction_weight=0.0
        ),
        train=TrainConfig(max_candidates_per_batch=512, workers=1),
    )


EXPERIMENTS = {experiment.__name__: experiment for experiment in (kuairand,)}


@dataclass(frozen=True, slots=True)
class Split:
    """The data of an experiment, cut at its dates."""

    dataset: Dataset
    train: Examples
    valid: Examples
    test: Examples

    @classmethod
    def open(cls, experiment: Experiment, directory: Path) -> "Split":
        """Prepare the data, unless an earlier run has done it."""
        path = directory / f"data-{_digest(experiment.data.model_dump_json())}"
        if not (path / "dataset.json").exists():
            prepare_dataset(experiment.data, path, WindowConfig())
        dataset = Dataset.open(path)
        examples = dataset.examples(dataset.info.first_day, dataset.info.last_day + 1)
        date_E = dataset.source_date_C[examples.candidate_start_E]
        return cls(
            dataset=dataset,
            train=examples.where(date_E < experiment.valid_from),
            valid=examples.where((date_E >= experiment.valid_from) & (date_E < experiment.test_from)),
            test=examples.where(date_E >= experiment.test_from),
        )


def run_experiment(name: str, config: ExperimentConfig, settings: Settings) -> ExperimentReport:
    """Train what is missing, write `report.json` into the folder of results.

    Raises `InputError` for an unknown experiment or model.
    """
    if name not in EXPERIMENTS:
        raise InputError(f"experiment {name!r} does not exist: choose one of {', '.join(EXPERIMENTS)}")
    models = [_model(model) for model in config.models.split(",")]
    directory = Path(config.out or settings.runs / "experiments" / name).absolute()
    experiment = EXPERIMENTS[name](str(Path(config.data_dir).absolute()))
    return run_cells(experiment, models, config.seeds, directory)


def run_cells(
    experiment: Experiment, models: list[SlotName], seeds: int, directory: Path
) -> ExperimentReport:
    """All cells of an experiment, those of earlier runs reused."""
    split = Split.open(experiment, directory)
    rows = np.sort(split.test.candidate_ids())
    users_N = split.dataset.candidates.user_id_C[rows]
    labels_N = split.dataset.candidates.labels_CT[rows, 0]
    code = code_digest()
    cells: list[Cell] = []
    paired: dict[int, dict[str, PairedDifference]] = {}
    for seed in range(seeds):
        scores: dict[str, NDArray[np.float32]] = {}
        for model in models:
            cell, scores[model] = _cell(experiment, split, model, seed, directory, code)
            cells.append(cell)
        if "vista" in scores and len(scores) > 1:
            paired[seed] = paired_bootstrap(users_N, labels_N, scores, "vista", experiment.resamples, seed)
    report = ExperimentReport(
        experiment=experiment,
        data_digest=split.dataset.info.digest,
        code_digest=code,
        when=date.today().isoformat(),
        threads=torch.get_num_threads(),
        cells=tuple(cells),
        paired=paired,
    )
    write_whole(directory / "report.json", report.model_dump_json(indent=2))
    return report


def train_cell(
    experiment: Experiment, split: Split, model: SlotName, seed: int
) -> tuple[Cell, NDArray[np.float32]]:
    """Train one model; returns its figures and its probabilities of the test rows, by candidate id."""
    started = time.monotonic()
    dataset, config = split.dataset, experiment.train.model_copy(update={"seed": seed})
    max_uih = experiment.data.max_uih
    candidates = dataset.candidates
    known_until_us = int(candidates.event_time_us_C[split.train.candidate_ids()].max()) + 1
    torch.default_generator.manual_seed(seed)
    ranker = Ranker(experiment.model, dataset.spec(known_until_us), model)
    forward = history_forward(ranker)
    task = Task(
        model=ranker,
        forward=forward,
        config=config,
        train=lambda epoch: batch_plan(split.train, config, max_uih=max_uih, epoch=epoch),
        valid=batch_plan(split.valid, config, max_uih=max_uih),
        labels_N=candidates.labels_CT[:, 0],
    )
    progress = fit(task)
    test = batch_plan(split.test, config, max_uih=max_uih)
    rows = np.sort(split.test.candidate_ids())
    scores_N = predict(ranker, forward, test, dataset.info.candidates)[rows]
    measured = measure(candidates.user_id_C[rows], candidates.labels_CT[rows, 0], scores_N)
    cell = Cell(
        model=model,
        seed=seed,
        valid_auc=progress.best_auc,
        seconds=round(time.monotonic() - started, 1),
        **_figures(measured),
    )
    return cell, scores_N


def code_digest() -> str:
    """SHA-256 of the sources that a cell's result depends on."""
    files = sorted(
        file
        for part in CELL_MODULES
        for file in ((SOURCE / part).rglob("*.py") if (SOURCE / part).is_dir() else [SOURCE / part])
    )
    return _digest(*(file.read_text(encoding="utf-8") for file in files))


def _cell(
    experiment: Experiment, split: Split, model: SlotName, seed: int, directory: Path, code: str
) -> tuple[Cell, NDArray[np.float32]]:
    """The cell of an earlier run with the same configuration, data and code, or a new one."""
    key = _digest(experiment.model_dump_json(), split.dataset.info.digest, code, str(torch.get_num_threads()))
    stem = directory / "cells" / f"{model}-{seed}-{key}"
    kept, kept_scores = stem.with_suffix(".json"), stem.with_suffix(".npy")
    if kept.exists():
        return Cell.model_validate_json(kept.read_text(encoding="utf-8")), np.load(kept_scores)
    LOG.info("%s, seed %d", model, seed)
    cell, scores_N = train_cell(experiment, split, model, seed)
    LOG.info("%s, seed %d: test auc %.4f in %.0f s", model, seed, cell.auc, cell.seconds)
    stem.parent.mkdir(parents=True, exist_ok=True)
    np.save(kept_scores, scores_N)
    write_whole(kept, cell.model_dump_json(indent=2))
    return cell, scores_N


def _figures(measured: Metrics) -> dict[str, float]:
    return measured.model_dump(include={"auc", "ne", "log_loss", "calibration", "rows"})


def _model(name: str) -> SlotName:
    for model in MODELS:
        if model == name.strip():
            return model
    raise InputError(f"model {name!r} does not exist: choose from {', '.join(MODELS)}")


def _digest(*texts: str) -> str:
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16]
