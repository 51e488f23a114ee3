"""Airflow's environment: a metadata database of this session, and a running stand-in for a Ray head."""

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiohttp import web
from stand_in_head import TOKEN, Head


@pytest.fixture
def head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Head]:
    """A running stand-in head; `ray_default` names it."""
    stand_in = Head(tmp_path, tmp_path / "python")
    stand_in.stage_is("exit 0")
    loop = asyncio.new_event_loop()
    runner = web.AppRunner(stand_in.application())
    loop.run_until_complete(runner.setup())
    site = web.TCPSite(runner, "127.0.0.1", 0)
    loop.run_until_complete(site.start())
    port = runner.addresses[0][1]
    stand_in.url = f"http://127.0.0.1:{port}"
    connection = {"conn_type": "generic", "host": stand_in.url, "password": TOKEN}
    monkeypatch.setenv("AIRFLOW_CONN_RAY_DEFAULT", json.dumps(connection))
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
