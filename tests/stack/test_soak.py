"""Nine refreshes, each beside kill -9 of another part of the stack, and thirty checks of the delivery.

VISTA_SOAK_SEED repeats the moments at which the parts were killed; it is printed at the end.
"""

import contextlib
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from dag_runs import DagRun, Dags
from local_stack import Stack

from infra.processes import descendants, memory_bytes, wait_until
from vista.jobs import STAGES

pytestmark = pytest.mark.timeout(4_500)
RAY_WORKER = "ray worker"
KILLED = (
    "airflow-scheduler", "airflow-triggerer", "airflow-dag-processor", RAY_WORKER, "ray", "mlflow", "kafka",
    "redis-west", "metastore",
)  # fmt: skip
CHECKS = 30
MOST_CLEARED = 3
"""Times that a person clears what failed in one run."""

GROWS = 1.5
GROWS_MB = 100
"""A service that holds more than that beyond its first measure loses memory."""

SEED = int(os.environ.get("VISTA_SOAK_SEED", random.randrange(1_000_000)))


@pytest.fixture(scope="module")
def stack(new_stack: Callable[[str], Stack]) -> Stack:
    found = new_stack("soak")
    found.measured["seed"] = SEED
    found.make("up")
    return found


def test_nine_refreshes_and_thirty_checks_survive_kills(stack: Stack) -> None:
    draw = random.Random(SEED)
    dags = Dags.of(stack)
    dags.switch_on("production_refresh", "check_delivery")
    checked, first = 0, dict[str, int]()
    for number, victim in enumerate(KILLED, start=1):
        stage = "train_foundation" if victim == RAY_WORKER else draw.choice([*STAGES][:-1])
        run = dags.start("production_refresh", f"soak-{number}", recipe="smoke", run_id=f"soak-{number}")
        assert wait_until(lambda: run.works_on(stage), 900.0, every_s=0.5), run.tasks()  # noqa: B023
        kill(stack, victim)
        cleared = ends_well(run)
        stack.measured[f"{victim} killed in {stage}: tasks cleared"] = cleared
        one_job_at_a_time(run)
        for _ in range(CHECKS // len(KILLED) if number < len(KILLED) else CHECKS - checked):
            checked += 1
            ends_well(dags.start("check_delivery", f"check-{checked}"))
        assert_ready(stack)
        memory = {name: size(stack, name) for name in stack.services()}
        first = first or memory
    for name, size_mb in memory.items():
        stack.measured[f"{name}, MB, first"], stack.measured[f"{name}, MB, last"] = first[name], size_mb
    grown = {name for name in first if memory[name] > GROWS * first[name] + GROWS_MB}
    assert not grown, (first, memory)


def test_every_summary_is_in_every_region(stack: Stack) -> None:
    assert "every region serves the release, whole" in stack.vista("verify", "--all-bytes")


def test_down_leaves_nothing(stack: Stack) -> None:
    processes, ports = stack.processes(), stack.ports()
    stack.make("down")
    assert stack.left_of(processes, ports) == []


def kill(stack: Stack, victim: str) -> None:
    """kill -9; of Ray's workers that of the job that runs."""
    if victim == RAY_WORKER:
        assert wait_until(lambda: bool(ray_workers(stack)), 300.0)
        os.kill(min(ray_workers(stack)), signal.SIGKILL)
    else:
        pid = stack.services()[victim].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)


def ray_workers(stack: Stack) -> set[int]:
    """Processes that train."""
    guard = stack.services()["ray"].guard
    found = set()
    for pid in descendants(guard) if guard else ():
        with contextlib.suppress(OSError):
            if b"RayTrainWorker" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.add(pid)
    return found


def ends_well(run: DagRun) -> int:
    """A run ends in success, or its tasks fail with a reason and clearing them mends it; how many were."""
    cleared = 0
    for _ in range(MOST_CLEARED):
        if run.follow() == "success":
            return cleared
        for task, state in run.tasks().items():
            if state == "failed":
                assert "failed: " in run.said(task), run.said(task)  # "stage NAME failed: REASON"
        cleared += len(run.clear_failed())
        assert wait_until(lambda: run.state() not in ("failed", ""), 120.0)
    assert run.follow() == "success", run.tasks()
    return cleared


def one_job_at_a_time(run: DagRun) -> None:
    """No stage was submitted twice: a later job of it began after the earlier one had ended badly."""
    ended = dict[str, tuple[int, str]]()
    for job in run.jobs():
        task = job["metadata"]["task"]
        if task in ended:
            end_time, status = ended[task]
            assert status != "SUCCEEDED", (task, status)
            assert job["start_time"] >= end_time
        ended[task] = job["end_time"], job["status"]


def assert_ready(stack: Stack) -> None:
    def ready() -> bool:
        return all(seen.state == "ready" for seen in stack.services().values())

    assert wait_until(ready, 300.0, every_s=0.5), stack.make("status", code=1)


def size(stack: Stack, name: str) -> int:
    guard = stack.services()[name].guard
    return memory_bytes({guard, *descendants(guard)}) // 2**20 if guard else 0
