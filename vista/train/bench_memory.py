"""What very long histories cost: `python -m vista.train.bench_memory million|industrial` prints JSON.

`million` puts one user of a million events beside 64 of a hundred; `industrial` as many users of the longest
history as a worker's part of that recipe's batch (65,536 events) holds, and the 64: 70,000 events a step.
Each phase (prepare, one step of the optimiser, export) is a process of its own, so that its peak memory is
its own. What step and export take is judged (exit code 1). Linux only: the peak is VmHWM.
"""

import json
import logging
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import click
import torch

from vista.config import DataConfig, Frozen, GeneratedConfig, ModelConfig, TrainConfig, WindowConfig
from vista.data.dataset import Dataset
from vista.data.prepare import prepare_dataset
from vista.data.schema import bucket_of
from vista.errors import StageError
from vista.evaluate.verdicts import Verdict, judge
from vista.model.checkpoint import CheckpointMeta, load, save
from vista.model.ranker import Ranker, loss
from vista.recipes import industrial
from vista.runs import write_whole
from vista.summary.export import ExportedEpoch, export_bucket
from vista.train.adam import FlatAdam
from vista.train.jobs import Days, RankerJob, Training

LOG = logging.getLogger(__name__)

DAYS = 4
ORDINARY_USERS = 64
LIMITS = {"million": {"GB": 8.0, "s": 10.0}, "industrial": {"GB": 4.0}}
"""Of a step, and of an export; the README says them to those who size a worker."""


class Case(Frozen):
    """A model, and how many users have how many events."""

    model: ModelConfig
    users: int
    events: int
    threads: int


class Phase(Frozen):
    """What one phase took; `cpu_s` is of all its threads. `tokens` are events that were read at once."""

    name: str
    tokens: int
    wall_s: float
    cpu_s: float
    peak_bytes: int


def million(events: int, threads: int) -> Case:
    """One user of so many events."""
    model = ModelConfig(width=64, heads=4, seeds=128, layers=2, use_user_id=False, use_dense_features=False)
    return Case(model=model, users=1, events=events, threads=threads)


def industrial_worker(events: int, threads: int) -> Case:
    """What one worker of the recipe gets of a batch, as users of so many events."""
    recipe = industrial("")
    users = recipe.foundation.max_tokens_per_batch // recipe.foundation.workers // events
    return Case(model=recipe.model, users=users, events=events, threads=threads)


CASES: dict[str, tuple[Callable[[int, int], Case], int]] = {
    "million": (million, 1_000_000),
    "industrial": (industrial_worker, 16_000),
}


def measure(case: Case, directory: Path) -> list[Phase]:
    """The phases, one process after the other."""
    phases = []
    for phase in (_prepare, _step, _export):
        LOG.info("%s ...", phase.__name__.strip("_"))
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            phases.append(pool.submit(_measured, phase, case, directory).result())
    return phases


def _measured(phase: Callable[[Case, Path], tuple[int, float, float]], case: Case, directory: Path) -> Phase:
    torch.set_num_threads(case.threads)
    tokens, wall_s, cpu_s = phase(case, directory)
    status = Path("/proc/self/status").read_text(encoding="ascii")
    (peak,) = (line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))
    return Phase(
        name=phase.__name__.strip("_"),
        tokens=tokens,
        wall_s=round(wall_s, 2),
        cpu_s=round(cpu_s, 2),
        peak_bytes=int(peak) * 1024,
    )


