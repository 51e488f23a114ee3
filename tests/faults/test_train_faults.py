"""kill -9 of a training's worker and driver, and of an export: what comes out is what would have come out."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from signal import SIGKILL

import pytest
import torch
from training_data import (
    epoch_times,
    export_again,
    foundation_in_place,
    prepare_small,
    settings_of,
    small_job,
    two_workers,
    untimed,
)

from infra.processes import descendants, guarded, stop, wait_until
from vista.config import RefreshConfig
from vista.errors import StageError
from vista.runs import read_sealed
from vista.summary.table import verify_attempt
from vista.train.jobs import Training, usable_epochs
from vista.train.state import PROGRESS_FILE, Progress, ProgressFile, load_best
from vista.train.tracking import Tracked, track
from vista.train.train_foundation import space_of

ROOT = Path(__file__).parents[2]
LIMIT_S = 500.0
DRIVEN = (f"{sys.executable}\0-c\0", f"{sys.executable}\0-m\0vista\0")

TRAINING = """
import logging, sys
from pathlib import Path
from vista.train.compute import ray_session, train_on_ray
from vista.train.jobs import RankerJob
from vista.train.tracking import Tracked

logging.basicConfig(level=logging.INFO)
job, url, run_id, storage = sys.argv[1:]
with ray_session(2):
    state = train_on_ray(
        RankerJob.model_validate_json(job), Tracked(url, run_id), storage=Path(storage), name="run"
    )
