"""Runs `production_refresh` in this process, without Airflow's servers: `infra.run` starts it.

Airflow's own output goes to the log file; the screen gets one line when a stage starts or ends and, between
them, the job's log, indented. What happened is written to the result file for the launcher.
"""

import argparse
import json
import logging
import os
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from vista.runs import write_whole

if TYPE_CHECKING:
    from airflow.sdk import DAG

OWN_LINE = re.compile(
    r"(?:\x1b\S*?m)?(?:\(\w+ pid=\d+[^)]*\))?(?:\x1b\S*?m)?\s?"  # Ray's mark of a worker
    r"\d{4}-\d\d-\d\d [\d:,]+ (?P<logger>vista[\w.]*) (?P<text>.*)"
)
"""A line as `vista.__main__` formats it."""


class Progress:
    """Callbacks of the tasks: tell the screen, and remember the failure for the result file."""

    def __init__(self, screen: TextIO, started_s: float) -> None:
        self.failure: dict[str, str] | None = None
        self._screen = screen
        self._begun_s: dict[str, float] = {}
        self._started_s = started_s

    def say(self, text: str) -> None:
        print(f"[{time.monotonic() - self._started_s:5.0f} s] {text}", file=self._screen, flush=True)

    def begun(self, context: Any) -> None:
        """Airflow calls this at every attempt; a stage's seconds count from its first."""
        stage = context["ti"].task_id
        if stage not in self._begun_s:
            self._begun_s[stage] = time.monotonic()
            self.say(f"{stage}: started")

    def succeeded(self, context: Any) -> None:
        stage = context["ti"].task_id
        seconds = round(time.monotonic() - self._begun_s[stage], 1)
        self.say(f"{stage}: finished in {seconds} s")

    def retried(self, context: Any) -> None:
        self.say(f"{context['exception']}; trying again")

    def failed(self, context: Any) -> None:
        self.failure = {"stage": context["ti"].task_id, "reason": str(context["exception"])}
        self.say(str(context["exception"]))


class Indented(logging.Handler):
    """Shows the platform's own lines among the job's; the log file has all: Ray's, reports, tracebacks."""

    def __init__(self, progress: Progress) -> None:
        super().__init__(logging.INFO)
        self._progress = progress

    def emit(self, record: logging.LogRecord) -> None:
        if own := OWN_LINE.fullmatch(record.getMessage()):
            self._progress.say(f"    {own['logger']}: {own['text']}")


def run_dag(dag: "DAG", conf: dict[str, Any], screen: TextIO, started_s: float) -> dict[str, Any]:
    """Run `dag` to its end; the result: state, and the failure if there was one. `started_s` is the moment of
    `time.monotonic` from which the screen counts."""
    from vista.orchestration.job_log import JOB_LOG  # with Airflow: not before `main` says so
    from vista.orchestration.operator import RayJobOperator

    progress = Progress(screen, started_s)
    for task in (one for one in dag.tasks if isinstance(one, RayJobOperator)):
        task.on_execute_callback = [progress.begun]
        task.on_success_callback = [progress.succeeded]
        task.on_retry_callback = [progress.retried]
        task.on_failure_callback = [progress.failed]
    JOB_LOG.setLevel(logging.INFO)
    JOB_LOG.addHandler(Indented(progress))
    run = dag.test(run_conf=conf)
    return {"state": str(run.state.value), "failure": progress.failure}


def main() -> int:
    """Exit code 0 if the run succeeded, 1 if a stage failed; anything else is a crash: see the log file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--conf", required=True, help="the run's conf as JSON")
    parser.add_argument("--log", required=True, type=Path, help="file for Airflow's own output")
    parser.add_argument("--result", required=True, type=Path, help="file for what happened, JSON")
    parser.add_argument("--started", required=True, type=float, help="when the launcher started (monotonic)")
    arguments = parser.parse_args()
    screen = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    arguments.log.parent.mkdir(parents=True, exist_ok=True)
    with arguments.log.open("a") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())

    # A database whose first migrations were cut off could never be upgraded.
    home = Path(os.environ["AIRFLOW_HOME"])
    if not (made := home / "database-made").exists():
        (home / "airflow.db").unlink(missing_ok=True)

    from airflow.utils.db import upgradedb  # Airflow configures its logging, to the file, when imported

    from dags.production_refresh import dag

    upgradedb()
    made.touch()
    if not sys.stdin.readline():  # the launcher says when Ray is ready; it ended before that
        return 1
    result = run_dag(dag, json.loads(arguments.conf), screen, arguments.started)
    write_whole(arguments.result, json.dumps(result, indent=2))
    return 0 if result["state"] == "success" else 1


if __name__ == "__main__":
    sys.exit(main())
