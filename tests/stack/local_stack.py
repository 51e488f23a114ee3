"""A local stack of one's own, by the commands that `make up`, `status`, `logs` and `down` run.

What they answer is logged: `pytest --log-cli-level INFO` shows it.
"""

import json
import logging
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sockets import listening

from infra.kept_secrets import SECRETS
from infra.ports import LAST_PORT, is_free
from infra.processes import alive, descendants, wait_until
from infra.services import guards_of
from infra.stack.layout import AIRFLOW_CLI, ENVIRONMENT
from infra.stack.state import Place, Seen

LOG = logging.getLogger(__name__)
ROOT = Path(__file__).parents[2]
LOGS = (".log", ".out", ".err")
MOST_MB = 8 * 1024
"""That a stack may take."""
HEAL_S = 300.0
"""A server starts in seconds on an idle machine; only the condition ends a wait."""


@dataclass
class Stack:
    """One place, and the commands on it. `measured` is printed at the end: what was seen, in which unit."""

    path: Path
    measured: dict[str, float] = field(default_factory=dict)

    @property
    def runs(self) -> Path:
        return self.path.with_name("runs")

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "VISTA_STACK": str(self.path), "VISTA_RUNS": str(self.runs)}

    def make(self, *arguments: str, code: int = 0) -> str:
        """What a command of `make` prints, errors too; it must end with that exit code."""
        return _said([sys.executable, "-m", "infra.stack", *arguments], self.environment, code)

    def sql(self, query: str, code: int = 0) -> str:
        """What `make sql` prints."""
        return _said([sys.executable, "-m", "infra.sql"], {**self.environment, "QUERY": query}, code)

    def vista(self, *arguments: str) -> str:
        """What `python -m vista` answers in a shell with the stack's environment."""
        script = ["bash", "-c", 'source "$0"; exec "$@"', str(self.path / ENVIRONMENT)]
        command = [*script, sys.executable, "-m", "vista", *arguments]
        return _said(command, os.environ, 0, errors=subprocess.PIPE)

    def airflow(self, *arguments: str) -> str:
        """What Airflow's own command line answers."""
        return _said([str(self.path / AIRFLOW_CLI), *arguments], os.environ, 0, errors=subprocess.PIPE)

    def services(self) -> dict[str, Seen]:
        state = Place(self.path).read()
        assert state is not None
        return {service.name: service for service in state.services}

    def supervisor(self) -> int | None:
        return Place(self.path).supervisor()

    def processes(self) -> set[int]:
        """All of the stack's, the supervisor too."""
        pid = self.supervisor()
        assert pid is not None
        return {pid, *descendants(pid)}

    def ports(self) -> set[int]:
        """On which it listens and which it keeps. What a program takes from Linux' own range may be another's
        a moment after it ended."""
        return {port for _, port in listening(self.processes()) if port <= LAST_PORT}

    def logs(self) -> dict[str, str]:
        """What all logs say: services, tasks in Airflow, and Ray's session, which its head has elsewhere."""
        own = [
            Path(folder, name)
            for folder, _, names in os.walk(self.path)  # servers delete folders meanwhile
            for name in names
            if any(suffix in name for suffix in LOGS)
        ]
        session = list(self._ray_scratch().glob("session_2*/logs/**/*"))
        assert any(path.name == "raylet.out" for path in session)
        return {str(path): path.read_text(errors="replace") for path in own + session if path.is_file()}

    def _ray_scratch(self) -> Path:
        """Where Ray's head keeps its session: its guard is told, which deletes it."""
        guard = self.services()["ray"].guard
        words = Path(f"/proc/{guard}/cmdline").read_text().split("\0")
        return Path(words[words.index("--scratch") + 1])

    def secrets_in(self, texts: Mapping[str, str]) -> list[tuple[str, str]]:
        """Where a secret stands, and which one."""
        secrets = json.loads((self.path / SECRETS).read_text())
        assert secrets
        return [
            (place, name) for place, text in texts.items() for name, one in secrets.items() if one in text
        ]

    def left_of(self, processes: set[int], ports: set[int]) -> list[str]:
        """What of them is still there, or has been started since and is guarded."""
        guards = [f"guard {pid}" for pid in guards_of(self.path)]
        running = [f"process {pid}" for pid in processes if alive(pid)]
        return guards + running + [f"port {port}" for port in ports if not is_free(port)]

    def clear_away(self) -> None:
        self.make("down")
        assert not guards_of(self.path)
        shutil.rmtree(self.path.parent)


def _said(
    command: list[str], environment: Mapping[str, str], code: int, errors: int = subprocess.STDOUT
) -> str:
    done = subprocess.run(
        command, cwd=ROOT, env=environment, check=False, text=True, stdout=subprocess.PIPE, stderr=errors
    )
    assert done.returncode == code, done.stderr or done.stdout
    LOG.info("%s\n%s", shlex.join(command[1:]), done.stdout)
    return done.stdout


def heals(stack: Stack, name: str, restarts: int) -> bool:
    """Whether a service has been started again so often and is ready, before the time is over."""

    def healed() -> bool:
        seen = stack.services()[name]
        return seen.restarts >= restarts and seen.state == "ready"

    return wait_until(healed, HEAL_S, every_s=0.2)


def killed_and_healed(stack: Stack, name: str) -> tuple[Seen, Seen]:
    """kill -9 of a service's process; how it was before, and is when it is ready again. Keeps the seconds."""
    before = stack.services()[name]
    assert before.pid is not None
    started_s = time.monotonic()
    os.kill(before.pid, signal.SIGKILL)
    assert heals(stack, name, before.restarts + 1), stack.make("status", code=1)
    stack.measured[f"{name} heals, s"] = round(time.monotonic() - started_s, 1)
    return before, stack.services()[name]
