"""Airflow's four services, each a server of its own that can be killed alone; no `airflow standalone`, which
leaves processes behind. Accounts and keys are made once and kept in the place.
"""

import base64
import contextlib
import json
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infra.servers import (
    HOST,
    Server,
    call,
    kept_password,
    kept_ports,
    private_folder,
    running,
    write_private,
)
from vista.errors import BackendError

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = ROOT / ".venv-airflow" / "bin" / "airflow"
USER = "admin"
START_S = 180.0  # 15 s on two idle cores
ANSWER_S = 60.0
TRAINING_POOL = "vista_training"  # that of vista.orchestration.stages, which needs Airflow
TASKS_AT_ONCE = 4
"""Each is a process of 150 MB; a task that waits for Ray is none."""


@dataclass
class Airflow:
    """Running services by name, and a client of their REST API."""

    url: str
    place: Path
    services: Mapping[str, Server]
    _token: str = field(default="", repr=False)

    def call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """What `path` below /api/v2 answers, as JSON. Raises `BackendError`."""
        if not self._token:
            login = {"username": USER, "password": _password(self.place)}
            self._token = _ask("POST", f"{self.url}/auth/token", login, "")["access_token"]
        return _ask(method, f"{self.url}/api/v2{path}", body, self._token)

    def pool(self, name: str, slots: int) -> None:
        """Make the pool if it is not there. Tasks that wait for something else keep their slots."""
        pools = self.call("GET", "/pools?limit=1000")["pools"]
        if name not in [known["name"] for known in pools]:
            self.call("POST", "/pools", {"name": name, "slots": slots, "include_deferred": True})


@contextmanager
def running_airflow(place: Path, dags: Path, environment: Mapping[str, str]) -> Iterator[Airflow]:
    """The services over a database in the folder; their tasks see `environment` too."""
    place = private_folder(place)
    page, worker_logs, trigger_logs = kept_ports(place, 3)
    settings = {**_settings(place, dags, page, worker_logs, trigger_logs), **environment}
    _make_database(place, settings)
    url = f"http://{HOST}:{page}"

    def service(name: str, health: str, *options: str) -> Server:
        command = [str(PROGRAM), name, *options]
        return Server(name, place, command, lambda: _beats(url, health), START_S, settings)

    services = [
        service("api-server", "metadatabase", "--host", HOST, "--port", str(page), "--workers", "1"),
        service("scheduler", "scheduler"),
        service("dag-processor", "dag_processor"),
        service("triggerer", "triggerer"),
    ]
    with running(services):
        airflow = Airflow(url, place, {server.name: server for server in services})
        airflow.pool(TRAINING_POOL, 1)
        yield airflow


def _settings(place: Path, dags: Path, page: int, worker_logs: int, trigger_logs: int) -> dict[str, str]:
    """Airflow's options as variables; secrets are in them, and nowhere else but in private files."""
    passwords = place / "accounts.json"
    write_private(passwords, json.dumps({USER: _password(place)}))
    key = base64.urlsafe_b64encode(kept_password(place / "fernet.key").encode()[:32]).decode()
    options = {
        "CORE__DAGS_FOLDER": dags,
        "CORE__LOAD_EXAMPLES": False,
        "CORE__PARALLELISM": TASKS_AT_ONCE,
        "CORE__FERNET_KEY": key,
        "CORE__EXECUTION_API_SERVER_URL": f"http://{HOST}:{page}/execution/",
        "CORE__SIMPLE_AUTH_MANAGER_USERS": f"{USER}:admin",
        "CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": passwords,
        "DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{_database(place)}",
        "API__BASE_URL": f"http://{HOST}:{page}",
        "API__SECRET_KEY": kept_password(place / "api.key"),
        "API_AUTH__JWT_SECRET": kept_password(place / "jwt.key") * 3,  # it wants 64 characters
        "LOGGING__WORKER_LOG_SERVER_PORT": worker_logs,
        "LOGGING__TRIGGER_LOG_SERVER_PORT": trigger_logs,
        "USAGE_DATA_COLLECTION__ENABLED": False,
    }
    return {
        "AIRFLOW_HOME": str(place / "home"),
        "PYTHONPATH": str(ROOT),
        **{f"AIRFLOW__{name}": str(value) for name, value in options.items()},
    }


def _database(place: Path) -> Path:
    return place / "airflow.db"


def _make_database(place: Path, settings: Mapping[str, str]) -> None:
    # One whose first migrations were cut off could never be upgraded.
    if _database(place).exists():
        return
    part = place / "airflow.db.part"
    part.unlink(missing_ok=True)
    where = {**settings, "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{part}"}
    call([str(PROGRAM), "db", "migrate"], f"making {_database(place)}", environment=where)
    part.replace(_database(place))


def _password(place: Path) -> str:
    return kept_password(place / f"{USER}.password")


def _beats(url: str, part: str) -> bool:
    with contextlib.suppress(BackendError):
        return bool(_ask("GET", f"{url}/api/v2/monitor/health", None, "")[part]["status"] == "healthy")
    return False


def _ask(method: str, url: str, body: Mapping[str, Any] | None, token: str) -> Any:
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    headers |= {"Authorization": f"Bearer {token}"} if token else {}
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, headers, method=method)
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(request, timeout=ANSWER_S) as response:
            text = response.read()
    except urllib.error.HTTPError as error:
        raise BackendError(f"{method} {url} answered {error.code}: {error.read().decode()}") from error
    except OSError as error:
        raise BackendError(f"{url} cannot be reached: {error}") from error
    return json.loads(text) if text else None
