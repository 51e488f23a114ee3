"""Runs of the platform's DAGs on a local stack, through Airflow's REST API, and their jobs in Ray."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

from local_stack import Stack
from rest_calls import ray_jobs, start_run

from infra.airflow import Airflow
from infra.kept_secrets import kept_secret
from infra.processes import wait_until
from vista.errors import BackendError

RUN_S = 1_800.0
"""For a run; its stages take two minutes on two idle cores."""
AWAY_S = 300.0
"""For a service that was killed."""
ENDED = ("success", "failed")
BEGUN = ("running", "deferred", "success")


@dataclass(frozen=True)
class Dags:
    """The DAGs of a stack. Airflow may be away for a while: whoever waits asks again."""

    stack: Stack
    airflow: Airflow

    @classmethod
    def of(cls, stack: Stack) -> "Dags":
        address = stack.services()["airflow-api-server"].address
        return cls(stack, Airflow(address, stack.path / "airflow", {}))

    def switch_on(self, *names: str) -> None:
        """When they are known: their file is read some seconds after the stack is up."""
        for name in names:
            assert wait_until(lambda: self.asked(f"/dags/{name}") is not None, RUN_S), name  # noqa: B023
            self.airflow.call("PATCH", f"/dags/{name}", {"is_paused": False})

    def switch_off(self, *names: str) -> None:
        for name in names:
            self.airflow.call("PATCH", f"/dags/{name}", {"is_paused": True})

    def news(self, dag: str, task: str) -> list[dict[str, Any]]:
        """The events of assets that a task of a DAG has made, when Airflow answers."""
        asked, found = urlencode({"source_dag_id": dag, "source_task_id": task}), list[dict[str, Any]]()

        def answered() -> bool:
            answer = self.asked(f"/assets/events?{asked}")
            found.extend([] if answer is None else answer["asset_events"])
            return answer is not None

        assert wait_until(answered, AWAY_S, every_s=0.5), "Airflow does not answer"
        return found

    def runs_of(self, dag: str) -> list[dict[str, Any]]:
        """All runs of a DAG."""
        return list(self.airflow.call("GET", f"/dags/{dag}/dagRuns")["dag_runs"])

    def woken_by(self, run: "DagRun", task: str, dag: str) -> "DagRun":
        """The run of a DAG that an event by a task of another one's run has started."""
        names: list[str] = []

        def is_there() -> bool:
            events = [event for event in self.news(run.dag, task) if event["source_run_id"] == run.name]
            woken = [one for event in events for one in event["created_dagruns"] if one["dag_id"] == dag]
            names.extend(one["run_id"] for one in woken)
            return bool(names)

        assert wait_until(is_there, RUN_S, every_s=1.0), self.news(run.dag, task)
        return DagRun(self, dag, names[0], f"/dags/{dag}/dagRuns/{quote(names[0], safe='')}")

    def start(self, dag: str, name: str, **conf: object) -> "DagRun":
        return DagRun(self, dag, name, start_run(self.airflow, dag, name, conf))

    def jobs(self, **metadata: str) -> list[dict[str, Any]]:
        """The jobs with these metadata that Ray's head knows, oldest first."""
        token = kept_secret(self.stack.path / "ray", "token")
        return ray_jobs(self.stack.services()["ray"].address, token, **metadata)

    def asked(self, path: str) -> Any:
        """What Airflow answers; None while it is away, and of what it does not know."""
        try:
            return self.airflow.call("GET", path)
        except BackendError:
            return None


@dataclass(frozen=True)
class DagRun:
    """One run."""

    dags: Dags
    dag: str
    name: str
    path: str

    def state(self) -> str:
        """Empty while Airflow is away."""
        found = self.dags.asked(self.path)
        return "" if found is None else str(found["state"])

    def tasks(self) -> Mapping[str, str]:
        """The state of each task, when Airflow answers."""
        found: dict[str, str] = {}

        def answered() -> bool:
            answer = self.dags.asked(f"{self.path}/taskInstances")
            tasks = [] if answer is None else answer["task_instances"]
            found.update({one["task_id"]: str(one["state"]) for one in tasks})
            return bool(found)

        assert wait_until(answered, AWAY_S, every_s=0.5), "Airflow does not answer"
        return found

    def works_on(self, task: str) -> bool:
        """Whether a task has begun, or has ended well before anybody looked."""
        return self.tasks().get(task) in BEGUN

    def follow(self) -> str:
        """Its state at the end."""
        ended = wait_until(lambda: self.state() in ENDED, RUN_S, every_s=1.0)
        assert ended, (self.state(), self.tasks())
        return self.state()

    def clear_failed(self) -> list[str]:
        """Clear the tasks that failed, as a person does; which they are."""
        failed = [task for task, state in self.tasks().items() if state == "failed"]
        body = {"dry_run": False, "only_failed": True, "dag_run_id": self.name, "task_ids": failed}
        self.dags.airflow.call("POST", f"/dags/{self.dag}/clearTaskInstances", body)
        return failed

    def said(self, task: str) -> str:
        """The log of a task's newest attempt."""
        number = self.dags.airflow.call("GET", f"{self.path}/taskInstances/{task}")["try_number"]
        log = f"{self.path}/taskInstances/{task}/logs/{number}?full_content=true"
        return "\n".join(json.dumps(line) for line in self.dags.airflow.call("GET", log)["content"])

    def jobs(self) -> list[dict[str, Any]]:
        """Its jobs that the head knows, oldest first; a head that was killed has forgotten those before."""
        return self.dags.jobs(dag_run=self.name)