def _timed(function: Callable[[], int]) -> tuple[int, float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    tokens = function()
    return tokens, time.perf_counter() - wall, time.process_time() - cpu


def _prepare(case: Case, directory: Path) -> tuple[int, float, float]:
    # A sixteenth of them happens on the last day: so many lie before it.
    long_users = (-(-case.events * 16 // 15),) * case.users
    generated = GeneratedConfig(users=ORDINARY_USERS, items=10_000, long_users=long_users, days=DAYS)
    data = DataConfig(source="generated", buckets=4, max_uih=case.events, generated=generated)
    return _timed(lambda: prepare_dataset(data, directory / "data", WindowConfig()).dataset.rows)


def _step(case: Case, directory: Path) -> tuple[int, float, float]:
    """One step of the optimiser on one batch: the long users of the last day and the ordinary ones."""
    job = RankerJob(
        dataset=directory / "data",
        slot="vista",
        model=case.model,
        train=TrainConfig(max_tokens_per_batch=2**40, max_candidates_per_batch=2**40),
        max_uih=case.events,
        days=Days(first=DAYS - 1, valid=DAYS, end=DAYS),
    )
    training = Training(job)
    assert isinstance(training.model, Ranker)
    batch = training.plan(training.dataset.examples(DAYS - 1, DAYS)).batch(0)
    optimiser = FlatAdam(training.model, 0.0)

    def step() -> int:
        output = training.forward(batch)
        total = loss(output, torch.from_numpy(batch.labels_CT)) / len(batch.labels_CT)
        assert output.reconstruction_loss is not None
        total = total + case.model.reconstruction_weight * output.reconstruction_loss
        if not total.isfinite():
            raise StageError(f"the step's loss is {total:g}: it must be finite, so mend the case's model")
        total.backward()  # type: ignore[no-untyped-call]
        optimiser.step(job.train.learning_rate, 1)
        return int(batch.seq_offsets[-1])

    measured = _timed(step)
    meta = CheckpointMeta(
        kind="vista",
        config=case.model,
        spec=training.model.spec,
        space="bench",
        trained_until_us=training.dataset.day_start_us(DAYS),
        max_uih=case.events,
    )
    save(directory / "checkpoint", training.model, meta)
    return measured


def _export(case: Case, directory: Path) -> tuple[int, float, float]:
    """The bucket of a long user, as of the start of the last day."""
    dataset = Dataset.open(directory / "data")
    model, meta = load(directory / "checkpoint")
    assert isinstance(model, Ranker)
    as_of_us = dataset.day_start_us(DAYS - 1)
    epoch = ExportedEpoch(
        space=meta.space, epoch=1, as_of_us=as_of_us, codec="int8", zstd=True, made_by="bench"
    )
    bucket = bucket_of(ORDINARY_USERS, dataset.buckets)

    def export() -> int:
        export_bucket(model, meta.max_uih, dataset, bucket, epoch, directory / "shard")
        parts = dataset.histories(as_of_us, bucket, meta.max_uih, 1)
        return sum(int(part.batch.seq_offsets[-1]) for part in parts)

    return _timed(export)


def verdicts_of(name: str, phases: list[Phase]) -> list[Verdict]:
    """Peak memory and seconds of step and export beside the case's limits."""
    return [
        Verdict(f"{unit} of {name}'s {phase.name}", found, LIMITS[name][unit])
        for phase in phases
        if phase.name != "prepare"
        for unit, found in (("GB", phase.peak_bytes / 1e9), ("s", phase.wall_s))
        if unit in LIMITS[name]
    ]


@click.command(help=__doc__)
@click.argument("case", type=click.Choice(list(CASES)))
@click.option(
    "--events", type=click.IntRange(min=1), help="events of a long user; default: 1,000,000 or 16,000"
)
@click.option("--threads", type=click.IntRange(min=1), default=2, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="file for the JSON beside the screen")
def main(case: str, events: int | None, threads: int, out: Path | None) -> None:
    logging.basicConfig(level=logging.INFO, format=f"%(asctime)s {case}: %(message)s", stream=sys.stderr)
    make, default_events = CASES[case]
    chosen = make(events or default_events, threads)
    with tempfile.TemporaryDirectory() as directory:
        phases = measure(chosen, Path(directory))
    report: dict[str, Any] = {
        "name": case,
        "case": chosen.model_dump(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "phases": [phase.model_dump() for phase in phases],
    }
    text = json.dumps(report, indent=2)
    click.echo(text)
    if out is not None:
        write_whole(out, text)
    judge(verdicts_of(case, phases))


if __name__ == "__main__":
    main()
