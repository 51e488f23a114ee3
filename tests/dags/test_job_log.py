"""How many of a job's lines a task's log holds already, in the files that Airflow writes."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from vista.orchestration.job_log import JOB_LOG, lines_in_task_log


@dataclass(frozen=True)
class Task:
    """What Airflow's template of a log file's name reads."""

    dag_id: str = "d"
    run_id: str = "manual__2026-01-02T03:04:05+00:00[1]"
    task_id: str = "t"
    map_index: int = -1
    try_number: int = 3


def test_lines_of_every_triggerer_since_the_submitting_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__LOGGING__BASE_LOG_FOLDER", str(tmp_path))
    task = Task()
    folder = tmp_path / f"dag_id=d/run_id={task.run_id}/task_id=t"
    folder.mkdir(parents=True)
    job, other = (json.dumps({"event": "x", "logger": name}) + "\n" for name in (JOB_LOG.name, "task"))
    (folder / "attempt=1.log.trigger.1.log").write_text(
        job * 100
    )  # another job's, before the task was cleared
    (folder / "attempt=2.log.trigger.1.log").write_text(other + job * 3 + "7\n" + other)
    (folder / "attempt=2.log.trigger.2.log").write_text(job * 2 + job[:20])  # killed while it wrote
    (folder / "attempt=3.log.trigger.2.log").write_text(job)
    (folder / "attempt=3.log").write_text(job * 100)  # the worker's
    assert lines_in_task_log(task, first_attempt=2) == 6
    assert lines_in_task_log(task, first_attempt=3) == 1
    assert lines_in_task_log(None, first_attempt=1) == 0
