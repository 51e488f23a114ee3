"""MLflow's server over PostgreSQL or SQLite; files of runs go through it."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from infra.environment import ROOT
from infra.http_calls import answers
from infra.postgres import Database
from infra.servers import HOST, Server, call, kept_ports, private_folder, running

START_S = 180.0  # 8 s on two idle cores; its tables take 20 s more in PostgreSQL
OPTIONS = {
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # a GB of processes that nobody here needs
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


@dataclass(frozen=True, slots=True)
class Mlflow:
    """A running server; `url` is its page and its API."""

    server: Server
    url: str


@contextmanager
def running_mlflow(place: Path, database: Database | None = None) -> Iterator[Mlflow]:
    """A server over a database, by default SQLite's in the folder."""
    place = private_folder(place)
    (port,) = kept_ports(place, 1)
    store, environment = f"sqlite:///{place / 'mlflow.db'}", OPTIONS
    if database:
        store, environment = database.url, {**OPTIONS, **database.environment}
    else:
        make = [sys.executable, "-m", "vista.train.mlflow_store", store]  # importing mlflow takes memory
        call(make, f"making {store}", environment={**OPTIONS, "PYTHONPATH": str(ROOT)})
    url = f"http://{HOST}:{port}"
    command = [
        sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store,
        "--artifacts-destination", str(place / "artifacts"), "--host", HOST, "--port", str(port),
        "--workers", "1", "--allowed-hosts", f"{HOST}:{port},localhost:{port}",
    ]  # fmt: skip
    search = f"{url}/api/2.0/mlflow/experiments/search?max_results=1"
    server = Server("mlflow", place, command, lambda: answers(search), START_S, environment)
    with running([server]):
        yield Mlflow(server, url)
