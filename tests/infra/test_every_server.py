"""Every server answers, listens on loopback only, keeps its secrets, and leaves nothing behind."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from every_server import STARTED
from sockets import LOOPBACK, listening

from infra.ports import is_free
from infra.processes import adopt_orphans, alive, descendants, wait_until

ROOT = Path(__file__).parents[2]


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
    passwords = [path.read_text() for path in place.rglob("*.password")]
    assert not [password for password in passwords if any(password in text for text in shown)]
    readable = [path for path in place.rglob("*.password") if path.stat().st_mode & 0o077]
    assert not readable
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
