"""Runs in MLflow: found again when their work is repeated, tagged with where they come from, below a parent
if they are cells of a grid; curves are logged exactly once.

The store's own history is the high-water mark: a batch of metrics is one transaction, so after a crash what
it holds is what need not be logged again.
"""

import json
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vista.config import Frozen, Settings
from vista.errors import BackendError
from vista.revision import git_revision
from vista.runs import alone
from vista.train.experiments.fingerprint import short_digest
from vista.train.mlflow_store import client, file_of, make_store, mapped

if TYPE_CHECKING:
    from vista.train.state import Point

LOG = logging.getLogger(__name__)

METRICS_PER_BATCH = 1_000  # MLflow's own limit
MAX_PARAM_LENGTH = 500
MAX_DIGEST_LENGTH = 36  # of a dataset, MLflow's own
SYSTEM_SAMPLE_S = 5.0

KEY = "vista.key"
"""Tag that names a run for whoever comes to the same work again; names are for people."""
PARENT = "mlflow.parentRunId"
CONTEXT = "mlflow.data.context"

JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Ray puts the metadata of a job here, for the job's own process."""
AIRFLOW_IDS = {
    "dag": "dag_id", "dag_run": "run_id", "task": "task_id", "map_index": "map_index", "try": "try_number",
}  # fmt: skip
"""What `vista.orchestration.operator` writes into the metadata -> Airflow's word."""


class Input(Frozen):
    """A data set that a run read (`training`, `evaluation`) or made (`export`): found by its name and digest
    from every run that has it."""

    name: str
    digest: str
    uri: str
    context: str = "training"

    @property
    def kind(self) -> str:
        """MLflow's word for where it lies."""
        return self.uri.partition("://")[0] if "://" in self.uri else "local"


@dataclass(frozen=True, slots=True)
class Tracked:
    """One MLflow run; a value, so that a worker can log into the run that its driver made."""

    url: str
    run_id: str

    @contextmanager
    def running(self) -> Iterator[None]:
        """Around a run's work: logs this machine's processors, memory, disk and network; a run whose work
        does not end well is FAILED, an interrupted one KILLED."""
        monitor = self._monitor()
        try:
            yield
        except BaseException as error:
            monitor.finish()
            try:
                self._end("FAILED" if isinstance(error, Exception) else "KILLED")
            except BackendError as lost:  # what ended the work is what has to be told
                LOG.warning("the run stays open: %s", lost)
            raise
        monitor.finish()

    @mapped
    def finish(
        self,
        metrics: Mapping[str, float],
        artifacts: Mapping[Path, str] | None = None,
        texts: Mapping[str, str] | None = None,
    ) -> None:
        """Log final metrics, files or directories (path -> folder) and texts (file -> text); end the run."""
        from mlflow.entities import Metric

        store = client(self.url)
        known = store.get_run(self.run_id).data.metrics
        now_ms = int(time.time() * 1_000)
        new = [Metric(name, value, now_ms, 0) for name, value in metrics.items() if known.get(name) != value]
        store.log_batch(self.run_id, metrics=new)
        for path, folder in (artifacts or {}).items():
            (store.log_artifacts if path.is_dir() else store.log_artifact)(self.run_id, str(path), folder)
        for name, text in (texts or {}).items():
            store.log_text(self.run_id, text, name)
        store.set_terminated(self.run_id)

    @mapped
    def tag(self, tags: Mapping[str, str]) -> None:
        """Add what becomes known after the run was made."""
        from mlflow.entities import RunTag

        client(self.url).log_batch(self.run_id, tags=[RunTag(name, text) for name, text in tags.items()])

    @mapped
    def add_inputs(self, inputs: Sequence[Input]) -> None:
        """Link data sets; those that are linked already stay."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        linked = [
            DatasetInput(
                Dataset(one.name, one.digest[:MAX_DIGEST_LENGTH], one.kind, json.dumps({"uri": one.uri})),
                [InputTag(CONTEXT, one.context)],
            )
            for one in inputs
        ]
        client(self.url).log_inputs(self.run_id, datasets=linked)

    @mapped
    def _monitor(self) -> Any:
        client(self.url)  # before MLflow says that it starts
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        monitor: Any = SystemMetricsMonitor(  # type: ignore[no-untyped-call]
            self.run_id, sampling_interval=SYSTEM_SAMPLE_S, resume_logging=True, tracking_uri=self.url
        )
        monitor.start()
        return monitor

    @mapped
    def _end(self, status: str) -> None:
        client(self.url).set_terminated(self.run_id, status)


class CurveLog:
    """Logs the growing curve of one training into its MLflow run, each point once."""

    def __init__(self, tracked: Tracked) -> None:
        self.tracked = tracked
        self.added = 0
        self.logged: dict[str, int] = {}

    @mapped
    def add(self, curve: "Sequence[Point]") -> None:
        """Log the points of `curve` that the store does not hold yet."""
        from mlflow.entities import Metric

        store = client(self.tracked.url)
        now_ms = int(time.time() * 1_000)
        metrics = []
        # after an error the store is asked anew: it may have taken a part
        logged, self.logged = self.logged, {}
        for point in curve[self.added :]:
            for name, value in point.values.items():
                if name not in logged:
                    logged[name] = _last_step(store, self.tracked.run_id, name)
                if point.step > logged[name]:
                    metrics.append(Metric(name, value, now_ms, point.step))
        for start in range(0, len(metrics), METRICS_PER_BATCH):
            store.log_batch(self.tracked.run_id, metrics=metrics[start : start + METRICS_PER_BATCH])
        self.added, self.logged = len(curve), logged


@mapped
def track(
    settings: Settings,
    experiment: str,
    name: str,
    params: Mapping[str, Any],
    tags: Mapping[str, str],
    parent: Tracked | None = None,
) -> Tracked:
    """This deployment's run called `name` of an experiment, or of a parent in it; made unless it exists."""
    above = "" if parent is None else parent.run_id
    key = short_digest(str(settings.home), experiment, above, name)
    tags = {**tags, **airflow_tags()}
    with _alone(settings):
        make_store(settings.mlflow_url)
        store = client(settings.mlflow_url)
        experiment_id = _experiment(store, settings, experiment)
        runs = store.search_runs([experiment_id], f"tags.`{KEY}` = '{key}'", max_results=1)
        if runs:
            tracked = Tracked(settings.mlflow_url, runs[0].info.run_id)
            store.update_run(tracked.run_id, status="RUNNING")
            tracked.tag(tags)
            if params and not runs[0].data.params:  # who made it was killed before they were logged
                _log_params(store, tracked.run_id, params)
            return tracked
        revision = running_revision()
        found = {
            "mlflow.source.name": "python -m vista",
            "mlflow.source.git.commit": revision.removesuffix("-dirty"),
            "vista.git_revision": revision,
            KEY: key,
        }
        nested = {PARENT: above} if above else {}
        run = store.create_run(experiment_id, tags={**found, **nested, **tags}, run_name=name)
        tracked = Tracked(settings.mlflow_url, run.info.run_id)
        _log_params(store, tracked.run_id, params)
    return tracked


