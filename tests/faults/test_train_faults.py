"""kill -9 of a training's worker and driver, and of an export: what comes out is what would have come out."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from training_data import (
    export_again,
    foundation_in_place,
    prepare_small,
    settings_of,
    small_job,
    two_workers,
)

from vista.config import RefreshConfig
from vista.summary.table import verify_attempt
from vista.train.export_summaries import as_of_times
from vista.train.jobs import Training, usable_epochs
from vista.train.state import Progress, load_best
from vista.train.tracking import Tracked, track
from vista.train.train_foundation import space_of

ROOT = Path(__file__).parents[2]
LIMIT_S = 500.0
AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")

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
    """A process that runs a Ray of its own, and all that it has started."""

    process: "subprocess.Popen[bytes]"

    def descendants(self) -> dict[int, str]:
        """Process id -> command line."""
        parents: dict[int, int] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    status = (entry / "stat").read_text()
                except (FileNotFoundError, ProcessLookupError):
                    continue  # it has ended since
                parents[int(entry.name)] = int(status.rpartition(")")[2].split()[1])
        found = {self.process.pid}
        while more := {pid for pid, parent in parents.items() if parent in found} - found:
            found |= more
        return {pid: _command(pid) for pid in found - {self.process.pid}}

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + LIMIT_S
        while not condition():
            assert self.process.poll() is None, f"the driver ended before {what}: {self.process.returncode}"
            assert time.monotonic() < deadline, f"no {what} within {LIMIT_S:.0f} s"
            time.sleep(0.002)

    def kill(self) -> None:
        """kill -9 of the driver; its Ray ends by itself, but for two agents that only look once a minute."""
        started = {pid: command for pid, command in self.descendants().items() if command}
        self.process.kill()
        self.process.wait()
        agents = {pid for pid, command in started.items() if command.startswith(AGENTS)}
        deadline = time.monotonic() + 60
        while left := [pid for pid, command in started.items() if _command(pid) == command]:
            if set(left) <= agents:
                break
            assert time.monotonic() < deadline, [started[pid] for pid in left]
            time.sleep(0.05)
        for pid in left:
            os.kill(pid, signal.SIGKILL)


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


@contextmanager
def driver(log: Path, *arguments: str, **environment: str) -> Iterator[Driver]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    with log.open("ab") as file:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            env=kept | {"OMP_NUM_THREADS": "1"} | environment,
            stdout=file,
            stderr=file,
        )
        try:
            yield Driver(process)
        finally:
            process.kill()
            process.wait()


@pytest.mark.slow
def test_killed_worker_and_killed_driver(tmp_path: Path) -> None:
    """A worker dies, Ray Train replaces it; then the driver dies, another one goes on. The weights are those
    of an undisturbed training, and MLflow has every step once."""
    job = small_job(prepare_small(tmp_path / "set"), max_candidates_per_batch=64, checkpoint_every_steps=3)
    storage, log = tmp_path / "train", tmp_path / "driver.log"
    tracked = track(settings_of(tmp_path), "faults", "run", {}, {})
    arguments = ("-c", TRAINING, job.model_dump_json(), tracked.url, tracked.run_id, str(storage))

    def checkpoints() -> set[str]:
        return {path.parent.name for path in storage.glob("run/checkpoint_*/progress.json")}

    with driver(log, *arguments) as first:
        first.wait_for(lambda: bool(checkpoints()), "checkpoint")
        worker = next(pid for pid, name in first.descendants().items() if "RayTrainWorker" in name)
        os.kill(worker, signal.SIGKILL)
        newest = max(checkpoints())
        first.wait_for(lambda: max(checkpoints()) > newest, "checkpoint after the worker's death")
        assert not (storage / "state").exists()
        first.kill()
    assert Progress.model_validate_json((storage / "run.curve.json").read_text()).done is False
    with driver(log, *arguments) as second:
        assert second.process.wait(LIMIT_S) == 0, log.read_text()[-4_000:]

    expected, weights = two_workers(job, tmp_path / "undisturbed")
    training = Training(job)
    assert load_best(Path((storage / "state").read_text()), training.model) == expected
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
    total = stage.dataset.buckets * len(as_of_times(stage.dataset))
    warehouse, log = Path(settings.warehouse), tmp_path / "driver.log"
    arguments = ("-m", "vista", "export_summaries", "--recipe", "generated", "--run-id", "killed")
    options = ("--max-uih", "20")
    environment = {"VISTA_HOME": str(settings.home), "VISTA_RUNS": str(settings.runs)}

    def shards() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in warehouse.rglob("bucket-*.json")}

    with driver(log, *arguments, *options, **environment) as first:
        first.wait_for(lambda: len(shards()) > total // 4, "quarter of the shards")
        first.kill()
    before = shards()
    assert len(before) < total, "the export had ended before it was killed"
    assert usable_epochs(settings.catalog_url, space_of(stage)) == []
    with driver(log, *arguments, *options, **environment) as second:
        assert second.process.wait(LIMIT_S) == 0, log.read_text()[-4_000:]
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
        assert found == verify_attempt(again, published.buckets)
