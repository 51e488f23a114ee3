"""Runs an experiment: prepares its data, makes the cells that are missing, compares, reports.

N test rows.
"""

import logging
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vista.config import DataConfig, ExperimentConfig, Settings, WindowConfig
from vista.data.dataset import Dataset
from vista.data.prepare import prepare_dataset
from vista.data.sources import SOURCES
from vista.errors import InputError, StageError
from vista.evaluate.bootstrap import PairedDifference, paired_bootstrap
from vista.evaluate.report import counted, duration
from vista.evaluate.scored_rows import ScoredRows
from vista.runs import alone, drop_if_damaged
from vista.train.experiments.blocks import Arm, Block
from vista.train.experiments.cell import CODE, SCORES_FILE, CellJob, check_cell, read_cell
from vista.train.experiments.fingerprint import code_digest, short_digest
from vista.train.experiments.grid_runs import (
    cell_name,
    experiment_name,
    finished_cells,
    track_cell,
    track_grid,
)
from vista.train.experiments.grids import REFERENCE, Experiment, check_folders, experiment_of
from vista.train.experiments.pool import make_cells
from vista.train.experiments.report import (
    BlockRows,
    ExperimentReport,
    Missing,
    report_files,
    written_to,
)
from vista.train.experiments.splits import Rows
from vista.train.tracking import running_revision

LOG = logging.getLogger(__name__)

CELL_LIMIT_S = 20 * 60.0
REPEATED = ("sets", "models", "seeds", "first_seed", "workers")
"""Options that belong to what is measured."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A block with its prepared data and its test rows."""

    block: Block
    dataset: Path
    rows: BlockRows
    users_N: NDArray[np.int64]
    labels_N: NDArray[np.float32]

    @classmethod
    def of(cls, block: Block, directory: Path) -> "Opened":
        path = prepared(block.data, directory)
        dataset = Dataset.open(path)
        rows = Rows.of(dataset, block.split)
        _check_labels(block, rows)
        ids_N = rows.test_ids()
        users_N, labels_N = dataset.candidates.user_id_C[ids_N], dataset.candidates.labels_CT[ids_N, 0]
        return cls(
            block=block,
            dataset=path,
            rows=BlockRows(
                train=len(rows.train.candidate_ids()),
                valid=len(rows.valid.candidate_ids()),
                test=len(ids_N),
                test_users=len(np.unique(users_N)),
                test_positives=int(labels_N.sum()),
                data_digest=dataset.info.digest,
            ),
            users_N=users_N,
            labels_N=labels_N,
        )


def _check_labels(block: Block, rows: Rows) -> None:
    """Before anything is trained. Raises `InputError`."""
    parts = {"training": rows.train, "validation": rows.valid, "test": rows.test}
    for name, part in parts.items():
        labels_N = part.candidates.labels_CT[part.candidate_ids(), 0]
        if not 0 < labels_N.sum() < len(labels_N):
            raise InputError(
                f"{block.name}: {labels_N.sum():.0f} of the {len(labels_N)} {name} rows are positive, but "
                "both labels are needed: give the whole public data set, since its split is fixed"
            )


