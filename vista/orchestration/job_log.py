"""The job's lines in a task's log. Airflow keeps one log per attempt, in a file per worker and triggerer."""

import glob
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from airflow.configuration import conf
from airflow.utils.helpers import log_filename_template_renderer

JOB_LOG = logging.getLogger("vista.orchestration.job")
"""Has the job's lines and nothing else: they are counted by its name."""


class Attempt(Protocol):
    """What a log file's name is made of."""

    @property
    def try_number(self) -> int: ...


def lines_in_task_log(ti: Attempt | None, first_attempt: int) -> int:
    """How many of the job's lines stand in the logs of the attempts from the first to this one.

    The log is its own memory: a position kept elsewhere would be ahead of it or behind it after a kill. Files
    of triggerers on other machines count where Airflow's pages see them, too: in the same folder.
    """
    if ti is None:  # run by `DAG.test`, which has no triggerer
        return 0
    folder = Path(conf.get_mandatory_value("logging", "base_log_folder"))
    name_of = log_filename_template_renderer()
    return sum(
        _is_of_job(line)
        for attempt in range(first_attempt, ti.try_number + 1)
        for file in _triggerers_files(folder / name_of(ti=ti, try_number=attempt))
        for line in file.read_text(encoding="utf-8", errors="replace").split("\n")
    )


def _triggerers_files(task_log: Path) -> Iterator[Path]:
    return task_log.parent.glob(f"{glob.escape(task_log.name)}.trigger.*.log")


def _is_of_job(line: str) -> bool:
    try:
        found = json.loads(line)
    except ValueError:  # cut off by a kill: it is logged again
        return False
    return isinstance(found, dict) and found.get("logger") == JOB_LOG.name
