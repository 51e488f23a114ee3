"""MLflow: one run per model of a refresh, found again when a stage is repeated; curves logged exactly once.

The store's own history is the high-water mark: a batch of metrics is one transaction, so after a crash what
it holds is what need not be logged again.
"""

import fcntl
import logging
import os
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from vista.config import Frozen, Settings
from vista.errors import BackendError
from vista.train.state import Point

METRICS_PER_BATCH = 1_000  # MLflow's own limit
MAX_PARAM_LENGTH = 500
CANDIDATE_ALIAS = "candidate"
SQLITE = "sqlite:///"

P = ParamSpec("P")
R = TypeVar("R")


def _mapped(function: Callable[P, R]) -> Callable[P, R]:
    """What MLflow and its database raise, as `BackendError`."""

    @wraps(function)
    def mapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except Exception as error:
            if type(error).__module__.partition(".")[0] not in ("mlflow", "sqlalchemy", "alembic"):
                raise
            why = str(error).splitlines()[0]
            raise BackendError(
                f"MLflow: {type(error).__name__}: {why}; check MLFLOW_TRACKING_URI, and that the server "
                "answers or the file is whole"
            ) from error

    return mapped


@dataclass(frozen=True, slots=True)
class Tracked:
    """One MLflow run; a value, so that a worker can log into the run that its driver made."""

    url: str
    run_id: str

    @_mapped
    def finish(self, metrics: Mapping[str, float], artifacts: Mapping[str, Path]) -> None:
        """Log final metrics and artifact directories or files (name -> path) and end the run."""
        from mlflow.entities import Metric

        client = _client(self.url)
        known = client.get_run(self.run_id).data.metrics
        now_ms = int(time.time() * 1_000)
        new = [Metric(name, value, now_ms, 0) for name, value in metrics.items() if name not in known]
        client.log_batch(self.run_id, metrics=new)
        for name, path in artifacts.items():
            (client.log_artifacts if path.is_dir() else client.log_artifact)(self.run_id, str(path), name)
        client.set_terminated(self.run_id)

    @_mapped
    def register(self, name: str, artifact: str, tags: Mapping[str, str]) -> None:
        """Register an artifact of this run as a version of model `name`, alias `candidate`; idempotent."""
        from mlflow.exceptions import MlflowException

        client = _client(self.url)
        if not client.search_registered_models(filter_string=f"name = '{name}'"):
            try:
                client.create_registered_model(name)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
        versions = client.search_model_versions(f"run_id = '{self.run_id}'")
        if not versions:
            source = f"{client.get_run(self.run_id).info.artifact_uri}/{artifact}"
            versions = [client.create_model_version(name, source, self.run_id, tags=dict(tags))]
        client.set_registered_model_alias(name, CANDIDATE_ALIAS, versions[0].version)


class CurveLog:
    """Logs the growing curve of one training into its MLflow run, each point once."""

    def __init__(self, tracked: Tracked) -> None:
        self.tracked = tracked
        self.added = 0
        self.logged: dict[str, int] = {}

    @_mapped
    def add(self, curve: Sequence[Point]) -> None:
        """Log the points of `curve` that the store does not hold yet."""
        from mlflow.entities import Metric

        client = _client(self.tracked.url)
        now_ms = int(time.time() * 1_000)
        metrics = []
        for point in curve[self.added :]:
            for name, value in point.values.items():
                if name not in self.logged:
                    self.logged[name] = _last_step(client, self.tracked.run_id, name)
                if point.step > self.logged[name]:
                    metrics.append(Metric(name, value, now_ms, point.step))
        for start in range(0, len(metrics), METRICS_PER_BATCH):
            client.log_batch(self.tracked.run_id, metrics=metrics[start : start + METRICS_PER_BATCH])
        self.added = len(curve)


@_mapped
def track(
    settings: Settings, experiment: str, name: str, params: Mapping[str, Any], tags: Mapping[str, str]
) -> Tracked:
    """The MLflow run called `name` of an experiment, made if it does not exist yet."""
    with _alone(settings):
        _make_store(settings.mlflow_url)
        client = _client(settings.mlflow_url)
        found = client.get_experiment_by_name(experiment)
        experiment_id = (
            found.experiment_id
            if found is not None
            else client.create_experiment(experiment, artifact_location=_artifacts(settings, experiment))
        )
        runs = client.search_runs([experiment_id], f"tags.mlflow.runName = '{name}'", max_results=1)
        run = runs[0] if runs else client.create_run(experiment_id, tags=dict(tags), run_name=name)
        run_id: str = run.info.run_id
        if not runs:
            _log_params(client, run_id, params)
        else:
            client.update_run(run_id, status="RUNNING")
    return Tracked(settings.mlflow_url, run_id)


def flattened(config: Frozen) -> dict[str, Any]:
    """A configuration as MLflow's parameters: nested names joined by dots."""

    def walk(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
        if isinstance(value, dict):
            for name, inner in value.items():
                yield from walk(f"{prefix}.{name}" if prefix else name, inner)
        else:
            yield prefix, value

    return dict(walk("", config.model_dump(mode="json")))


def git_revision() -> str:
    """The revision of the code: `VISTA_GIT_REVISION`, else git's, else "unknown" (an unpacked archive)."""
    if "VISTA_GIT_REVISION" in os.environ:
        return os.environ["VISTA_GIT_REVISION"]
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else "unknown"


def _log_params(client: Any, run_id: str, params: Mapping[str, Any]) -> None:
    from mlflow.entities import Param

    client.log_batch(
        run_id, params=[Param(name, str(value)[:MAX_PARAM_LENGTH]) for name, value in params.items()]
    )


def _last_step(client: Any, run_id: str, name: str) -> int:
    return max((metric.step for metric in client.get_metric_history(run_id, name)), default=0)


def _client(url: str) -> Any:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    logging.getLogger("alembic").setLevel(logging.WARNING)  # a line per migration of a new store
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=url, registry_uri=url)


def _make_store(url: str) -> None:
    """The tables of a new SQLite store, whole or not at all; only one process at a time may call it.

    MLflow refuses a store for ever whose first migrations were cut off in the middle.
    """
    path = Path(url.removeprefix(SQLITE))
    if not url.startswith(SQLITE) or path.exists():
        return
    for left in path.parent.glob(f".{path.name}.*"):
        left.unlink()
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    _client(f"{SQLITE}{unfinished}").search_experiments()
    unfinished.rename(path)


def _artifacts(settings: Settings, experiment: str) -> str | None:
    """Beside the embedded store; a server decides itself."""
    if not settings.mlflow_url.startswith("sqlite:"):
        return None
    return (settings.home / "mlflow-artifacts" / experiment).absolute().as_uri()


@contextmanager
def _alone(settings: Settings) -> Iterator[None]:
    """One process at a time makes the store's schema, an experiment or a run."""
    settings.home.mkdir(parents=True, exist_ok=True)
    with (settings.home / "mlflow.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