Path(storage, "state").write_text(str(state))
"""


@dataclass(frozen=True)
class Driver:
    """A process with a Ray of its own below a guard, which ends all of it when the process has ended."""

    guard: "subprocess.Popen[bytes]"

    def processes(self) -> dict[int, str]:
        """Process id -> command line, of everything below the guard."""
        return {pid: _command(pid) for pid in descendants(self.guard.pid)}

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        settled = wait_until(lambda: condition() or self.guard.poll() is not None, LIMIT_S, every_s=0.002)
        assert settled, f"no {what} within {LIMIT_S:.0f} s"
        assert self.guard.poll() is None, f"the driver ended before {what}: {self.guard.returncode}"

    def kill(self) -> None:
        """kill -9 of the driver; returns when nothing that it had started is left."""
        os.kill(next(pid for pid, command in self.processes().items() if command.startswith(DRIVEN)), SIGKILL)
        self.guard.wait(LIMIT_S)


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


@contextmanager
def driver(log: Path, *arguments: str, **environment: str) -> Iterator[Driver]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    with log.open("ab") as file:
        command = [sys.executable, *arguments]
        guard = guarded(command, kept | {"OMP_NUM_THREADS": "1"} | environment, log=file)
        try:
            yield Driver(guard)
        finally:
            stop(guard)


def committed(run: Path) -> dict[str, Progress]:
    """The checkpoints that Ray Train would go on from, by their names, which begin with the time."""
    found: dict[str, Progress] = {}
    # deleted, or written in place, just now
    with suppress(FileNotFoundError, json.JSONDecodeError, StageError):
        listed = json.loads((run / "checkpoint_manager_snapshot.json").read_text())["checkpoint_results"]
        for name in (one["checkpoint_dir_name"] for one in listed):
            found[name] = read_sealed(ProgressFile, run / name / PROGRESS_FILE, "").progress
    return found


def checkpoint(training: Driver, run: Path, fits: Callable[[str, Progress], bool], what: str) -> Progress:
    """The first one that fits, once Ray Train would go on from it."""
    found: list[Progress] = []

    def is_there() -> bool:
        found.extend(one for name, one in sorted(committed(run).items()) if fits(name, one))
        return bool(found)

    training.wait_for(is_there, what)
    return found[0]


@pytest.mark.slow
def test_killed_worker_and_killed_driver(tmp_path: Path) -> None:
    """Must-hold 5: a worker dies in the second epoch, and the one in its place goes on from there, since a
    training from scratch would begin with the checkpoint of step 3; then the driver dies, another one goes
    on. The weights are those of an undisturbed training, and MLflow has every step once."""
    job = small_job(
        prepare_small(tmp_path / "set"), max_candidates_per_batch=64, checkpoint_every_steps=3, epochs=3
    )
    storage, log = tmp_path / "train", tmp_path / "driver.log"
    tracked = track(settings_of(tmp_path), "faults", "run", {}, {})
    arguments = ("-c", TRAINING, job.model_dump_json(), tracked.url, tracked.run_id, str(storage))

    with driver(log, *arguments) as first:
        before = checkpoint(first, storage / "run", lambda _, one: one.epoch > 0, "first epoch")
        worker = next(pid for pid, name in first.processes().items() if "RayTrainWorker" in name)
        os.kill(worker, SIGKILL)
        killed = f"checkpoint_{datetime.now():%Y-%m-%d_%H-%M-%S.%f}"  # as Ray names them; both have to report
        after = checkpoint(first, storage / "run", lambda name, _: name > killed, "checkpoint after the kill")
        assert after.global_step > before.global_step > 3
        assert after.epoch > 0
        assert not (storage / "state").exists()
        first.kill()
    curve = storage / "run.curve.json"
    assert Progress.model_validate_json(curve.read_text()).done is False
    curve.write_text("{")  # what it told the driver is lost, too
    with driver(log, *arguments) as second:
        assert second.guard.wait(LIMIT_S) == 0, log.read_text()[-4_000:]

    expected, weights = two_workers(job, tmp_path / "undisturbed")
    training = Training(job)
    found = load_best(Path((storage / "state").read_text()), training.model)
    assert untimed(found) == untimed(expected)
    for name, value in training.model.state_dict().items():
        torch.testing.assert_close(value, weights[name], rtol=0.0, atol=1e-6, msg=name)
    assert _logged(tracked, "loss") == [
        (point.step, point.values["loss"]) for point in expected.curve if "loss" in point.values
    ]


def _logged(tracked: Tracked, metric: str) -> list[tuple[int, float]]:
    from mlflow import MlflowClient

    history = MlflowClient(tracked.url).get_metric_history(tracked.run_id, metric)
    return sorted((one.step, one.value) for one in history)


@pytest.mark.slow
def test_killed_export_goes_on(tmp_path: Path) -> None:
    """Shards that are whole are kept; the epochs are those of an undisturbed export, byte for byte."""
    settings = settings_of(tmp_path)
    config = RefreshConfig(recipe="generated", run_id="killed", max_uih=20)
    stage = foundation_in_place(config, settings)
    total = stage.dataset.buckets * len(epoch_times(stage))
    warehouse, log = Path(settings.warehouse), tmp_path / "driver.log"
    arguments = ("-m", "vista", "export_summaries", "--recipe", "generated", "--run-id", "killed")
    options = ("--max-uih", "20")
    environment = {"VISTA_HOME": str(settings.home), "VISTA_RUNS": str(settings.runs)}

    def shards() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in warehouse.rglob("_bucket-*.json")}

    with driver(log, *arguments, *options, **environment) as first:
        first.wait_for(lambda: len(shards()) > total // 4, "quarter of the shards")
        first.kill()
    before = shards()
    assert len(before) < total, "the export had ended before it was killed"
    assert usable_epochs(settings.catalog_url, space_of(stage)) == []
    with driver(log, *arguments, *options, **environment) as second:
        assert second.guard.wait(LIMIT_S) == 0, log.read_text()[-4_000:]
    after = shards()
    assert len(after) == total
    recomputed = sum(after[path] != before.get(path) for path in after)
    assert recomputed == total - len(before) < 0.8 * total

    report = stage.run.report_of("export_summaries")
    users = stage.dataset.info.users
    for published in usable_epochs(settings.catalog_url, report["space"]):
        found = verify_attempt(Path(published.location), published.buckets)
        again = tmp_path / "again" / str(published.epoch)
        export_again(stage, published, again)
        assert (found.rows, published.rows) == (users, users)
        assert found.digest == verify_attempt(again, published.buckets).digest
    assert report["recomputed"] + report["republished"] == users * len(report["epochs"])
