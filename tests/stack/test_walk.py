"""A new user's walk over real data: a form in the browser, summaries by SQL, scores, a release taken back.

docs/guide/real-data.md shows what `pytest --log-cli-level INFO` shows here, and the picture.
"""

import json
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from local_stack import Stack
from pages import RUN_S, Airflow, keep_picture

from vista.jobs import STAGES

pytestmark = pytest.mark.timeout(2 * RUN_S)
DAG = "production_refresh"


@pytest.fixture(scope="module")
def stack(new_stack: Callable[[str], Stack]) -> Stack:
    found = new_stack("walk")
    found.make("up")
    return found


def refreshed(stack: Stack, airflow: Airflow, data: Path, **values: str) -> None:
    """A run that is started by the form and watched to its end."""
    started_s = time.monotonic()
    form = airflow.open_form(DAG)
    for name, value in {"recipe": "kuairand", "data_dir": str(data), **values}.items():
        form.locator(f"[name=element_{name}]").fill(value)
    run = airflow.send(form)
    assert airflow.states_at_the_end(DAG, run) == dict.fromkeys((*STAGES, "approve_promotion"), "Success")
    stack.measured[f"refresh of KuaiRand {values}, s"] = round(time.monotonic() - started_s, 1)


def exported(stack: Stack) -> Mapping[tuple[str, int], int]:
    """By space and epoch, how many users the runs say that they exported."""
    paths = stack.runs.glob("*/stages/export_summaries.json")
    reports = [json.loads(path.read_text())["report"] for path in paths]
    return {
        (report["space"], epoch["epoch"]): epoch["rows"] for report in reports for epoch in report["epochs"]
    }


def test_from_a_form_to_a_rollback(stack: Stack, airflow: Airflow, data_dir: Path) -> None:
    data = (data_dir / "kuairand-pure").resolve()
    refreshed(stack, airflow, data)
    keep_picture(airflow.page, "airflow-kuairand")
    refreshed(stack, airflow, data, seeds="8")
    stack.make("status")
    counts = stack.sql("SELECT space, epoch, count(*) AS users FROM usable_summaries GROUP BY space, epoch")
    found = {
        (space, int(epoch)): int(users) for space, epoch, users in map(str.split, counts.splitlines()[2:])
    }
    assert found == exported(stack)
    stack.sql("SELECT user_id, event_time_us, length(value) FROM usable_summaries WHERE user_id < 3")
    assert len(re.findall("^..r-", stack.vista("releases"), re.MULTILINE)) == 2
    asked = ("score", "--user", "7", "--candidates", "1,2,3")
    served = json.loads(stack.vista(*asked))
    stack.vista("rollback", "--dry-run")
    stack.vista("rollback", "--reason", "clicks fell")
    back = json.loads(stack.vista(*asked))
    assert back["release"] != served["release"]
    assert back["scores"].keys() == served["scores"].keys() == {"1", "2", "3"}
    assert "every region serves the release, whole" in stack.vista("verify")
    assert "clicks fell" in stack.vista("audit")


def test_down_leaves_nothing(stack: Stack) -> None:
    processes, ports = stack.processes(), stack.ports()
    stack.make("down")
    assert stack.left_of(processes, ports) == []
