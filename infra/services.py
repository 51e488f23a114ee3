"""Servers that are started one after the other, in the order in which they need each other."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, TypeVar

from infra.processes import wait_until
from infra.servers import Server
from vista.errors import BackendError

T = TypeVar("T")
ServiceState = Literal["ready", "starting", "waiting", "ended"]
MARK = "VISTA_SERVERS_OF"
"""Who starts servers below a folder sets this variable to it, so that they can be told from others."""

OTHERS_STOP_S = 60.0


def guards_of(place: Path) -> set[int]:
    """Guards of the servers below a folder. Whoever started them may have been killed: each guard ends after
    all that is below it."""
    mark, found = f"{MARK}={place}".encode(), set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):  # another user's, or it ended meanwhile
                marked = mark in (entry / "environ").read_bytes().split(b"\0")
                if marked and b"infra.guard" in (entry / "cmdline").read_bytes().split(b"\0"):
                    found.add(int(entry.name))
    return found


def wait_for_earlier(place: Path) -> None:
    """Return when no server of an earlier launcher runs below a folder. Raises `BackendError`: some go on."""
    if guards_of(place):
        print("waiting for the servers of a launcher that was killed to end", flush=True)
        if not wait_until(lambda: not guards_of(place), OTHERS_STOP_S):
            raise BackendError(f"servers of {place} go on: end the processes {sorted(guards_of(place))}")


def wall_time() -> str:
    """Now, for a log."""
    return f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"


@dataclass
class Service:
    """A server under its name in the stack, and how it is, since when. `lives` counts its starts.

    `answered_s` is when the newest question that it answered was asked; `excused_s` until when its silence is
    not its own fault. One that `may_wait` need not be ready while there is nothing to do for it: it
    is "waiting" as long as it runs.
    """

    name: str
    server: Server
    address: str
    state: Literal["ready", "starting", "ended"]
    since_s: float
    may_wait: bool = False
    lives: int = 1
    answered_s: float = 0.0
    excused_s: float = 0.0

    @property
    def silent_since_s(self) -> float:
        return max(self.since_s, self.answered_s, self.excused_s)

    @property
    def shown(self) -> ServiceState:
        return "waiting" if self.may_wait and self.state == "starting" else self.state


class Services:
    """What has been started; at the end all of it is stopped, the last one first.

    `changed` is called whenever there is something new.
    """

    def __init__(self, changed: Callable[["Services"], None] = lambda services: None) -> None:
        self.started: list[Service] = []
        self.starting = ""
        self._changed = changed
        self._begun_s = time.monotonic()
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def enter(self, name: str, running: AbstractContextManager[T]) -> T:
        """Start what a launcher starts; then tell of its servers by `ready`. Raises `BackendError`."""
        self.starting = name
        self._changed(self)
        return self._stack.enter_context(running)

    def ready(self, name: str, server: Server, address: str) -> None:
        """A server of what was entered last answers."""
        self.started.append(Service(name, server, address, "ready", time.monotonic()))
        self.say(f"{name} ready: {address}")

    def add(self, name: str, server: Server, address: str) -> None:
        """Start a server that may have to wait until there is something to do; it is not waited for."""
        server.start()
        self._stack.callback(server.stop)
        self.started.append(Service(name, server, address, "starting", time.monotonic(), may_wait=True))
        self.say(f"{name} started: {address}")

    def say(self, text: str) -> None:
        """A line of progress, with the time since the start."""
        self._changed(self)
        print(f"[{time.monotonic() - self._begun_s:5.0f} s] {text}", flush=True)

    def note(self, text: str) -> None:
        """A line about what happened later, perhaps days later, with the time of day."""
        self._changed(self)
        print(f"{wall_time()} {text}", flush=True)
