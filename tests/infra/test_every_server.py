"""Every server answers, listens on loopback only, keeps its secrets, and leaves nothing behind."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from every_server import STARTED
from sockets import LOOPBACK, listening

from infra.kept_secrets import SECRETS
from infra.ports import is_free
from infra.processes import adopt_orphans, alive, descendants, wait_until

ROOT = Path(__file__).parents[2]


def _holds(path: Path, passwords: Sequence[str]) -> bool:
    return path.is_file() and any(password.encode() in path.read_bytes() for password in passwords)


@pytest.mark.parametrize("name", STARTED)
def test_it_answers_on_loopback_keeps_its_secrets_and_leaves_nothing(name: str, place: Path) -> None:
    before = descendants(os.getpid())
    with STARTED[name](place) as servers:
        assert all(server.answers() for server in servers)
        pids = [server.pid for server in servers]
        sockets = listening(pids)
        assert len(sockets) >= len(pids)
        assert {address for address, _ in sockets} <= LOOPBACK
        shown = [Path(f"/proc/{pid}/cmdline").read_text() for pid in pids]
    shown += [server.log.read_text() for server in servers]
    kept = [*place.rglob(SECRETS)]
    passwords = [secret for path in kept for secret in json.loads(path.read_text()).values()]
    assert not [password for password in passwords if any(password in text for text in shown)]
    holding = {*kept, *(path for path in place.rglob("*") if _holds(path, passwords))}
    assert not [path for path in holding if path.stat().st_mode & 0o077]
    assert descendants(os.getpid()) == before
    assert all(is_free(port) for _, port in sockets)


@pytest.mark.parametrize("name", ["postgres", "cluster", "three_brokers_over_tls", "hive"])
def test_nothing_is_left_when_the_launcher_is_killed(name: str, place: Path) -> None:
    adopt_orphans()
    before = descendants(os.getpid())
    command = [sys.executable, str(Path(__file__).with_name("every_server.py")), name, str(place)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    launcher = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    assert launcher.stdout is not None
    pids = json.loads(launcher.stdout.readline())
    started = descendants(os.getpid()) - before
    assert set(pids) < started
    sockets = listening(pids)
    launcher.kill()
    launcher.wait()
    assert wait_until(lambda: not any(alive(pid) for pid in started), 30), started
    assert all(is_free(port) for _, port in sockets)
