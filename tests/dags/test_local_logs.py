"""The log page of a task that waits, where all of Airflow runs on one machine."""

from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
from airflow.utils.log.file_task_handler import FileTaskHandler
from airflow.utils.state import TaskInstanceState

from infra.airflow import LOGGING


def test_a_waiting_tasks_log_is_read_from_its_files_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, _, name = LOGGING.rpartition(".")
    kind = getattr(import_module(module), name)["handlers"]["task"]["class"]
    module, _, name = kind.rpartition(".")
    handler = getattr(import_module(module), name)(str(tmp_path))
    (tmp_path / "attempt=1.log").write_text("what the stage says\n")
    monkeypatch.setattr(FileTaskHandler, "_render_filename", lambda *_: "attempt=1.log")
    waiting = SimpleNamespace(
        state=TaskInstanceState.DEFERRED, try_number=1, hostname="nowhere.invalid", triggerer_job=None,
        executor=None,
    )  # fmt: skip
    said = [line.event for line in handler.read(waiting, 1)[0]]
    assert said == [
        "::group::Log message source details", str(tmp_path / "attempt=1.log"), "::endgroup::",
        "what the stage says",
    ]  # fmt: skip