def prepared(data: DataConfig, directory: Path) -> Path:
    """The prepared data set, made unless the same code has made it from the same files."""
    root = Path(data.path).absolute()
    files = sorted(file for file in root.rglob("*") if file.is_file())
    if root in directory.parents:  # the results lie below the data
        files = [file for file in files if directory not in file.parents]
    states = [f"{file} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files]
    code = [code_digest(module) for module in ("vista.data.prepare", SOURCES[data.source].module)]
    key = short_digest(data.model_dump_json(), *code, *states)
    path = directory / f"data-{key}"
    if not (path / "dataset.json").exists():
        with _preparing(path.with_suffix(".lock")):
            if not (path / "dataset.json").exists():
                prepare_dataset(data, path, WindowConfig())
    return path


@contextmanager
def _preparing(lock: Path) -> Iterator[None]:
    """One process at a time prepares a data set: two would clear away each other's files. Of a refused one
    not even the folders above are left."""
    made = [folder for folder in lock.parents if not folder.exists()]
    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        with alone(lock):
            yield
    finally:
        for folder in made:  # the lowest first
            if not any(folder.iterdir()):
                folder.rmdir()


def run_experiment(
    name: str, config: ExperimentConfig, settings: Settings, *, limit_s: float = CELL_LIMIT_S
) -> ExperimentReport:
    """Make what is missing, compare, and write the report into the folder of results and into MLflow.

    Cells of earlier runs with the same configuration, data and code are used as they are. A cell whose epoch
    takes longer than `limit_s` is reported as missing. Raises `InputError` for names that do not exist and
    `StageError`, after all else is done, if a cell failed.
    """
    experiment = experiment_of(name, config)
    check_folders(experiment, config.data_dir)
    return _Run(experiment, config, settings, results_of(name, config, settings)).run(limit_s)


def results_of(name: str, config: ExperimentConfig, settings: Settings) -> Path:
    """The folder of an experiment's cells and report."""
    return Path(config.out or settings.runs / "experiments" / name).absolute()


def whereabouts(report: ExperimentReport, directory: Path) -> str:
    """Where the report of an experiment lies, what else is there, and how to compare its cells."""
    lines = [written_to(directory)]
    kept = len(list((directory / "cells").glob("[!.]*")))
    if others := kept - len(report.cells):
        lines.append(
            f"the table has {counted(len(report.cells), 'cell')}; {others} more in cells/, of earlier "
            "commands, code or data, are kept and not in it"
        )
    lines.append(f"compare: python -m vista compare {experiment_name(report.experiment.name)}")
    return "\n".join(lines)


def command_of(name: str, config: ExperimentConfig) -> str:
    """The command line that repeats an experiment, without this machine's folders."""
    options = [
        f"--{option.replace('_', '-')} {shlex.quote(str(getattr(config, option)))}"
        for option in REPEATED
        if _is_set(config, option)
    ]
    return " ".join([f"python -m vista experiment {name} --data-dir DATA", *options])


def _is_set(config: ExperimentConfig, option: str) -> bool:
    return bool(getattr(config, option) != ExperimentConfig.model_fields[option].default)


class _Run:
    """One run of an experiment in its folder of results."""

    def __init__(
        self, experiment: Experiment, config: ExperimentConfig, settings: Settings, directory: Path
    ) -> None:
        self.experiment, self.config, self.settings = experiment, config, settings
        self.directory = directory
        self.seeds = range(config.first_seed, config.first_seed + config.seeds)
        self.code, self.revision = code_digest(CODE), running_revision()
        self.opened = {block.name: Opened.of(block, directory) for block in experiment.blocks}
        digests = {name: opened.rows.data_digest for name, opened in self.opened.items()}
        self.mlflow = track_grid(settings, experiment, config, self.code, digests)

    def run(self, limit_s: float) -> ExperimentReport:
        with self.mlflow.run.running():
            jobs = self._jobs()
            made = [job for job in jobs if _is_whole(job)]
            LOG.info("%s, %d of them made before", counted(len(jobs), "cell"), len(made))
            logged = finished_cells(self.mlflow)
            for job in made:
                if cell_name(job) not in logged:
                    self._log(job)
            missing = []
            work = {job: self._work(job) for job in jobs if job not in made}
            for job, code in make_cells(work, self.config.workers, limit_s):
                if code == 0:
                    self._log(job)
                else:
                    missing.append(_missing(job, code, limit_s))
                    LOG.warning("%s: %s", job.title, missing[-1].why)
            report = self._report(jobs, tuple(missing))
            report.write(self.directory)
            files = dict.fromkeys(report_files(self.directory), "report")
            self.mlflow.run.finish({"cells": len(report.cells), "missing": len(missing)}, files)
            self._refuse_failures(missing)
        return report

    def _jobs(self) -> list[CellJob]:
        """Every cell: block by block, all models of one seed before the next seed."""
        return [
            self._job(opened, arm, seed)
            for opened in self.opened.values()
            for seed in self.seeds
            for arm in opened.block.arms
        ]

    def _job(self, opened: Opened, arm: Arm, seed: int) -> CellJob:
        block = opened.block
        data = block.data.model_copy(update={"path": ""})  # the digest says what lies there
        key = short_digest(
            arm.model_dump_json(), data.model_dump_json(), block.split.model_dump_json(),
            opened.rows.data_digest, self.code,
        )  # fmt: skip
        name = f"{block.data_set}-{block.inputs}-{arm.name}-{seed}-{key}"
        return CellJob(
            block=block.model_copy(update={"arms": (arm,)}),
            arm=arm,
            seed=seed,
            dataset=opened.dataset,
            code=self.code,
            directory=self.directory / "cells" / name,
        )

    def _work(self, job: CellJob) -> float:
        """Rows that a cell trains on."""
        return self.opened[job.block.name].rows.train * job.arm.train.epochs

    def _log(self, job: CellJob) -> None:
        cell, opened = read_cell(job.directory), self.opened[job.block.name]
        LOG.info("%s: test AUC %.4f in %s", job.title, cell.metrics.auc, duration(cell.seconds))
        scores_N = None if job.arm.permuted_labels else np.load(job.directory / SCORES_FILE)
        rows = (
            None if scores_N is None else ScoredRows(opened.users_N, opened.labels_N.astype(bool), scores_N)
        )
        track_cell(self.settings, self.mlflow, job, cell, opened.rows.data_digest, rows)

    def _report(self, jobs: list[CellJob], missing: tuple[Missing, ...]) -> ExperimentReport:
        made = [job for job in jobs if job.directory.exists()]
        return ExperimentReport(
            experiment=self.experiment,
            command=command_of(self.experiment.name, self.config),
            when=date.today().isoformat(),
            seeds=self.config.seeds,
            cores=os.cpu_count() or 1,
            code_digest=self.code,
            git_revision=self.revision,
            rows={name: opened.rows for name, opened in self.opened.items()},
            cells=tuple(read_cell(job.directory) for job in made),
            missing=missing,
            paired={name: self._paired(name, made) for name in self.opened},
        )

    def _paired(self, block: str, made: list[CellJob]) -> dict[int, dict[str, PairedDifference]]:
        """By seed, every arm minus the reference on the same test rows and resamples of users."""
        opened, paired = self.opened[block], {}
        for seed in self.seeds:
            scores = {
                job.arm.name: np.load(job.directory / SCORES_FILE)
                for job in made
                if (job.block.name, job.seed) == (block, seed) and not job.arm.permuted_labels
            }
            if REFERENCE in scores and len(scores) > 1:
                LOG.info("%s, seed %d: comparing %d models", block, seed, len(scores))
                paired[seed] = paired_bootstrap(opened.users_N, opened.labels_N, scores, REFERENCE, seed=seed)
        return paired

    def _refuse_failures(self, missing: list[Missing]) -> None:
        failed = [f"{one.block}, {one.arm}, seed {one.seed}" for one in missing if one.failed]
        if failed:
            raise StageError(
                f"{counted(len(failed), 'cell')} failed ({'; '.join(failed)}): see their tracebacks above; "
                f"the others are kept, and {self.directory / 'table.md'} shows them; the same command goes on"
            )


def _is_whole(job: CellJob) -> bool:
    """Whether the cell is there; a damaged one is deleted, to be made again."""
    return job.directory.exists() and not drop_if_damaged(job.directory, check_cell)


def _missing(job: CellJob, code: int | None, limit_s: float) -> Missing:
    why = f"no epoch done in {limit_s / 60:g} min" if code is None else f"failed with exit code {code}"
    return Missing(block=job.block.name, arm=job.arm.name, seed=job.seed, why=why, failed=code is not None)
