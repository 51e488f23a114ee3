"""What MLflow has to hold of a run, on the embedded store and on a server: found again, tagged, nested, its
lineage followed both ways, and made once by whoever comes at the same time."""

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from training_data import settings_of

from infra.mlflow import running_mlflow
from infra.processes import wait_until
from vista.config import Settings
from vista.delivery.catalog import open_catalog
from vista.delivery.interfaces import AuditLine, Release
from vista.errors import BackendError
from vista.train import tracking
from vista.train.mlflow_store import client
from vista.train.registry import CHAMPION, DOWNSTREAM, FOUNDATION, follow_release, link, register
from vista.train.state import Point
from vista.train.tracking import JOB_CONFIG, CurveLog, Input, Tracked, track

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", params=["sqlite", "server"])
def settings(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """One store for all tests of a kind: making one takes seconds."""
    embedded = settings_of(tmp_path_factory.mktemp("home"))
    if request.param == "sqlite":
        yield embedded
        return
    with running_mlflow(tmp_path_factory.mktemp("mlflow")) as server:
        yield embedded.model_copy(update={"mlflow_url": server.url})


@pytest.fixture
def experiment() -> str:
    return f"contract-{uuid.uuid4().hex[:8]}"


def test_a_run_is_found_again_and_logs_each_step_once(settings: Settings, experiment: str) -> None:
    curve = [Point(step=step, values={"loss": 1 / step}) for step in range(1, 6)]
    tracked = track(settings, experiment, "run", {"recipe": "smoke"}, {"vista.space": "s-1"})
    log = CurveLog(tracked)
    log.add(curve[:2])
    log.add(curve[:3])
    again = track(settings, experiment, "run", {"recipe": "smoke"}, {"vista.space": "s-1"})
    assert again == tracked
    CurveLog(again).add(curve)  # a driver that has started anew
    for _ in range(2):
        again.finish({"test_auc": 0.7}, {}, {"figures/a.svg": "<svg/>"})
    store = client(tracked.url)
    history = store.get_metric_history(tracked.run_id, "loss")
    assert sorted((one.step, one.value) for one in history) == [(step, 1 / step) for step in range(1, 6)]
    run = store.get_run(tracked.run_id)
    assert (run.data.params, run.info.status) == ({"recipe": "smoke"}, "FINISHED")
    assert len(store.get_metric_history(tracked.run_id, "test_auc")) == 1
    assert [file.path for file in store.list_artifacts(tracked.run_id, "figures")] == ["figures/a.svg"]


def test_a_run_whose_maker_was_killed_gets_its_parameters_from_the_next_one(
    settings: Settings, experiment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(tracking, "_log_params", killed)
        with pytest.raises(KeyboardInterrupt):
            track(settings, experiment, "run", {"recipe": "smoke"}, {})
    tracked = track(settings, experiment, "run", {"recipe": "smoke"}, {})
    again = track(settings, experiment, "run", {"recipe": "another code's"}, {})
    assert again == tracked
    assert client(tracked.url).get_run(tracked.run_id).data.params == {"recipe": "smoke"}


def test_a_run_is_tagged_with_its_code_and_with_airflows_ids(
    settings: Settings, experiment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def in_attempt(number: int) -> Tracked:
        metadata = {
            "dag": "experiments", "dag_run": "manual__1", "task": "cell", "map_index": "3",
            "try": str(number), "revision": "0123abc-dirty",
        }  # fmt: skip
        monkeypatch.setenv(JOB_CONFIG, json.dumps({"runtime_env": {}, "metadata": metadata}))
        return track(settings, experiment, "run", {}, {})

    monkeypatch.setenv("VISTA_GIT_REVISION", "of the day when Ray was started")
    first = in_attempt(1)
    assert in_attempt(2) == first
    tags = client(first.url).get_run(first.run_id).data.tags
    assert {name: text for name, text in tags.items() if name.startswith("airflow.")} == {
        "airflow.dag_id": "experiments", "airflow.run_id": "manual__1", "airflow.task_id": "cell",
        "airflow.map_index": "3", "airflow.try_number": "2",
    }  # fmt: skip
    assert (tags["vista.git_revision"], tags["mlflow.source.git.commit"]) == ("0123abc-dirty", "0123abc")
    monkeypatch.delenv(JOB_CONFIG)
    by_hand = track(settings, experiment, "by hand", {}, {})
    tags = client(first.url).get_run(by_hand.run_id).data.tags
    assert not [name for name in tags if name.startswith("airflow.")]


def test_cells_stand_below_their_grid(settings: Settings, experiment: str) -> None:
    grids = [track(settings, experiment, name, {}, {}) for name in ("grid-1", "grid-2")]
    cells = [track(settings, experiment, "cell", {}, {}, grid) for grid in grids]
    assert len({cell.run_id for cell in cells}) == 2, "a cell is its grid's own"
    assert track(settings, experiment, "cell", {}, {}, grids[0]) == cells[0]
    store = client(settings.mlflow_url)
    experiment_id = store.get_experiment_by_name(experiment).experiment_id
    below = store.search_runs([experiment_id], f"tags.mlflow.parentRunId = '{grids[1].run_id}'")
    assert [run.info.run_id for run in below] == [cells[1].run_id]


def test_two_deployments_do_not_share_a_run(settings: Settings, experiment: str, tmp_path: Path) -> None:
    """Airflow calls the runs of the same day alike everywhere."""
    elsewhere = settings.model_copy(update={"home": tmp_path})
    runs = [track(one, experiment, "scheduled__2026-01-01", {}, {}) for one in (settings, elsewhere)]
    assert runs[0] != runs[1]


@pytest.mark.parametrize(("error", "status"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED")])
def test_what_does_not_end_well_is_seen(
    settings: Settings, experiment: str, error: type[BaseException], status: str
) -> None:
    tracked = track(settings, experiment, "run", {}, {})
    with pytest.raises(error), tracked.running():
        raise error
    assert client(tracked.url).get_run(tracked.run_id).info.status == status
    track(settings, experiment, "run", {}, {})
    assert client(tracked.url).get_run(tracked.run_id).info.status == "RUNNING"


def test_a_run_shows_what_its_machine_did(
    settings: Settings, experiment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    tracked = track(settings, experiment, "run", {}, {})

    def logged() -> dict[str, float]:
        found: dict[str, float] = client(tracked.url).get_run(tracked.run_id).data.metrics
        return {name: value for name, value in found.items() if name.startswith("system/")}

    with tracked.running():
        assert wait_until(lambda: bool(logged()), 60.0)
    assert 0 < logged()["system/system_memory_usage_percentage"] < 100
    assert {"system/cpu_utilization_percentage", "system/network_receive_megabytes"} <= set(logged())


def registered(settings: Settings, experiment: str, model: str, name: str) -> tuple[Tracked, str]:
    """A run with a checkpoint, and its version."""
    tracked = track(settings, experiment, f"{model}-{name}", {}, {})
    folder = settings.home / name
    folder.mkdir(exist_ok=True)
    (folder / "weights").write_text(name)
    tracked.finish({}, {folder: "checkpoint"})
    return tracked, register(tracked, model, {"vista.checkpoint": str(folder)})


def test_a_version_is_registered_once_and_is_the_candidate(settings: Settings, experiment: str) -> None:
    tracked, version = registered(settings, experiment, FOUNDATION, "one")
    assert register(tracked, FOUNDATION, {}) == version
    store = client(settings.mlflow_url)
    found = store.get_model_version_by_alias(FOUNDATION, "candidate")
    assert (str(found.version), found.run_id) == (version, tracked.run_id)
    (weights,) = store.list_artifacts(tracked.run_id, "checkpoint")
    assert weights.path == "checkpoint/weights"


def test_lineage_is_followed_both_ways(settings: Settings, experiment: str) -> None:
    """Downstream version -> foundation version and its run -> back; and by the table's epoch between them."""
    store = client(settings.mlflow_url)
    foundation, foundation_version = registered(settings, experiment, FOUNDATION, "base")
    space = f"space-{uuid.uuid4().hex[:8]}"
    epoch = Input(name=space, digest="5", uri="s3://tables/5")
    delivery = track(settings, experiment, "delivery", {}, {})
    delivery.add_inputs([epoch.model_copy(update={"context": "export"})])
    made = []
    for name in ("first", "second"):
        downstream, version = registered(settings, experiment, DOWNSTREAM, name)
        downstream.add_inputs([epoch])
        for _ in range(2):
            link(settings.mlflow_url, version, foundation.run_id, f"epoch {space}/5 (s3://tables/5)")
        made.append((downstream, version))

    def version_of(model: str, version: str) -> Any:
        return store.get_model_version(model, version)

    for downstream, version in made:
        back = version_of(DOWNSTREAM, version).tags["vista.foundation_version"]
        assert version_of(FOUNDATION, back).run_id == foundation.run_id
        assert version_of(FOUNDATION, back).tags[f"vista.downstream_version.{version}"] == downstream.run_id
        assert f"(#/models/{FOUNDATION}/versions/{back})" in version_of(DOWNSTREAM, version).description
        assert f"(#/models/{DOWNSTREAM}/versions/{version})" in version_of(FOUNDATION, back).description
    filtered = f"name = '{DOWNSTREAM}' and tags.`vista.foundation_version` = '{foundation_version}'"
    assert {str(one.version) for one in store.search_model_versions(filtered)} == {one for _, one in made}
    experiment_id = store.get_experiment_by_name(experiment).experiment_id

    def runs_with(context: str) -> set[str]:
        of_epoch = f"dataset.name = '{space}' and dataset.digest = '5' and dataset.context = '{context}'"
        return {run.info.run_id for run in store.search_runs([experiment_id], of_epoch)}

    assert runs_with("export") == {delivery.run_id}
    assert runs_with("training") == {downstream.run_id for downstream, _ in made}
    (read,) = store.get_run(made[0][0].run_id).inputs.dataset_inputs
    assert json.loads(read.dataset.source) == {"uri": "s3://tables/5"}


def test_the_champion_is_what_serves(settings: Settings, experiment: str) -> None:
    """After a promotion, after a rollback, and for a release whose models nobody has registered."""
    store = client(settings.mlflow_url)
    made = {
        (model, name): registered(settings, experiment, model, name)[1]
        for name in ("old", "new")
        for model in (FOUNDATION, DOWNSTREAM)
    }

    def champions() -> set[str]:
        models = (store.get_registered_model(model) for model in (FOUNDATION, DOWNSTREAM))
        return {str(model.aliases.get(CHAMPION, "")) for model in models}

    serving = None
    for name in ("old", "new", "old", "unknown"):
        serving = release(settings, name, serving)
        follow_release(settings)
        wanted = {made.get((model, name), "") for model in (FOUNDATION, DOWNSTREAM)}
        assert champions() == wanted, name
        for model in (FOUNDATION, DOWNSTREAM) if name != "unknown" else ():
            version = store.get_model_version(model, made[model, name])
            assert (version.tags["vista.release"], version.tags["vista.epoch"]) == (serving, "1")
            assert store.get_run(version.run_id).data.tags["vista.release"] == serving


def release(settings: Settings, name: str, before: str | None) -> str:
    """Make the models of a folder serve."""
    folder = str(settings.home / name)
    one = Release(id=f"r-{uuid.uuid4().hex}", space="s", epoch=1, foundation=folder, downstream=folder)
    audit = AuditLine(time_us=1, actor="test", action="promote", reason="", before="", after=one.id)
    with closing(open_catalog(settings.catalog_url)) as catalog:
        catalog.swap_release(before, one, audit)
    return one.id


RACE = """
import sys
from vista.config import Settings
from vista.train.mlflow_store import client
from vista.train.tracking import track
settings = Settings.from_environment()
client(settings.mlflow_url)
print("ready", flush=True)
name = sys.stdin.readline().strip()
for number in range(5):
    print(track(settings, f"{name}-{number}", "run", {}, {}).run_id)
"""


@pytest.mark.parametrize("homes", [("one", "one"), ("one", "other")])
def test_two_processes_make_the_same_experiment_at_once(
    settings: Settings, experiment: str, homes: tuple[str, str], tmp_path: Path
) -> None:
    """Those of one deployment make one run; those of two, which share no lock, one each."""
    places = [tmp_path / home for home in homes]
    processes = [started(settings, place) for place in places]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:  # both have imported everything
        assert process.stdin is not None
        process.stdin.write(f"{experiment}\n")
        process.stdin.flush()
    runs = [process.communicate(timeout=300)[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert [len(made) for made in runs] == [5, 5]
    assert (runs[0] == runs[1]) == (homes[0] == homes[1])
    store = client(settings.mlflow_url)
    for first, second in zip(*runs, strict=True):
        assert len({store.get_run(one).info.experiment_id for one in (first, second)}) == 1


def started(settings: Settings, home: Path) -> "subprocess.Popen[str]":
    """A process that waits for a name."""
    places = {"VISTA_HOME": str(home), "MLFLOW_TRACKING_URI": settings.mlflow_url}
    return subprocess.Popen(
        [sys.executable, "-c", RACE],
        cwd=ROOT, env=os.environ | places, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_a_deleted_experiment_says_how_to_get_it_back(settings: Settings, experiment: str) -> None:
    track(settings, experiment, "run", {}, {})
    store = client(settings.mlflow_url)
    store.delete_experiment(store.get_experiment_by_name(experiment).experiment_id)
    with pytest.raises(BackendError, match=rf"{experiment} is deleted: `mlflow experiments restore"):
        track(settings, experiment, "run", {}, {})


def test_a_file_that_is_no_store_is_a_back_ends_error(tmp_path: Path) -> None:
    (tmp_path / "notes.db").write_text("shopping list " * 1_000)
    settings = settings_of(tmp_path).model_copy(update={"mlflow_url": f"sqlite:///{tmp_path}/notes.db"})
    with pytest.raises(BackendError, match=r"not a database.*MLFLOW_TRACKING_URI"):
        track(settings, "unit", "run/model", {}, {})


def test_a_server_that_is_away_is_a_back_ends_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    settings = settings_of(tmp_path).model_copy(update={"mlflow_url": "http://127.0.0.1:9"})
    with pytest.raises(BackendError, match=r"MLFLOW_TRACKING_URI, and that the server answers"):
        track(settings, "unit", "run/model", {}, {})


def test_a_store_whose_making_was_cut_off_is_made_anew(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    unfinished = Path(settings.mlflow_url.removeprefix("sqlite:///")).with_name(".mlflow.db.killed")
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    unfinished.write_bytes(b"half a migration")
    track(settings, "unit", "run/model", {}, {})
    assert [path.name for path in unfinished.parent.glob("*mlflow.db*")] == ["mlflow.db"]
