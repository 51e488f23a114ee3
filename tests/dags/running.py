"""Ways to run the operator: a whole DAG in this process, or one job and its trigger."""

import asyncio
import importlib
import io
import logging
import time
from datetime import timedelta
from typing import Any

import pytest
from airflow.sdk import DAG

import dags.production_refresh
from vista.config import RefreshConfig
from vista.orchestration.embedded import run_dag
from vista.orchestration.job_log import JOB_LOG
from vista.orchestration.operator import RayJobOperator, entrypoint
from vista.orchestration.ray_jobs import patiently
from vista.orchestration.trigger import RayJobTrigger, connect


def fresh_dag() -> DAG:
    """Airflow keeps the conf of a `dag.test` in the DAG's params, so every run gets its own."""
    dag: DAG = importlib.reload(dags.production_refresh).dag
    for task in dag.tasks:
        task.retry_delay = timedelta(seconds=0)
    return dag


def run(conf: dict[str, Any], dag: DAG | None = None) -> tuple[dict[str, Any], str]:
    """The result of the whole DAG and what the screen showed."""
    screen = io.StringIO()
    before = list(JOB_LOG.handlers)
    try:
        return run_dag(dag or fresh_dag(), conf, screen, time.monotonic()), screen.getvalue()
    finally:
        JOB_LOG.handlers = before


def prepare() -> RayJobOperator:
    """The first stage's operator."""
    task = fresh_dag().get_task("prepare")
    assert isinstance(task, RayJobOperator)
    return task


def trigger_of(*names: str, first: int = 1, run: str = "r", seconds: float = 300.0) -> RayJobTrigger:
    """Of stage `prepare` of the run; `names` are its attempts' jobs, the newest last."""
    command = entrypoint("prepare", RefreshConfig(recipe="smoke", run_id=run))
    return RayJobTrigger("ray_default", names, first, command, {"run": run}, seconds)


def attach_or_submit(*names: str, first: int = 1, run: str = "r") -> int:
    """The attempt whose job the trigger goes on with."""

    async def ask() -> int:
        async with await connect("ray_default") as jobs:
            return await patiently(
                lambda: trigger_of(*names, first=first, run=run)._attach_or_submit(jobs), 60.0
            )

    return asyncio.run(ask())


async def event_of(trigger: RayJobTrigger) -> dict[str, Any]:
    """The payload of the trigger's one event."""
    events = [event.payload async for event in trigger.run()]
    assert len(events) == 1
    payload: dict[str, Any] = events[0]
    return payload


def follow(name: str, caplog: pytest.LogCaptureFixture, seconds: float = 300.0) -> dict[str, Any]:
    """Run the trigger of a job to its event; the job's lines are in `caplog`."""
    with caplog.at_level(logging.INFO, JOB_LOG.name):
        return asyncio.run(event_of(trigger_of(name, run=name, seconds=seconds)))


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The job's lines until now."""
    return [record.getMessage() for record in caplog.records if record.name == JOB_LOG.name]
