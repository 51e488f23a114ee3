"""What the supervisor of a local stack tells others: a lock that it holds, and a file."""

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, Self

from infra.environment import ROOT, place_of
from infra.processes import wait_until
from infra.servers import write_private
from infra.services import ServiceState
from vista.config import Frozen
from vista.errors import InputError

LOOK_S = 2.0
"""Whoever looks for a supervisor has its lock for a moment."""


class Seen(Frozen):
    """One service. `guard` and `pid` are process ids, None if it has ended."""

    name: str
    state: ServiceState
    address: str
    guard: int | None
    pid: int | None
    restarts: int
    log: Path


class State(Frozen):
    """A stack. `starting` is what is started now; `pages` is what its users want to know, a line each."""

    phase: Literal["starting", "up", "stopping"]
    embedded: bool
    starting: str = ""
    pages: tuple[str, ...] = ()
    services: tuple[Seen, ...] = ()


@dataclass(frozen=True, slots=True)
class Place:
    """The folder of a stack."""

    path: Path

    @classmethod
    def named(cls, environment: Mapping[str, str]) -> Self:
        """That of VISTA_STACK, or the default one."""
        return cls(place_of("VISTA_STACK", ROOT / "var" / "stack", environment))

    @property
    def log(self) -> Path:
        return self.path / "supervisor.log"

    @contextmanager
    def held(self) -> Iterator[None]:
        """Be the supervisor, who has told nothing yet. Raises `InputError` if there is one."""
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / "lock").open("a+") as lock:
            if not wait_until(lambda: _locked(lock), LOOK_S):
                raise InputError(f"{self.path} has a stack that is up: make down")
            self.forget()
            lock.truncate(0)
            lock.write(str(os.getpid()))
            lock.flush()
            yield

    def supervisor(self) -> int | None:
        """The process id of the supervisor, None if there is none."""
        with suppress(FileNotFoundError), (self.path / "lock").open() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(lock.read() or 0) or None
        return None

    def read(self) -> State | None:
        """None if there is no supervisor that has told anything."""
        with suppress(FileNotFoundError):
            return State.model_validate_json(self._file.read_text(encoding="utf-8"))
        return None

    def write(self, state: State) -> None:
        write_private(self._file, state.model_dump_json(indent=2))

    def forget(self) -> None:
        self._file.unlink(missing_ok=True)

    @property
    def _file(self) -> Path:
        return self.path / "state.json"


def _locked(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
