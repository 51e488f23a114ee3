"""Rules that every DAG file keeps."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from airflow.sdk import DAG
from airflow.sdk.exceptions import ParamValidationError

import dags.production_refresh
import dags.train_foundation
from vista.config import RefreshConfig
from vista.jobs import STAGES
from vista.orchestration.stages import FOUNDATION, TRAINING_POOL, form

ROOT = Path(__file__).parents[2]
FILES = sorted(path for path in (ROOT / "dags").glob("*.py") if path.name != "__init__.py")
GRAPHS = ROOT / "tests" / "golden" / "dags"
DAGS = {
    "production_refresh": (dags.production_refresh.dag, tuple(STAGES)),
    "train_foundation": (dags.train_foundation.dag, FOUNDATION),
}
every_dag = pytest.mark.parametrize(("dag", "stages"), DAGS.values(), ids=DAGS.keys())


def test_airflow_environment_is_light() -> None:
    assert [name for name in ("ray", "torch", "mlflow", "triton") if importlib.util.find_spec(name)] == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_dag_is_wiring(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 60


def test_dags_import_in_a_second_after_airflow(tmp_path: Path) -> None:
    code = (
        "import time, warnings\nwarnings.simplefilter('ignore')\n"
        "from airflow.sdk import DAG, BaseHook, BaseOperator, Param\n"
        "from airflow.sdk.bases.operator import chain\nimport aiohttp\n"
        "from airflow.triggers.base import BaseTrigger\n"
        "started = time.process_time()\nimport dags.production_refresh, dags.train_foundation\n"
        "print(time.process_time() - started)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "AIRFLOW_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, timeout=120
    )
    assert float(done.stdout.splitlines()[-1]) < 1.0  # CPU seconds: another process cannot spoil it


def test_every_file_is_a_dag_of_these_rules() -> None:
    assert [path.stem for path in FILES] == sorted(DAGS)


@every_dag
def test_every_task_says_how_it_fails(dag: DAG, stages: tuple[str, ...]) -> None:
    assert dag.doc_md is not None
    assert "Do |" in dag.doc_md
    for task in dag.tasks:
        assert task.owner == "vista"
        assert task.doc_md
        assert task.retries >= 1
        assert task.execution_timeout is not None
        assert task.execution_timeout.total_seconds() > task.deadline_s
        assert (task.pool == TRAINING_POOL) == (task.task_id in ("train_foundation", "retrain_downstream"))


@every_dag
def test_graph_is_the_golden_one(dag: DAG, stages: tuple[str, ...]) -> None:
    graph = {task.task_id: sorted(task.downstream_task_ids) for task in dag.topological_sort()}
    assert tuple(graph) == stages
    text = json.dumps(graph, indent=2) + "\n"
    golden = GRAPHS / f"{dag.dag_id}.json"
    if os.environ.get("VISTA_GOLDEN") == "write":
        golden.parent.mkdir(parents=True, exist_ok=True)
        golden.write_text(text)
    assert golden.read_text() == text


@every_dag
def test_form_has_every_field_and_its_default(dag: DAG, stages: tuple[str, ...]) -> None:
    assert dag.params.dump() == RefreshConfig().model_dump()
    assert len(dag.params) <= 15
    for name, field in RefreshConfig.model_fields.items():
        assert dag.params.get_param(name).description == field.description


@pytest.mark.parametrize(("name", "value"), [("seeds", 0), ("seeds", "x"), ("codec", "zip"), ("epochs", 0)])
def test_form_refuses_what_the_configuration_refuses(name: str, value: object) -> None:
    with pytest.raises(ParamValidationError):
        form()[name].resolve(value)


@pytest.mark.parametrize(
    ("name", "value"), [("seeds", 4), ("seeds", None), ("codec", "bf16"), ("codec", None)]
)
def test_form_takes_what_the_configuration_takes(name: str, value: object) -> None:
    assert form()[name].resolve(value) == value


def test_a_field_that_is_empty_by_default_may_stay_empty() -> None:
    """Airflow's form takes no field for filled that is empty, unless its schema allows null."""
    empty = {name for name, value in RefreshConfig().model_dump().items() if value in (None, "")}
    assert {"data_dir", "run_id", "seeds"} < empty
    assert {name for name, param in form().items() if "null" in param.schema["type"]} == empty


@every_dag
def test_dag_survives_serialisation(dag: DAG, stages: tuple[str, ...]) -> None:
    from airflow.serialization.serialized_objects import DagSerialization

    again = DagSerialization.deserialize_dag(DagSerialization.serialize_dag(dag))
    assert set(again.task_dict) == set(stages)
