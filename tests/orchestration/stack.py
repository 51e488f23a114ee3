"""Airflow and Ray as a test sees them: it starts runs, looks at them, and kills what runs them."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from rest_calls import ray_jobs, start_run
from scripted_stages import ScriptedStages

from infra.airflow import Airflow
from infra.processes import wait_until
from infra.ray_head import HeadAddress, RayHead

WAIT_S = 240.0
"""Far more than anything here takes on an idle machine: only a condition ends a wait."""
JOB_LOGGER = "vista.orchestration.job"


def until(condition: Callable[[], bool], what: str, seen: Callable[[], str] = str) -> None:
    """Wait for it, or fail with what did not happen, and what is `seen` instead."""
    if not wait_until(condition, WAIT_S, every_s=0.2):
        pytest.fail(f"{what}: not within {WAIT_S:.0f} s {seen()}")


@dataclass
class Stack:
    """What runs, and where. `head` is replaced when a test kills it."""

    airflow: Airflow
    head: RayHead
    stages: ScriptedStages
    start_head: Callable[[HeadAddress], RayHead]

    def trigger(self, run: str, script: str, dag: str = "one_stage", **conf: object) -> "Run":
        """Start a DAG of one stage, which is the script."""
        self.stages.do(run, script)
        start_run(self.airflow, dag, run, {"run_id": run, **conf})
        return Run(self, run, dag)

    def jobs(self, **metadata: str) -> list[dict[str, Any]]:
        """Ray's jobs with these metadata, oldest first."""
        return ray_jobs(self.head.address.url, self.head.address.token, **metadata)


@dataclass(frozen=True)
class Run:
    """One run of a DAG of one stage, as Airflow and as Ray sees it."""

    stack: Stack
    name: str
    dag: str

    @property
    def task(self) -> str:
        return {"one_stage": "prepare", "one_training": "train_foundation"}[self.dag]

    @property
    def path(self) -> str:
        return f"/dags/{self.dag}/dagRuns/{self.name}/taskInstances/{self.task}"

    def state(self) -> str:
        return str(self.stack.airflow.call("GET", self.path)["state"])

    def attempt(self) -> int:
        return int(self.stack.airflow.call("GET", self.path)["try_number"])

    def mark_failed(self) -> None:
        self.stack.airflow.call("PATCH", self.path, {"new_state": "failed"})

    def clear(self) -> None:
        body = {"dry_run": False, "only_failed": False, "dag_run_id": self.name, "task_ids": [self.task]}
        self.stack.airflow.call("POST", f"/dags/{self.dag}/clearTaskInstances", body)

    def jobs(self) -> list[dict[str, Any]]:
        """Ray's jobs of this run, oldest first."""
        return self.stack.jobs(dag_run=self.name)

    def statuses(self) -> list[str]:
        return [job["status"] for job in self.jobs()]

    def log(self, attempt: int) -> list[str]:
        """The job's lines on Airflow's page of an attempt."""
        return [line["event"] for line in self._messages(attempt) if line.get("logger") == JOB_LOGGER]

    def text(self, attempt: int) -> str:
        """Everything on that page."""
        return "\n".join(json.dumps(line) for line in self._messages(attempt))

    def until_state(self, state: str) -> None:
        until(lambda: self.state() == state, f"{self.name} {state}", self._seen)

    def until_waiting(self) -> None:
        """It is deferred, and the scheduler has heard so: until then Airflow takes a task that goes on at
        once, on a busy machine, for one that ended without a word, and fails it."""
        event = "Received executor event with state success"

        def waits() -> bool:
            task = f"run_id='{self.name}', try_number={self.attempt()}"
            said = self.stack.airflow.services["scheduler"].log.read_text().splitlines()
            return self.state() == "deferred" and any(event in line and task in line for line in said)

        until(waits, f"{self.name} waiting", self._seen)

    def until_status(self, *statuses: str) -> None:
        until(lambda: self.statuses() == [*statuses], f"{self.name} in Ray {statuses}", self._seen)

    def _seen(self) -> str:
        return f"(it is {self.state()}, attempt {self.attempt()}, Ray's jobs {self.statuses()})"

    def _messages(self, attempt: int) -> list[dict[str, Any]]:
        content = self.stack.airflow.call("GET", f"{self.path}/logs/{attempt}?full_content=true")["content"]
        return [line for line in content if isinstance(line, dict)]
