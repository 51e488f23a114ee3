"""The directory of one run: its configuration, one report per stage, and what the stages hand on.

runs/<run_id>/config.json          the RefreshConfig; a run never changes it
runs/<run_id>/stages/<stage>.json  {"seconds": ..., "report": {...}}, written whole or not at all, and sealed
runs/<run_id>/data/                events and examples (vista.data)
runs/<run_id>/train/<model>/       checkpoints (vista.train)
runs/<run_id>/report.json, .html   written by the last stage
runs/<run_id>/lock                 held by the process that does a stage, and left by one that was killed
runs/latest                        link to the newest run
"""

import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

from pydantic import ValidationError

from vista.config import Frozen, RefreshConfig, differences
from vista.errors import InputError, StageError, VistaError

LOG = logging.getLogger(__name__)

LATEST = "latest"
SEAL = "sha256"
"""Key of a sealed file that holds the digest of the others."""

Value = TypeVar("Value", bound=Frozen)


def write_whole(path: Path, text: str) -> None:
    """Write a file whole or not at all: readers see the old content or the new, also after a crash."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    with unfinished.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


@contextmanager
def alone(lock: Path) -> Iterator[None]:
    """One process at a time is inside; `lock` is a file in a directory that exists, there only meanwhile.

    The kernel releases it when its holder is killed. Whoever is inside must not enter again.
    """
    with _locked(lock):
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)  # a person may have cleared the folder meanwhile


def _locked(lock: Path) -> IO[str]:
    """The file, held; not one that its holder deleted while this process waited for it."""
    while True:
        file = lock.open("w")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            LOG.info("waiting for another process, which holds %s", lock)
            fcntl.flock(file, fcntl.LOCK_EX)
        with suppress(FileNotFoundError):
            if os.path.samefile(lock, file.fileno()):
                return file
        file.close()


@contextmanager
def reading(
    path: Path, remedy: str, *signs: type[Exception], raising: type[VistaError] = StageError
) -> Iterator[None]:
    """Around the reading of a file that the platform wrote: if it is missing or damaged, an error that names
    it, what is wrong and the remedy.

    `signs` are what a library raises for damage beside OSError and ValueError.
    """
    damage: tuple[type[Exception], ...] = (OSError, ValueError, *signs)
    try:
        yield
    except VistaError:
        raise
    except damage as error:
        raise raising(f"{path} cannot be read ({_why(error)}): {remedy}") from error


def read_as(kind: type[Value], path: Path, remedy: str, *, raising: type[VistaError] = StageError) -> Value:
    """A value that was written as JSON. Raises as `reading` does."""
    with reading(path, remedy, raising=raising):
        return kind.model_validate_json(path.read_bytes())


def drop_if_damaged(left: Path, check: Callable[[Path], object]) -> bool:
    """Delete a file or folder in which `check` finds damage (a `StageError`), to be made anew.

    Returns whether it did. A disk that does not answer is no damage: that raises.
    """
    try:
        check(left)
    except StageError as damage:
        if isinstance(damage.__cause__, OSError) and not isinstance(damage.__cause__, FileNotFoundError):
            raise
        LOG.warning("%s is deleted, to be made anew: %s", left, damage)
        shutil.rmtree(left) if left.is_dir() else left.unlink()
        return True
    return False


def write_sealed(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON whole, with a digest of its content: for files on which a whole run rests."""
    write_whole(path, json.dumps({**content, SEAL: _seal(content)}, indent=2))


def read_sealed(
    kind: type[Value], path: Path, remedy: str, *, raising: type[VistaError] = StageError
) -> Value:
    """A value that `write_sealed` wrote, and that nothing has changed since. Raises as `reading` does."""
    with reading(path, remedy, raising=raising):
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict) or content.pop(SEAL, None) != _seal(content):
            raise ValueError(f"its content is not that of its {SEAL}")
        return kind.model_validate(content)


def _seal(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _why(error: Exception) -> str:
    """One line."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return ": ".join([*map(str, first["loc"]), first["msg"]])
    lines = [line.strip() for line in str(error).splitlines()] or [type(error).__name__]
    return " ".join(lines[:2])  # torch's first line only introduces


class StageFile(Frozen):
    """What is kept of a finished stage."""

    seconds: float
    report: dict[str, Any]


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """One run's files. `path` exists; everything below it is made when first written."""

    path: Path

    @classmethod
    def open(cls, runs: Path, config: RefreshConfig) -> "RunDirectory":
        """Make or re-open the directory of `config.run_id`.

        Raises `InputError` if the id is empty or not a plain name, or if the run was started with other
        values, `StageError` if what it was started with cannot be read.
        """
        if config.run_id == LATEST:
            raise InputError(f"run_id {LATEST!r} is the link to the newest run: use another name")
        run = cls.named(runs, config.run_id)
        if not run.config_file.exists():
            write_whole(run.config_file, config.model_dump_json(indent=2))
        elif changed := differences(run.config(), config.model_dump()):
            raise InputError(
                f"run {config.run_id!r} was started with other values ({changed}; {run.config_file}): "
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
    def config_file(self) -> Path:
        return self.path / "config.json"

    def config(self) -> RefreshConfig:
        """What the run was started with. Raises `StageError` if that cannot be read."""
        return read_as(RefreshConfig, self.config_file, "restore it, or start a new run")

    @property
    def data(self) -> Path:
        return self.path / "data"

    def training(self, model: str) -> Path:
        """Where the checkpoints of one model's training live."""
        return self.path / "train" / model

    def stage(self, name: str) -> StageFile | None:
        """What a finished stage left, or None. Raises `StageError` if it is damaged."""
        path = self._stage_file(name)
        if not path.exists():
            return None
        return read_sealed(
            StageFile, path, f"delete it, then `make run RESUME=1` does the stage {name} of the run again"
        )

    def report_of(self, name: str) -> dict[str, Any]:
        """The report of a finished stage. Raises `InputError` if the stage has not finished."""
        kept = self.stage(name)
        if kept is None:
            raise InputError(f"run {self.path.name!r} has no report of stage {name!r}: run that stage first")
        return kept.report

    def keep_stage_report(self, name: str, report: Frozen, *, seconds: float) -> None:
        """Mark a stage as done."""
        content = {"seconds": round(seconds, 3), "report": report.model_dump(mode="json")}
        write_sealed(self._stage_file(name), content)

    def _stage_file(self, name: str) -> Path:
        return self.path / "stages" / f"{name}.json"

    def make_latest(self) -> None:
        """Make `latest` beside the run a link to it, in one step."""
        unfinished = self.path.parent / f".latest-{uuid.uuid4().hex}"
        unfinished.symlink_to(self.path.name)
        unfinished.replace(self.path.parent / LATEST)
