"""Processes that end with whoever started them. Linux only: prctl(2) and /proc."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
STOP_S = 30.0


def die_with(parent: int, number: int = signal.SIGTERM) -> None:
    """Get the signal when `parent`, the process that started this one, ends however it ends."""
    _prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:  # it ended before the call
        raise SystemExit(1)


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent ends, so that none is lost from sight."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def children() -> dict[int, list[int]]:
    """The processes right below each process now, zombies too."""
    found: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # it ended meanwhile
                after_name = (entry / "stat").read_text().rpartition(")")[2].split()
                found.setdefault(int(after_name[1]), []).append(int(entry.name))
    return found


def children_of(pids: Iterable[int]) -> dict[int, list[int]]:
    """The same of some processes of one thread each: looking at all processes is not cheap."""
    try:
        below = {pid: Path(f"/proc/{pid}/task/{pid}/children").read_text().split() for pid in pids}
        return {pid: [*map(int, found)] for pid, found in below.items() if found}
    except OSError:  # one of them ended just now, or the kernel has no such list
        return children()


def descendants(pid: int) -> set[int]:
    """All processes below `pid` now, zombies too."""
    below_each = children()
    found: set[int] = set()
    waiting = [pid]
    while waiting:
        below = below_each.get(waiting.pop(), [])
        found.update(below)
        waiting.extend(below)
    return found


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def started_ticks(pid: int) -> int:
    """When a process started, on the machine's clock; with its id it names a process for ever."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def memory_bytes(pids: Iterable[int]) -> int:
    """Memory of the processes together; what several of them share counts once."""
    found = 0
    for pid in pids:
        with contextlib.suppress(OSError):  # it ended meanwhile
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
            found += 1024 * sum(
                int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")
            )
    return found


def kill_all(left: Callable[[], set[int]]) -> None:
    """kill -9 of what `left` finds below this process, again and again until it finds nothing."""
    while found := left():
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in found:
            with contextlib.suppress(ChildProcessError):  # its own parent's to reap
                os.waitpid(pid, os.WNOHANG)
        wait_until(lambda: not left(), 0.2, every_s=0.02)


def wait_until(condition: Callable[[], bool], timeout_s: float, every_s: float = 0.1) -> bool:
    """Poll `condition` until it holds (True) or the time is over (False)."""
    end_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end_s:
            return False
        time.sleep(every_s)
    return True


def guarded(
    command: Sequence[str],
    environment: Mapping[str, str],
    *,
    log: IO[bytes] | None = None,
    scratch: Path | None = None,
    logs: Path | None = None,
    lock: int | None = None,
    stop_signal: int = signal.SIGTERM,
) -> "subprocess.Popen[bytes]":
    """Start `command` below `infra.guard`, which stops all of it when it ends, is stopped, or we die.

    Until then the file descriptor `lock` stays open; then `scratch` is deleted, after the logs of the Ray
    session in it were copied to `logs`. Output goes to `log`. `stop_signal` asks the command to end; what
    has not ended soon after is killed. "We" is the thread that calls: Linux sees it as the parent.
    """
    options = ["--parent", str(os.getpid()), "--stop-signal", str(int(stop_signal))]
    if scratch:
        options += ["--scratch", str(scratch), "--logs", str(logs)]
    return subprocess.Popen(
        [sys.executable, "-m", "infra.guard", *options, "--", *command],
        cwd=Path(__file__).resolve().parents[1],
        env=dict(environment),
        stdin=subprocess.PIPE,
        stdout=log,
        stderr=log,
        start_new_session=True,  # Ctrl-C reaches the launcher alone, which then stops things in order
        pass_fds=() if lock is None else (lock,),
    )


def stop(guard: "subprocess.Popen[bytes]") -> None:
    """Stop a guarded command and everything below it, by force if it takes long; returns when it is gone."""
    if guard.poll() is not None:
        return
    guard.terminate()
    try:
        guard.wait(STOP_S)
    except subprocess.TimeoutExpired:  # a busy machine, a scratch folder that takes long to delete
        below = descendants(guard.pid)
        guard.kill()
        guard.wait()
        kill_all(lambda: {pid for pid in below if alive(pid)})


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "prctl")
