"""Runs one command; when it ends, when this process is stopped, or when the launcher dies, nothing of the
command stays: `python -m infra.guard --parent PID [options] -- COMMAND ...`

The command is asked to end with the stop signal (default SIGTERM) and killed if it does not. The scratch
directory is deleted at the end; the logs of a Ray session in it are kept first.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

from infra.processes import adopt_orphans, descendants, die_with, kill_all, wait_until

GRACE_S = 12.0
"""Ray's head needs 3-5 s to stop its processes in order."""


def main() -> int:
    """The command's exit code; 143 if this process was told to stop."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--stop-signal", type=int, default=signal.SIGTERM)
    parser.add_argument("--scratch", type=Path)
    parser.add_argument("--logs", type=Path)
    parser.add_argument("command", nargs="+")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, _told_to_stop)
    adopt_orphans()
    die_with(arguments.parent)
    guard = os.getpid()
    child = subprocess.Popen(arguments.command, preexec_fn=lambda: die_with(guard, arguments.stop_signal))
    try:
        _reap_others_until_it_ends(child)
        return child.wait()
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        _stop(child, arguments.stop_signal)
        if arguments.scratch:
            _keep_logs(arguments.scratch, arguments.logs)
            shutil.rmtree(arguments.scratch, ignore_errors=True)


def _told_to_stop(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _reap_others_until_it_ends(child: "subprocess.Popen[bytes]") -> None:
    """What the command left to us may end long before it does."""
    while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)) and ended.si_pid != child.pid:
        os.waitpid(ended.si_pid, 0)


def _keep_logs(scratch: Path, logs: Path) -> None:
    for found in scratch.glob("session_2*/logs"):
        shutil.copytree(found, logs, ignore=shutil.ignore_patterns("*.sock"), dirs_exist_ok=True)


def _stop(child: "subprocess.Popen[bytes]", stop_signal: int) -> None:
    if child.poll() is None:
        child.send_signal(stop_signal)
    wait_until(lambda: child.poll() is not None, GRACE_S)
    kill_all(lambda: descendants(os.getpid()))


if __name__ == "__main__":
    sys.exit(main())
