"""Nothing outlives a launcher: guards under kill -9, orphans in sessions of their own, locks, ports."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from infra.ports import free_block, is_free
from infra.processes import adopt_orphans, guarded, stop, wait_until
from infra.run import only_run
from vista.errors import InputError

ROOT = Path(__file__).parents[2]
STUBBORN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
print(os.getpid(), child.pid, flush=True)
time.sleep(600)
"""
"""A command that ignores SIGTERM and has a child in a session of its own, as Ray's raylet has."""

LAUNCHER = """
import sys
from infra.processes import guarded
with open(sys.argv[1], "wb") as log:
    guard = guarded([sys.executable, "-c", sys.argv[2]], {}, log=log)
print(guard.pid, flush=True)
guard.wait()
"""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def pids(log: Path) -> list[int]:
    assert wait_until(lambda: log.exists() and log.read_text().count(" ") == 1, 30), log.read_text()
    return [int(word) for word in log.read_text().split()]


def test_stop_ends_what_ignores_sigterm_and_orphans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infra.processes.STOP_S", 60.0)
    scratch, logs = tmp_path / "scratch", tmp_path / "logs"
    (scratch / "session_2026" / "logs").mkdir(parents=True)
    (scratch / "session_2026" / "logs" / "raylet.out").write_text("why")
    log = tmp_path / "log"
    with log.open("wb") as file:
        guard = guarded([sys.executable, "-c", STUBBORN], {}, log=file, scratch=scratch, logs=logs)
    started = pids(log)
    assert all(alive(pid) for pid in started)
    stop(guard)
    assert not any(alive(pid) for pid in started)
    assert guard.returncode == 128 + signal.SIGTERM
    assert not scratch.exists()
    assert (logs / "raylet.out").read_text() == "why"


def test_orphans_of_a_command_that_ended_are_ended(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("wb") as file:
        guard = guarded(
            [sys.executable, "-c", STUBBORN.replace("time.sleep(600)\n", "sys.exit(7)\n")], {}, log=file
        )
    _, orphan = pids(log)
    assert guard.wait(60) == 7
    assert not alive(orphan)


@pytest.mark.parametrize("victims", ["launcher", "guard", "both"])
def test_kill_9_of_launcher_or_guard_ends_the_command(victims: str, tmp_path: Path) -> None:
    adopt_orphans()
    log = tmp_path / "log"
    command = "import os, time; print(os.getpid(), 0, flush=True); time.sleep(600)"
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, str(log), command], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert launcher.stdout is not None
    guard = int(launcher.stdout.readline())
    started, _ = pids(log)
    if victims != "launcher":
        os.kill(guard, signal.SIGKILL)
    if victims != "guard":
        launcher.kill()
    assert wait_until(lambda: not alive(started) and not alive(guard), 30)
    launcher.wait(30)


def test_the_lock_is_held_until_the_last_process_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("infra.run.OTHER_RUN_STOPS_S", 0.5)
    log = tmp_path / "log"
    with only_run(tmp_path / "home") as lock, log.open("wb") as file:
        guard = guarded([sys.executable, "-c", STUBBORN], {}, log=file, lock=lock)
    pids(log)
    with pytest.raises(InputError, match=r"another run .* uses"), only_run(tmp_path / "home"):
        pytest.fail("two runs in one home")
    assert f"for another run (process {os.getpid()}) to end" in capsys.readouterr().out
    stop(guard)
    with only_run(tmp_path / "home") as lock:
        assert lock > 0


def test_a_port_in_use_is_not_free() -> None:
    first = free_block(20)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", first + 5))
        taken.listen()
        assert [port for port in range(first, first + 20) if not is_free(port)] == [first + 5]
    assert is_free(first + 5)
