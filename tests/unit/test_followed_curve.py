"""The live curve of a training while MLflow is away: it goes on later, the training at once."""

import logging
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from training_data import settings_of

from infra.processes import wait_until
from vista.errors import BackendError, StageError
from vista.runs import write_whole
from vista.train import compute
from vista.train.mlflow_store import client
from vista.train.state import Point, Progress
from vista.train.tracking import METRICS_PER_BATCH, CurveLog, Tracked, track

AWAY = "the curve in MLflow stands still"


@pytest.fixture
def tracked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tracked:
    monkeypatch.setattr(compute, "LOG_EVERY_S", 0.05)
    return track(settings_of(tmp_path), "unit", "run", {}, {})


def change(tracked: Tracked, statement: str) -> None:
    """Something of MLflow's own tables."""
    with sqlite3.connect(tracked.url.removeprefix("sqlite:///"), timeout=60) as store:
        store.execute(statement)
    store.close()


def stop(tracked: Tracked) -> None:
    """MLflow answers nothing about metrics from now on."""
    change(tracked, "ALTER TABLE metrics RENAME TO hidden")


def start(tracked: Tracked) -> None:
    change(tracked, "ALTER TABLE hidden RENAME TO metrics")


def steps(tracked: Tracked) -> list[int]:
    return sorted(one.step for one in client(tracked.url).get_metric_history(tracked.run_id, "loss"))


def until(condition: Callable[[], bool]) -> None:
    assert wait_until(condition, 60.0)


def points(last: int) -> tuple[Point, ...]:
    return tuple(Point(step=step, values={"loss": 1 / step}) for step in range(1, last + 1))


def keep(curve: Path, last: int) -> None:
    """As rank 0 does."""
    write_whole(curve, Progress(curve=points(last)).model_dump_json())


def test_a_curve_goes_on_after_an_outage(
    tracked: Tracked, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Each is told once."""
    curve = tmp_path / "curve.json"

    def outage(number: int) -> None:
        keep(curve, 2 * number - 1)
        until(lambda: steps(tracked)[-1:] == [2 * number - 1])
        stop(tracked)
        keep(curve, 2 * number)
        until(lambda: caplog.text.count(AWAY) == number)
        start(tracked)
        until(lambda: steps(tracked)[-1:] == [2 * number])

    with caplog.at_level(logging.WARNING, compute.LOG.name), compute._followed(tracked, curve):
        outage(1)
        outage(2)
        keep(curve, 5)
    assert steps(tracked) == [1, 2, 3, 4, 5]
    assert caplog.text.count(AWAY) == 2


def test_what_ended_the_training_is_told_during_an_outage_too(
    tracked: Tracked, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    curve = tmp_path / "curve.json"
    keep(curve, 3)
    stop(tracked)
    with pytest.raises(StageError, match="a worker died"), compute._followed(tracked, curve):
        raise StageError("a worker died")
    assert AWAY in caplog.text
    with pytest.raises(BackendError, match="MLflow"), compute._followed(tracked, curve):
        pass  # a training that ended well is resumed, and then has its whole curve
    start(tracked)
    with compute._followed(tracked, curve):
        pass
    assert steps(tracked) == [1, 2, 3]


def test_what_was_taken_before_an_error_is_not_logged_twice(tracked: Tracked) -> None:
    log, whole = CurveLog(tracked), points(METRICS_PER_BATCH + 2)
    refused = f"NEW.step = {METRICS_PER_BATCH + 1}"
    change(
        tracked,
        f"CREATE TRIGGER t BEFORE INSERT ON metrics WHEN {refused} BEGIN SELECT RAISE(FAIL, 'x'); END",
    )
    with pytest.raises(BackendError):
        log.add(whole)
    change(tracked, "DROP TRIGGER t")
    assert len(steps(tracked)) == METRICS_PER_BATCH
    log.add(whole)
    assert steps(tracked) == [point.step for point in whole]