def airflow_tags(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Airflow's ids of the task whose Ray job this is; empty elsewhere.

    >>> airflow_tags({JOB_CONFIG: '{"metadata": {"dag": "experiments", "map_index": "3"}}'})
    {'airflow.dag_id': 'experiments', 'airflow.map_index': '3'}
    """
    metadata = _job_metadata(environment)
    return {f"airflow.{word}": metadata[name] for name, word in AIRFLOW_IDS.items() if name in metadata}


def running_revision(environment: Mapping[str, str] = os.environ) -> str:
    """The revision of the code that runs: of a job, that of the sources which Airflow's operator has packed.

    >>> running_revision({JOB_CONFIG: '{"metadata": {"revision": "0123abc-dirty"}}'})
    '0123abc-dirty'
    """
    return _job_metadata(environment).get("revision") or git_revision()


def _job_metadata(environment: Mapping[str, str]) -> dict[str, str]:
    return dict(json.loads(environment.get(JOB_CONFIG, "{}")).get("metadata", {}))


def flattened(config: Frozen) -> dict[str, Any]:
    """A configuration as MLflow's parameters: nested names joined by dots."""

    def walk(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
        if isinstance(value, dict):
            for name, inner in value.items():
                yield from walk(f"{prefix}.{name}" if prefix else name, inner)
        else:
            yield prefix, value

    return dict(walk("", config.model_dump(mode="json")))


def _experiment(store: Any, settings: Settings, name: str) -> str:
    """The id of an experiment, made unless it exists; another machine may be making it too."""
    from mlflow.exceptions import MlflowException

    found = store.get_experiment_by_name(name)
    if found is None:
        try:
            made: str = store.create_experiment(name, artifact_location=_artifacts(settings, name))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = store.get_experiment_by_name(name)
        else:
            return made
    if found.lifecycle_stage != "active":
        raise BackendError(
            f"MLflow's experiment {name} is deleted: `mlflow experiments restore --experiment-id "
            f"{found.experiment_id}` brings it back, `mlflow gc` removes it"
        )
    experiment_id: str = found.experiment_id
    return experiment_id


def _log_params(store: Any, run_id: str, params: Mapping[str, Any]) -> None:
    from mlflow.entities import Param

    store.log_batch(
        run_id, params=[Param(name, str(value)[:MAX_PARAM_LENGTH]) for name, value in params.items()]
    )


def _last_step(store: Any, run_id: str, name: str) -> int:
    return max((metric.step for metric in store.get_metric_history(run_id, name)), default=0)


def _artifacts(settings: Settings, experiment: str) -> str | None:
    """Beside the embedded store; a server decides itself."""
    if file_of(settings.mlflow_url) is None:
        return None
    return (settings.home / "mlflow-artifacts" / experiment).absolute().as_uri()


@contextmanager
def _alone(settings: Settings) -> Iterator[None]:
    """One process at a time makes a SQLite store's schema and, of a deployment, an experiment or a run."""
    file = file_of(settings.mlflow_url)
    folder = settings.home if file is None else file.parent
    folder.mkdir(parents=True, exist_ok=True)
    with alone(folder / "mlflow.lock"):
        yield
