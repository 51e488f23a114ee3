"""Airflow's four real services and a real Ray head, once for all tests of this folder."""

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from scripted_stages import ScriptedStages
from stack import Stack, until

from infra.airflow import Airflow, running_airflow
from infra.ray_head import CPUS, HeadAddress, RayHead, new_address, start_ray_head, wait_for

collect_ignore = ["dags"]  # of Airflow's environment, where its own processes import them
QUICK_TO_NOTICE = {
    "AIRFLOW__TRIGGERER__JOB_HEARTBEAT_SEC": "2",
    "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "15",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "20",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "3",
    "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "5",
}
"""Airflow's own patience with what was killed is minutes."""


@pytest.fixture(scope="session")
def stack() -> Iterator[Stack]:
    place = Path(tempfile.mkdtemp(prefix="vista-airflow-"))
    stages = ScriptedStages(place / "stages", real=["next_summaries"])
    address = new_address()
    connection = {"conn_type": "generic", "host": address.url, "password": address.token}
    environment = {**QUICK_TO_NOTICE, "AIRFLOW_CONN_RAY_DEFAULT": json.dumps(connection)}
    logs = place / "ray-logs"
    with (place / "head.log").open("ab") as log:

        def start_head(address: HeadAddress) -> RayHead:
            return start_ray_head(address, stages.environment, log, logs, None, CPUS)

        head = start_head(address)
        try:
            dags = Path(__file__).parent / "dags"
            with running_airflow(place / "airflow", dags, environment) as airflow:
                wait_for(head, logs)
                found = Stack(airflow, head, stages, start_head)
                until(lambda: _knows_dags(airflow), "the DAGs")
                yield found
                head = found.head
        finally:
            head.stop()
    shutil.rmtree(place)


def _knows_dags(airflow: Airflow) -> bool:
    known = {dag["dag_id"] for dag in airflow.call("GET", "/dags")["dags"]}
    ours = {"one_stage", "one_training", "one_day", "one_release"}
    return known >= ours | {"retrain_downstream", "experiments"}  # and a DAG that one of them imports
