"""A stage of a run is done by one process at a time."""

import logging
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from delivery_samples import keep_report

from infra.processes import wait_until
from vista.config import RefreshConfig, Settings
from vista.jobs import run_stage
from vista.runs import RunDirectory, alone

CONFIG = RefreshConfig(recipe="smoke", run_id="r")
WAIT_S = 60.0


def test_a_second_job_of_a_run_waits_and_returns_the_report_of_the_first(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    """It deleted what the first one was writing: a backfill and the schedule may both make one day."""
    run = RunDirectory.open(settings.runs, CONFIG)
    with ThreadPoolExecutor() as threads, caplog.at_level(logging.INFO):
        with alone(run.path / "lock"):
            second = threads.submit(run_stage, "prepare", CONFIG, settings)
            waits = f"waiting for another process, which holds {run.path}/lock"
            assert wait_until(lambda: waits in caplog.text, WAIT_S)
            assert not run.data.exists()
            keep_report(run, "prepare", {"of": "the first"})
        assert second.result(WAIT_S) == {"of": "the first"}
    assert not run.data.exists()
    assert not (run.path / "lock").exists()


def test_a_process_that_was_killed_in_a_stage_holds_up_nobody(settings: Settings) -> None:
    run = RunDirectory.open(settings.runs, CONFIG)
    lock = run.path / "lock"
    inside = "with runs.alone(pathlib.Path(sys.argv[1])): print(flush=True); input()"
    hold = f"import pathlib, sys; from vista import runs\n{inside}"
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        holder.kill()
    assert lock.exists()
    keep_report(run, "prepare", {"of": "the first"})
    assert run_stage("prepare", CONFIG, settings) == {"of": "the first"}
    assert not lock.exists()
