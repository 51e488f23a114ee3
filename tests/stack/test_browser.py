"""The local stack as a person sees it: a form is filled in and sent, runs are followed, compared, looked at.

`make pictures` keeps what is seen in docs/guide/pictures.
"""

from collections.abc import Callable, Iterator, Mapping

import pytest
from local_stack import Stack
from pages import RUN_S, Airflow, Mlflow, keep_picture
from playwright.sync_api import Page
from rest_calls import ray_jobs

from vista.config import RefreshConfig
from vista.jobs import STAGES
from vista.train.registry import FOUNDATION

pytestmark = pytest.mark.timeout(3 * RUN_S)
DAG = "production_refresh"
SEEDS = "8"
TASKS = (*STAGES, "approve_promotion")


@pytest.fixture(scope="module")
def stack(new_stack: Callable[[str], Stack]) -> Iterator[Stack]:
    found = new_stack("browser")
    found.make("up", "EMBEDDED=1")
    yield found
    found.make("down")


@pytest.fixture(scope="module")
def mlflow(stack: Stack, page: Page) -> Mlflow:
    return Mlflow(page, stack.services()["mlflow"].address)


@pytest.fixture(scope="module")
def runs(airflow: Airflow) -> tuple[str, str]:
    """Two finished runs: one with the recipe's own number of seeds, one with another."""
    form = airflow.open_form(DAG)
    form.locator("[name=element_recipe]").fill("smoke")
    keep_picture(airflow.page, "airflow-form")
    first = airflow.send(form)
    assert airflow.states_at_the_end(DAG, first) == dict.fromkeys(TASKS, "Success")
    keep_picture(airflow.page, "airflow-run")
    form = airflow.open_form(DAG)
    form.locator("[name=element_recipe]").fill("smoke")
    form.locator("[name=element_data_dir]").fill("changed my mind")
    form.locator("[name=element_data_dir]").fill("")
    form.locator("[name=element_seeds]").fill(SEEDS)
    form.locator("[name=element_seeds]").scroll_into_view_if_needed()
    keep_picture(airflow.page, "airflow-form-seeds")
    second = airflow.send(form)
    assert airflow.states_at_the_end(DAG, second) == dict.fromkeys(TASKS, "Success")
    return first, second


@pytest.fixture(scope="module")
def jobs(stack: Stack, secrets: Mapping[str, str], runs: tuple[str, str]) -> list[list[dict[str, str]]]:
    """Of each run what Ray keeps as the metadata of its jobs."""
    head = stack.services()["ray"].address
    jobs = [ray_jobs(head, secrets["ray/token"], dag_run=run) for run in runs]
    return [[job["metadata"] for job in of_run] for of_run in jobs]


def test_what_the_form_says_is_in_the_conf_and_in_every_ray_job(
    airflow: Airflow, runs: tuple[str, str], jobs: list[list[dict[str, str]]]
) -> None:
    for run, of_run, seeds in zip(runs, jobs, (None, int(SEEDS)), strict=True):
        seen = airflow.run(DAG, run)
        assert (seen["state"], seen["triggered_by"]) == ("success", "ui")
        assert (seen["conf"]["recipe"], seen["conf"]["seeds"]) == ("smoke", seeds)
        assert sorted(job["task"] for job in of_run) == sorted(STAGES)
        for job in of_run:
            config = RefreshConfig.model_validate_json(job["config"])
            assert (config.recipe, config.seeds, config.data_dir) == ("smoke", seeds, "")


def test_mlflow_compares_the_two_runs(mlflow: Mlflow, jobs: list[list[dict[str, str]]]) -> None:
    names = [of_run[0]["run"] for of_run in jobs]
    mlflow.compare(FOUNDATION, names)
    assert set(mlflow.values("recipe")) == {"smoke"}
    assert set(mlflow.values("seeds")) == {"None", SEEDS}
    assert set(mlflow.values("model.seeds")) == {"4", SEEDS}  # what the recipe made of it
    at_axes = mlflow.add_metric("test_auc")
    assert {"model.seeds", "test_auc", "4.00000", "8.00000"} <= {*at_axes}
    keep_picture(mlflow.page, "mlflow-compare")
    assert mlflow.open_curves("loss", names) >= len(names)
    keep_picture(mlflow.page, "mlflow-curves")


def test_a_run_that_fails_shows_why(airflow: Airflow, runs: tuple[str, str]) -> None:
    form = airflow.open_form(DAG)
    form.locator("[name=element_recipe]").fill("movielens")
    run = airflow.send(form)
    states = airflow.states_at_the_end(DAG, run)
    assert states["prepare"] == "Failed"
    keep_picture(airflow.page, "airflow-failed-run")
    airflow.open_log(DAG, run, "prepare", "stage prepare failed: no data folder was given: name it with")
