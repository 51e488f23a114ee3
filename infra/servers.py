"""What every real server of the tests and of the local stack shares.

A server has a folder of its own, kept ports, a log, and no life of its own: it runs below a guard, which ends
it when it is stopped and when whoever started it dies. It listens on loopback only. Passwords are in files
that only their owner can read (`infra.kept_secrets`), and never in arguments or logs.
"""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from xml.sax.saxutils import escape

from infra.ports import free_block, is_free
from infra.processes import children, guarded, started_ticks, stop, wait_until
from vista.errors import BackendError

CONF = Path(__file__).parent / "conf"
HOST = "127.0.0.1"
LOG_LINES = 15
CALL_S = 120.0  # initdb takes 3 s on two idle cores

PACKAGES = {
    "chromium": "chromium",
    "java": "openjdk-17-jdk-headless",
    "javac": "openjdk-17-jdk-headless",
    "mvn": "maven",
    "openssl": "openssl",
    "postgres": "postgresql",
    "initdb": "postgresql",
    "psql": "postgresql",
    "setpriv": "util-linux",
    "prometheus": "prometheus",
    "promtool": "prometheus",
    "redis-cli": "redis-server",
    "redis-server": "redis-server",
}
"""Program -> the Debian package that holds it."""


@dataclass
class Server:
    """One server process. `answers` makes a real request of the server's own protocol.

    `scratch` is a folder that is made at the start and deleted at the end; Ray's logs in it are kept.
    `started_s` is the time of the last start, in seconds since 1970.
    """

    name: str
    place: Path
    command: Sequence[str] = field(repr=False)
    answers: Callable[[], bool] = field(repr=False)
    start_s: float
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    stop_signal: int = signal.SIGTERM
    scratch: Path | None = None
    started_s: float = field(default=0.0, init=False)
    _guard: "subprocess.Popen[bytes] | None" = field(default=None, init=False)

    @property
    def log(self) -> Path:
        return self.place / f"{self.name}.log"

    def start(self) -> None:
        """Start the process, from a thread that lives as long as it must; `wait` before using it."""
        environment = {**os.environ, **self.environment}
        self.started_s = time.time()
        if self.scratch:
            private_folder(self.scratch)
        with self.log.open("ab") as log:
            self._guard = guarded(
                self.command, environment, log=log, scratch=self.scratch, logs=self.place / "ray-logs",
                stop_signal=self.stop_signal,
            )  # fmt: skip

    def wait(self) -> None:
        """Return when it answers. Raises `BackendError` with the end of its log if it does not."""
        if wait_until(lambda: self.ended or self.answers(), self.start_s) and not self.ended:
            return
        happened = "ended" if self.ended else f"did not answer within {self.start_s:.0f} s"
        self.stop()
        last = "\n".join(self.log.read_text(errors="replace").splitlines()[-LOG_LINES:])
        raise BackendError(f"{self.name} {happened}; {self.log} ends with:\n{last}")

    def ask_to_stop(self) -> None:
        """What `stop` begins with: several servers can stop at once."""
        if self._guard:
            self._guard.terminate()

    def stop(self) -> None:
        """Ask it to end, kill it if it does not; returns when it is gone."""
        if self._guard:
            stop(self._guard)

    def kill(self) -> None:
        """kill -9. Returns when it is gone; `start` and `wait` bring it back with what was on disk."""
        assert self._guard is not None
        assert self.pid is not None
        os.kill(self.pid, signal.SIGKILL)
        self._guard.wait()

    @property
    def pid(self) -> int | None:
        """The server's own process, the first below its guard; None if there is none now."""
        return self.pid_among(children())

    def pid_among(self, below: Mapping[int, list[int]]) -> int | None:
        """The same, of what `children` has found: looking at every process is not cheap."""
        with suppress(KeyError, OSError):  # it ends just now
            return min(below[self.guard_pid], key=started_ticks)
        return None

    @property
    def guard_pid(self) -> int:
        """The guard's process, above everything that the server starts; it must have been started."""
        assert self._guard is not None
        return self._guard.pid

    @property
    def ended(self) -> bool:
        return self._guard is None or self._guard.poll() is not None


@contextmanager
def running(servers: Sequence[Server]) -> Iterator[None]:
    """The servers, started side by side and ready; at the end all are stopped, side by side too."""
    try:
        for server in servers:
            server.start()
        for server in servers:
            server.wait()
        yield
    finally:
        for server in servers:
            server.ask_to_stop()
        for server in servers:
            server.stop()


def private_folder(path: Path) -> Path:
    """A folder that only its owner may enter, since some servers write passwords into readable files."""
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(0o700)
    return path.absolute()


def kept_ports(place: Path, count: int) -> list[int]:
    """Free ports, kept in the folder: what is started again has its old addresses.

    None of them is kept by a server beside it, which may be stopped now. Raises `BackendError` if a kept one
    is in use.
    """
    kept = place / "ports.json"
    if not kept.exists():
        first = free_block(count, _kept_beside(place))
        write_private(kept, json.dumps([*range(first, first + count)]))
    ports: list[int] = json.loads(kept.read_text())
    for port in ports:
        if not is_free(port):
            raise BackendError(f"port {port} of {place} is in use: stop what uses it, or delete {kept}")
    return ports


def _kept_beside(place: Path) -> set[int]:
    found: set[int] = set()
    for kept in place.parent.glob("*/ports.json"):
        with suppress(OSError):  # deleted just now
            found.update(json.loads(kept.read_text()))
    return found


def write_private(path: Path, text: str) -> None:
    """Write a file, whole or not at all, that only its owner may read."""
    part = path.with_name(f"{path.name}.part")
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    part.replace(path)


def filled(template: str, **values: object) -> str:
    """A template of `infra/conf` with its values."""
    texts = {name: str(value) for name, value in values.items()}
    if template.endswith(".xml"):
        texts = {name: escape(text) for name, text in texts.items()}
    return Template((CONF / template).read_text(encoding="utf-8")).substitute(texts)


def program(name: str) -> str:
    """The path of a program. Raises `BackendError`: what to install."""
    # Debian keeps the programs of PostgreSQL's server out of PATH
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    path = shutil.which(name, path=os.pathsep.join([*map(str, versions[-1:]), os.environ.get("PATH", "")]))
    if path is None:
        raise BackendError(
            f"{name} is not installed: make infra, or as root: apt-get install {PACKAGES[name]}"
        )
    return path


def call(
    command: Sequence[str], what: str, *, environment: Mapping[str, str] | None = None, stdin: str = ""
) -> str:
    """Run a program of a server to its end; what it printed. Raises `BackendError` with what it said."""
    try:
        done = subprocess.run(
            command, env={**os.environ, **(environment or {})}, input=stdin, capture_output=True, text=True,
            check=False, timeout=CALL_S,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise BackendError(f"{what} was not done within {CALL_S:.0f} s") from error
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip()
        raise BackendError(f"{what} failed with exit code {done.returncode}: {said}")
    return done.stdout
