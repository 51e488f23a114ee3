"""Real refreshes for tests: `infra.run` as a process, in places of its own, watched from outside."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.processes import adopt_orphans, descendants, wait_until
from vista.evaluate.report import read_report

ROOT = Path(__file__).parents[1]
RUN_S = 540.0


@dataclass(frozen=True, slots=True)
class Places:
    """Where a test's runs, stores and screens are."""

    path: Path

    @property
    def latest(self) -> Path:
        return self.path / "runs" / "latest"

    def start(self, arguments: Sequence[str]) -> "Launched":
        """Start the launcher of `make run` with NAME=VALUE arguments."""
        adopt_orphans()  # so that a process that outlives the launcher is found below us
        before = descendants(os.getpid())
        self.path.mkdir(parents=True, exist_ok=True)
        screen = self.path / "screen.txt"
        environment = {
            **os.environ,
            "VISTA_RUNS": str(self.path / "runs"),
            "VISTA_HOME": str(self.path / "home"),
            "OMP_NUM_THREADS": "1",
        }
        with screen.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "infra.run", *arguments],
                cwd=ROOT, env=environment, stdout=file, stderr=file, start_new_session=True,
            )  # fmt: skip
        return Launched(process, screen, before)

    def run(self, *arguments: str) -> str:
        """Run the launcher to its end, which must be a success; what the screen showed."""
        launched = self.start(arguments)
        try:
            assert launched.process.wait(RUN_S) == 0, launched.shown()
        finally:
            launched.end()
        return launched.shown()

    def figures(self) -> dict[str, Any]:
        """The report of the latest run without what differs from run to run: names, times, places."""
        report = read_report(self.latest).model_dump(mode="json")
        for name in ("run_id", "space", "epoch", "release", "mlflow", "install_s", "stages"):
            del report[name]
        return report


@dataclass(frozen=True, slots=True)
class Launched:
    """A running launcher."""

    process: "subprocess.Popen[bytes]"
    screen: Path
    before: set[int]

    def shown(self) -> str:
        return self.screen.read_text(encoding="utf-8")

    def wait_for(self, text: str, timeout_s: float = RUN_S) -> None:
        """Return when the screen shows `text`; the launcher must not end before."""
        seen = wait_until(lambda: text in self.shown() or self.process.poll() is not None, timeout_s)
        assert seen, f"{text!r} not shown within {timeout_s} s:\n{self.shown()}"
        assert text in self.shown(), self.shown()

    def processes(self) -> set[int]:
        """What lives of this launch: everything below us that was not there before it."""
        left = descendants(os.getpid()) - self.before
        for pid in left:
            if pid != self.process.pid:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)
        self.process.poll()
        return descendants(os.getpid()) - self.before

    def stage_process(self, stage: str) -> int | None:
        """The process that runs `python -m vista <stage>`, if there is one."""
        for pid in descendants(os.getpid()) - self.before:
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                if words[1:4] == [b"-m", b"vista", stage.encode()]:
                    return pid
        return None

    def leaves_nothing(self, timeout_s: float = 60.0) -> bool:
        """Whether every process of the launch is gone within the time."""
        return wait_until(lambda: not self.processes(), timeout_s)

    def end(self) -> None:
        """Interrupt a launcher that still runs, and wait until nothing of it lives."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        gone = self.leaves_nothing()
        described = {pid: _command(pid) for pid in self.processes()}
        assert gone, f"processes outlived the launcher: {described}"


def _command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return "ended"


def close(first: Any, second: Any, tolerance: float) -> list[str]:
    """Where two JSON values differ: paths; numbers may differ by `tolerance`."""
    if isinstance(first, dict) and isinstance(second, dict) and first.keys() == second.keys():
        return [f"{key}/{path}" for key in first for path in close(first[key], second[key], tolerance)]
    if isinstance(first, list) and isinstance(second, list) and len(first) == len(second):
        return [f"{n}/{path}" for n, pair in enumerate(zip(first, second, strict=True))
                for path in close(*pair, tolerance)]  # fmt: skip
    if isinstance(first, int | float) and isinstance(second, int | float):
        return [] if abs(first - second) <= tolerance else [f"{first} against {second}"]
    return [] if first == second else [f"{first!r} against {second!r}"]
