"""The directory of one run: its configuration, one report per stage, and what the stages hand on.

runs/<run_id>/config.json          the RefreshConfig; a run never changes it
runs/<run_id>/stages/<stage>.json  {"seconds": ..., "report": {...}}, written whole or not at all
runs/<run_id>/data/                events and examples (vista.data)
runs/<run_id>/train/<model>/       checkpoints (vista.train)
runs/<run_id>/report.json, .html   written by the last stage
runs/latest                        link to the newest run
"""

import json
import os
import re
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vista.config import Frozen, RefreshConfig
from vista.errors import InputError, StageError

LATEST = "latest"


def write_whole(path: Path, text: str) -> None:
    """Write a file whole or not at all: readers see the old content or the new, also after a crash."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    with unfinished.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """One run's files. `path` exists; everything below it is made when first written."""

    path: Path

    @classmethod
    def open(cls, runs: Path, config: RefreshConfig) -> "RunDirectory":
        """Make or re-open the directory of `config.run_id`.

        Raises `InputError` if the id is empty or not a plain name, or if the run was started with other
        values.
        """
        if config.run_id == LATEST:
            raise InputError(f"run_id {LATEST!r} is the link to the newest run: use another name")
        run = cls.named(runs, config.run_id)
        text = config.model_dump_json(indent=2)
        kept = run.path / "config.json"
        if not kept.exists():
            write_whole(kept, text)
        elif kept.read_text(encoding="utf-8") != text:
            raise InputError(
                f"run {config.run_id!r} was started with other values ({kept}): "
                "resume it with those, or use a new run_id"
            )
        return run

    @classmethod
    def named(cls, runs: Path, run_id: str) -> "RunDirectory":
        """The directory of a run, whether it exists or not. Raises `InputError` for an id that is no name."""
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", run_id):
            raise InputError(f"run_id {run_id!r}: use letters, digits, '.', '_' and '-', at most 128 of them")
        return cls(runs / run_id)

    @property
    def data(self) -> Path:
        return self.path / "data"

    def training(self, model: str) -> Path:
        """Where the checkpoints of one model's training live."""
        return self.path / "train" / model

    def stage(self, name: str) -> dict[str, Any] | None:
        """`{"seconds", "report"}` of a finished stage, or None. Raises `StageError` if it is damaged."""
        path = self.path / "stages" / f"{name}.json"
        if not path.exists():
            return None
        try:
            loaded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise StageError(f"{path} is damaged ({error}): restore it, or start a new run") from error
        return loaded

    def report_of(self, name: str) -> dict[str, Any]:
        """The report of a finished stage. Raises `InputError` if the stage has not finished."""
        kept = self.stage(name)
        if kept is None:
            raise InputError(f"run {self.path.name!r} has no report of stage {name!r}: run that stage first")
        report: dict[str, Any] = kept["report"]
        return report

    def keep_stage_report(self, name: str, report: Frozen, *, seconds: float) -> None:
        """Mark a stage as done."""
        content = {"seconds": round(seconds, 3), "report": report.model_dump(mode="json")}
        write_whole(self.path / "stages" / f"{name}.json", json.dumps(content, indent=2))

    def make_latest(self) -> None:
        """Make `latest` beside the run a link to it, in one step."""
        unfinished = self.path.parent / f".latest-{uuid.uuid4().hex}"
        unfinished.symlink_to(self.path.name)
        unfinished.replace(self.path.parent / LATEST)
