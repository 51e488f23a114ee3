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

import dags.check_delivery
import dags.experiments
import dags.export_summaries
import dags.production_refresh
import dags.retrain_downstream
import dags.train_foundation
from vista.config import CheckConfig, Frozen, GridConfig, RefreshConfig
from vista.jobs import ADOPT, FOUNDATION, JOBS, RELEASE, STAGES, SUMMARIES
from vista.orchestration.stages import TRAINING_POOL, TRAININGS, form

ROOT = Path(__file__).parents[2]
FILES = sorted(path for path in (ROOT / "dags").glob("*.py") if path.name != "__init__.py")
GRAPHS = ROOT / "tests" / "golden" / "dags"
APPROVAL = "approve_promotion"
RELEASED = (RELEASE[0], APPROVAL, *RELEASE[1:])
DAGS: dict[str, tuple[DAG, tuple[str, ...]]] = {
    "check_delivery": (dags.check_delivery.dag, ("check_delivery",)),
    "experiments": (dags.experiments.dag, ("cells", "grid_cell", "grid")),
    "export_summaries": (dags.export_summaries.dag, ("prepare", ADOPT, *SUMMARIES)),
    "production_refresh": (dags.production_refresh.dag, (*FOUNDATION, *SUMMARIES, *RELEASED)),
    "retrain_downstream": (dags.retrain_downstream.dag, ("next_summaries", *RELEASED)),
    "train_foundation": (dags.train_foundation.dag, FOUNDATION),
}
FORMS: dict[str, Frozen] = {
    "check_delivery": CheckConfig(),
    "experiments": GridConfig(),
    "export_summaries": RefreshConfig(warm_start=True),
    "production_refresh": RefreshConfig(),
    "train_foundation": RefreshConfig(),
}
every_dag = pytest.mark.parametrize(("dag", "tasks"), DAGS.values(), ids=DAGS.keys())


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
        "from airflow.providers.standard.operators.hitl import ApprovalOperator\nimport httpx\n"
        f"started = time.process_time()\nimport {', '.join(f'dags.{path.stem}' for path in FILES)}\n"
        "print(time.process_time() - started)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "AIRFLOW_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, timeout=120
    )
    assert float(done.stdout.splitlines()[-1]) < 1.0  # CPU seconds: another process cannot spoil it


def test_every_file_is_a_dag_of_these_rules() -> None:
    assert [path.stem for path in FILES] == sorted(DAGS)


def test_the_groups_are_the_stages_in_order() -> None:
    assert tuple(STAGES) == (*FOUNDATION, *SUMMARIES, *RELEASE)


@every_dag
def test_every_task_says_how_it_fails(dag: DAG, tasks: tuple[str, ...]) -> None:
    assert dag.doc_md is not None
    assert "| Do |" in dag.doc_md
    for task in dag.tasks:
        assert task.owner == "vista"
        assert task.doc_md
        assert task.retries >= 1
        assert task.on_failure_callback
        assert task.execution_timeout is not None
        if task.task_id in JOBS:
            job = task.partial_kwargs if task.is_mapped else vars(task)
            assert task.execution_timeout.total_seconds() > job["deadline_s"]
            assert task.doc_md.startswith(f"`python -m vista {task.task_id}`: {JOBS[task.task_id].help}")
            assert "| Do |" in task.doc_md
        assert (task.pool == TRAINING_POOL) == (task.task_id in TRAININGS)


@every_dag
def test_no_page_advises_to_delete_a_run(dag: DAG, tasks: tuple[str, ...]) -> None:
    """Its folder may hold the models that serve."""
    pages = [dag.doc_md or "", *(task.doc_md or "" for task in dag.tasks)]
    assert [page for page in pages if "delete" in page.lower() and "folder" in page.lower()] == []


@every_dag
def test_graph_is_the_golden_one(dag: DAG, tasks: tuple[str, ...]) -> None:
    graph = {task.task_id: sorted(task.downstream_task_ids) for task in dag.topological_sort()}
    assert tuple(graph) == tasks
    text = json.dumps(graph, indent=2) + "\n"
    golden = GRAPHS / f"{dag.dag_id}.json"
    if os.environ.get("VISTA_GOLDEN") == "write":
        golden.parent.mkdir(parents=True, exist_ok=True)
        golden.write_text(text)
    assert golden.read_text() == text


@pytest.mark.parametrize("name", FORMS)
def test_form_has_every_field_and_its_default(name: str) -> None:
    dag, config = DAGS[name][0], FORMS[name]
    assert dag.params.dump() == config.model_dump()
    assert len(dag.params) <= 15
    for field, info in type(config).model_fields.items():
        assert dag.params.get_param(field).description == info.description


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
def test_dag_survives_serialisation(dag: DAG, tasks: tuple[str, ...]) -> None:
    from airflow.serialization.serialized_objects import DagSerialization

    again = DagSerialization.deserialize_dag(DagSerialization.serialize_dag(dag))
    assert set(again.task_dict) == set(tasks)
