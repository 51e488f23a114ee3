"""kill -9 at seeded points of a refresh, then RESUME=1: the same figures, whole epochs, no process left.

`make test` has two points, where the most is at stake: a training and an export. `make test-faults` has 20
seeded ones, of all stages (`VISTA_KILL_POINTS`). A point is a stage, a share of the time that it took
uninterrupted, and a victim: the stage's process, which Airflow retries within the run, or that process and
the launcher, which only RESUME=1 repairs.
"""

import os
import random
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from refreshes import RUN_S, Launched, Places, close

from infra.processes import wait_until
from vista.delivery.catalog import open_catalog
from vista.jobs import STAGES
from vista.runs import RunDirectory
from vista.summary.table import verify_attempt

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7_200)]

POINTS_PER_RUN = 4
ATTEMPTS = 3
"""At runs of which no kill came before its stage had ended."""

SEED = 20_251_122
"""One per table of EXPERIMENTS.md."""


@dataclass(frozen=True, slots=True)
class Point:
    stage: str
    share: float
    launcher_too: bool


TWO_POINTS = [
    [Point("train_foundation", 0.7, launcher_too=True), Point("export_summaries", 0.7, launcher_too=False)]
]


def points(count: int) -> list[list[Point]]:
    """`count` points in runs of at most four. Stages ascend within a run; seven points hit every stage."""
    generator, order, runs = random.Random(SEED), list(STAGES), list[list[Point]]()
    while count:
        shuffled = generator.sample(order, min(count, len(order)))
        count -= len(shuffled)
        for start in range(0, len(shuffled), POINTS_PER_RUN):
            stages = sorted(shuffled[start : start + POINTS_PER_RUN], key=order.index)
            runs.append([Point(stage, generator.random(), generator.random() < 0.5) for stage in stages])
    return runs


@dataclass(slots=True)
class Outcome:
    """What a kill did; `hit` is false if the stage had ended before its time came."""

    point: Point
    hit: bool
    repaired_s: float = 0.0


def kill(launched: Launched, point: Point, uninterrupted_s: float) -> bool:
    """Kill the victims of `point`, if the stage still runs when its time has come."""
    appeared = wait_until(
        lambda: launched.stage_process(point.stage) is not None or launched.process.poll() is not None,
        RUN_S,
    )
    pid = launched.stage_process(point.stage)
    assert appeared, f"stage {point.stage} did not start within {RUN_S} s: {launched.shown()}"
    assert pid is not None, launched.shown()
    if wait_until(lambda: launched.stage_process(point.stage) is None, point.share * uninterrupted_s):
        return False
    os.kill(pid, signal.SIGKILL)
    if point.launcher_too:
        launched.process.kill()
    return True


def refresh_with(places: Places, run: list[Point], seconds: dict[str, float]) -> list[Outcome]:
    """One smoke refresh with kills, resumed as often as needed, to its end."""
    outcomes: list[Outcome] = []
    launched = places.start(["DATASET=smoke"])
    try:
        for point in run:
            started_s = time.monotonic()
            outcomes.append(Outcome(point, kill(launched, point, seconds[point.stage])))
            if outcomes[-1].hit and point.launcher_too:
                assert launched.leaves_nothing(), (
                    f"alive after kill -9 of the launcher: {launched.processes()}"
                )
                launched = places.start(["RESUME=1"])
            elif outcomes[-1].hit:
                launched.wait_for(
                    f"stage {point.stage} failed: its process was killed by signal 9: out of memory, unless "
                    "somebody killed it; trying again"
                )
            launched.wait_for(f"{point.stage}: finished in")
            outcomes[-1].repaired_s = time.monotonic() - started_s
        assert launched.process.wait(RUN_S) == 0, launched.shown()
    finally:
        launched.end()
    return outcomes


def stage_seconds(places: Places) -> dict[str, float]:
    """How long each stage of the latest run took."""
    run = RunDirectory(places.latest)
    kept = {stage: run.stage(stage) for stage in STAGES}
    return {stage: file.seconds for stage, file in kept.items() if file}


def whole_epochs(places: Places) -> int:
    """The number of published epochs; each is verified, shard by shard, against what the catalog says."""
    catalog = open_catalog(f"sqlite:///{places.path}/home/catalog.db")
    try:
        space = RunDirectory(places.latest).report_of("export_summaries")["space"]
        epochs = [epoch for epoch in catalog.list_epochs(space) if epoch.published]
        for epoch in epochs:
            found = verify_attempt(Path(epoch.location), epoch.buckets)
            assert (found.rows, found.digest) == (epoch.rows, epoch.digest)
        return len(epochs)
    finally:
        catalog.close()


def table(outcomes: list[Outcome]) -> list[str]:
    lines = ["stage               at     killed              its stage finished after"]
    for one in outcomes:
        killed = ("stage and launcher" if one.point.launcher_too else "stage") if one.hit else "(had ended)"
        lines.append(f"{one.point.stage:19} {one.point.share:4.0%}   {killed:18} {one.repaired_s:6.1f} s")
    return lines


def test_points_are_seeded_and_reach_every_stage() -> None:
    assert points(20) == points(20)
    assert sum(map(len, points(20))) == 20
    assert {point.stage for run in points(20) for point in run} == set(STAGES)
    assert {point.launcher_too for run in points(20) for point in run} == {True, False}


def test_killed_refreshes_end_like_an_uninterrupted_one(
    smoke_refresh: Places, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seconds = stage_seconds(smoke_refresh)
    outcomes: list[Outcome] = []
    wanted = os.environ.get("VISTA_KILL_POINTS")
    for number, run in enumerate(points(int(wanted)) if wanted else TWO_POINTS):
        for attempt in range(ATTEMPTS):
            places = Places(tmp_path / f"run-{number}-{attempt}")
            found = refresh_with(places, run, seconds)
            assert close(smoke_refresh.figures(), places.figures(), 1e-6) == []
            assert whole_epochs(places) == whole_epochs(smoke_refresh)
            if any(one.hit for one in found):
                break
            seconds = stage_seconds(places)  # the machine has become faster since the last measure
        outcomes += found
    with capsys.disabled():
        sys.stdout.write("\n".join(["", *table(outcomes), ""]))
    assert sum(one.hit for one in outcomes) >= len(outcomes) / 2
