"""What tests ask of Airflow and of Ray by their REST APIs."""

import json
import urllib.request
from collections.abc import Mapping
from typing import Any

from infra.airflow import Airflow


def start_run(airflow: Airflow, dag: str, run: str, conf: Mapping[str, object]) -> str:
    """Trigger a run of a DAG; where Airflow's API has it."""
    body = {"dag_run_id": run, "logical_date": None, "conf": conf}
    airflow.call("POST", f"/dags/{dag}/dagRuns", body)
    return f"/dags/{dag}/dagRuns/{run}"


def ray_jobs(head: str, token: str, **metadata: str) -> list[dict[str, Any]]:
    """The jobs with these metadata that a head knows, oldest first."""
    request = urllib.request.Request(f"{head}/api/jobs/", headers={"Authorization": f"Bearer {token}"})
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(request, timeout=60) as answer:
        jobs = [job for job in json.load(answer) if metadata.items() <= (job["metadata"] or {}).items()]
    return sorted(jobs, key=lambda job: job["start_time"])
