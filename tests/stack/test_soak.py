"""Nine refreshes, each beside kill -9 of another part of the stack, and thirty checks of the delivery; then
two refreshes that nobody disturbs.

VISTA_SOAK_SEED repeats the moments at which the parts were killed; it is printed at the end.
"""

import contextlib
import os
import random
import re
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
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
UNDISTURBED = 2
"""So that what was killed last, too, has a first whole refresh and another one."""
MOST_CLEARED = 3
"""Times that a person clears what failed in one run."""

EMPTIED = "redis-west"
"""It keeps nothing on disk and is filled from the log: a check that the schedule starts beside that may mend
what is still to come. No other kill loses a summary, so checks find nothing to mend."""

GROWS_MB = 64
"""Between the first whole refresh of a process and the last one. It is twice the most that was seen
(2026-11-30: HiveServer2's heap 34 MB in eight refreshes, PostgreSQL's buffers 27): a service that nobody
kills may lose 6 MB a refresh at most."""

SEED = int(os.environ.get("VISTA_SOAK_SEED", random.randrange(1_000_000)))


@pytest.fixture(scope="module")
def stack(new_stack: Callable[[str], Stack]) -> Stack:
    found = new_stack("soak")
    found.measured["seed"] = SEED
    found.make("up")
    return found


@dataclass(frozen=True, slots=True)
class Use:
    """What a service has below its guard: the memory of its own processes, and how many there are in all."""

    mb: int
    processes: int


Life = tuple[str, int]
"""A service and its process: what is killed begins another life."""


def test_nine_refreshes_and_thirty_checks_survive_kills(stack: Stack) -> None:
    draw = random.Random(SEED)
    dags = Dags.of(stack)
    dags.switch_on("production_refresh", "check_delivery")
    mended, first = 0, dict[Life, tuple[int, Use]]()
    for number, victim in enumerate([*KILLED, *[""] * UNDISTURBED], start=1):
        before = uses(stack).keys()
        run = dags.start("production_refresh", f"soak-{number}", recipe="smoke", run_id=f"soak-{number}")
        done = disturb(stack, run, victim, draw) if victim else "nothing killed"
        cleared = ends_well(run)
        assert victim or not cleared
        one_job_at_a_time(run)
        for check in range(checks_after(number)):
            ends_well(dags.start("check_delivery", f"check-{number}-{check}"))
        assert_ready(stack)
        found = mended_by_checks(stack) - mended
        mended += found
        stack.measured[f"{number}: {done}: tasks cleared"] = cleared
        stack.measured[f"{number}: {done}: found by checks"] = found
        assert victim == EMPTIED or not found, stack.vista("audit")
        now = uses(stack)
        assert victim or now.keys() == before, "something was started again that nobody killed"
        for life in now.keys() & before:
            first.setdefault(life, (number, now[life]))
    assert_nothing_grows(stack, first, number)


def checks_after(number: int) -> int:
    """How many checks follow a refresh; after an undisturbed one, one."""
    share, last = CHECKS // len(KILLED), len(KILLED)
    return share if number < last else CHECKS - share * (last - 1) if number == last else 1


def disturb(stack: Stack, run: DagRun, victim: str, draw: random.Random) -> str:
    """Kill something while a run is in a stage, or beyond it; what was done."""
    stage = "train_foundation" if victim == RAY_WORKER else draw.choice([*STAGES][:-1])
    assert wait_until(lambda: run.works_on(stage), 900.0, every_s=0.5), run.tasks()
    kill(stack, victim)
    return f"{victim} killed in {stage}"


def mended_by_checks(stack: Stack) -> int:
    """Faults that repairs have found until now, by their lines in the audit, which checks by the schedule
    write too. A region that only had to be told once more of a release has none."""
    repairs = re.findall(r"  repair .*\n    .* -> (\d+) findings?$", stack.vista("audit"), re.MULTILINE)
    return sum(map(int, repairs))


def assert_nothing_grows(stack: Stack, first: Mapping[Life, tuple[int, Use]], last: int) -> None:
    """In every process since its first whole refresh, by its number: neither memory nor, by one for each
    refresh since, processes. What comes and goes with Airflow's tasks is waited for; a leak does not go."""

    def grown() -> list[tuple[Life, Use, Use]]:
        now = uses(stack)
        assert {name for name, _ in now.keys() & first.keys()} == stack.services().keys()
        return [
            (life, was, now[life])
            for life, (number, was) in first.items()
            if life in now
            and (
                now[life].mb > was.mb + GROWS_MB
                or now[life].processes - was.processes >= max(1, last - number)
            )
        ]

    settled = wait_until(lambda: not grown(), 120.0, every_s=1.0)
    for (name, pid), use in uses(stack).items():
        _, was = first.get((name, pid), (last, use))
        stack.measured[f"{name}, MB, first"], stack.measured[f"{name}, MB, last"] = was.mb, use.mb
        stack.measured[f"{name}, processes, first"] = was.processes
        stack.measured[f"{name}, processes, last"] = use.processes
    assert settled, grown()


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
    return {pid for pid, command in commands(stack, "ray").items() if b"RayTrainWorker" in command}


def commands(stack: Stack, name: str) -> dict[int, bytes]:
    """Process -> command line, of a service's guard and everything below it; a zombie has none."""
    guard = stack.services()[name].guard
    found = {}
    for pid in {guard, *descendants(guard)} if guard else ():
        with contextlib.suppress(OSError):  # it ended meanwhile
            found[pid] = Path(f"/proc/{pid}/cmdline").read_bytes()
    return found


def uses(stack: Stack) -> dict[Life, Use]:
    """Of each service, when no job runs in Ray any more. Ray's workers come and go with jobs: they count as
    processes, but not as memory."""
    idle = wait_until(
        lambda: not any(b"-m\0vista\0" in one for one in commands(stack, "ray").values()), 300.0
    )
    assert idle, commands(stack, "ray")
    found = {}
    for name, seen in stack.services().items():
        assert seen.pid is not None, stack.make("status", code=1)
        below = commands(stack, name)
        own = [pid for pid, command in below.items() if not command.startswith(b"ray::")]
        found[name, seen.pid] = Use(memory_bytes(own) // 2**20, len(below))
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
