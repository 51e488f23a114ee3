"""Airflow's environment: a metadata database of this session, a real Ray head, and a stand-in for one."""

import asyncio
import json
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from aiohttp import web
from scripted_stages import REPORT, ScriptedStages
from stand_in_head import TOKEN, Head

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class RealHead:
    """Where a real head is and what its stages do."""

    url: str
    token: str
    stages: ScriptedStages


@contextmanager
def running_head(place: Path, **environment: str) -> Iterator[RealHead]:
    """Ray lives in the other environment: a process of that one starts it and ends with us."""
    stages = ScriptedStages(place / "stages")
    with subprocess.Popen(
        [ROOT / ".venv" / "bin" / "python", "-m", "infra.ray_head", place / "logs"], cwd=ROOT, text=True,
        env=stages.environment | environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as launcher:  # fmt: skip
        assert launcher.stdin is not None
        assert launcher.stdout is not None
        where = launcher.stdout.readline()
        assert where, f"see {place}/logs"
        yield RealHead(**json.loads(where), stages=stages)
        launcher.stdin.close()


@pytest.fixture(scope="session")
def real_head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealHead]:
    with running_head(tmp_path_factory.mktemp("ray")) as head:
        yield head


@pytest.fixture
def ray(real_head: RealHead, monkeypatch: pytest.MonkeyPatch) -> RealHead:
    """The real head; `ray_default` names it."""
    name_head(monkeypatch, real_head.url, real_head.token)
    return real_head


@pytest.fixture
def head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Head]:
    """A running stand-in head; `ray_default` names it."""
    stand_in = Head(tmp_path, tmp_path / "python")
    stand_in.stage_is(REPORT)
    loop = asyncio.new_event_loop()
    runner = web.AppRunner(stand_in.application())
    loop.run_until_complete(runner.setup())
    site = web.TCPSite(runner, "127.0.0.1", 0)
    loop.run_until_complete(site.start())
    port = runner.addresses[0][1]
    stand_in.url = f"http://127.0.0.1:{port}"
    name_head(monkeypatch, stand_in.url, TOKEN)
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield stand_in
    for job in stand_in.jobs.values():
        job.process.kill()
        job.process.wait()
    asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(30)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(30)
    loop.close()


@pytest.fixture(scope="session")
def metadata_database() -> None:
    """Airflow's tables, in the SQLite file of AIRFLOW_HOME (the Makefile names it)."""
    from airflow.utils.db import upgradedb

    upgradedb()


def name_head(monkeypatch: pytest.MonkeyPatch, url: str, token: str) -> None:
    connection = {"conn_type": "generic", "host": url, "password": token}
    monkeypatch.setenv("AIRFLOW_CONN_RAY_DEFAULT", json.dumps(connection))
