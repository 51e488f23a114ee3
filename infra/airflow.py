"""Airflow's four services, each a server of its own that can be killed alone; no `airflow standalone`, which
leaves processes behind. Accounts and keys are made once and kept in the place.
"""

import base64
import contextlib
import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from infra.kept_secrets import kept_secret
from infra.postgres import Database
from infra.servers import (
    HOST,
    Server,
    call,
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
NO_LOG_SERVER = "--skip-serve-logs"
LOGGING = "vista.orchestration.local_logs.LOGGING"
"""A log server would listen beyond loopback; the pages read the files of this machine."""

LOST_TASK_S = 60
"""After so long a task whose process was killed with the scheduler is tried again; Airflow's own is 300 s."""

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
            login = {"username": USER, "password": kept_secret(self.place, USER)}
            self._token = _ask("POST", f"{self.url}/auth/token", login, "")["access_token"]
        return _ask(method, f"{self.url}/api/v2{path}", body, self._token)

    def pool(self, name: str, slots: int) -> None:
        """Make the pool if it is not there. Tasks that wait for something else keep their slots."""
        pools = self.call("GET", "/pools?limit=1000")["pools"]
        if name not in [known["name"] for known in pools]:
            self.call("POST", "/pools", {"name": name, "slots": slots, "include_deferred": True})


@contextmanager
def running_airflow(
    place: Path, dags: Path, environment: Mapping[str, str], database: Database | None = None
) -> Iterator[Airflow]:
    """The services over a database, by default SQLite's in the folder; their tasks see `environment` too."""
    place = private_folder(place)
    (page,) = kept_ports(place, 1)
    settings = {**_settings(place, dags, page), **environment}
    if database:
        settings |= _in(database.url) | database.environment
        call([str(PROGRAM), "db", "migrate"], "making Airflow's tables", environment=settings)
    else:
        settings |= _in(f"sqlite:///{_sqlite(place)}")
        _make_sqlite(place, settings)
    url = f"http://{HOST}:{page}"

    def service(name: str, health: str, *options: str) -> Server:
        command = [str(PROGRAM), name, *options]
        server = Server(
            name, place, command, lambda: _beats(url, health, server.started_s), START_S, settings
        )
        return server

    services = [
        service("api-server", "metadatabase", "--host", HOST, "--port", str(page), "--workers", "1"),
        service("scheduler", "scheduler", NO_LOG_SERVER),
        service("dag-processor", "dag_processor"),
        service("triggerer", "triggerer", NO_LOG_SERVER),
    ]
    with running(services):
        airflow = Airflow(url, place, {server.name: server for server in services})
        airflow.pool(TRAINING_POOL, 1)
        yield airflow


def _settings(place: Path, dags: Path, page: int) -> dict[str, str]:
    """Airflow's options as variables; secrets are in them, and nowhere else but in private files."""
    passwords = place / "accounts.json"
    write_private(passwords, json.dumps({USER: kept_secret(place, USER)}))
    key = base64.urlsafe_b64encode(kept_secret(place, "fernet key").encode()[:32]).decode()
    options = {
        "CORE__DAGS_FOLDER": dags,
        "CORE__LOAD_EXAMPLES": False,
        "CORE__PARALLELISM": TASKS_AT_ONCE,
        "CORE__FERNET_KEY": key,
        "CORE__EXECUTION_API_SERVER_URL": f"http://{HOST}:{page}/execution/",
        "CORE__SIMPLE_AUTH_MANAGER_USERS": f"{USER}:admin",
        "CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": passwords,
        "LOGGING__LOGGING_CONFIG_CLASS": LOGGING,
        "API__BASE_URL": f"http://{HOST}:{page}",
        "API__SECRET_KEY": kept_secret(place, "api key"),
        "API_AUTH__JWT_SECRET": kept_secret(place, "jwt key") * 3,  # it wants 64 characters
        "SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": LOST_TASK_S,
        "SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": LOST_TASK_S,
        "USAGE_DATA_COLLECTION__ENABLED": False,
    }
    return {
        "AIRFLOW_HOME": str(place / "home"),
        "PYTHONPATH": str(ROOT),
        **{f"AIRFLOW__{name}": str(value) for name, value in options.items()},
    }


def _in(url: str) -> dict[str, str]:
    names = (
        ("SQL_ALCHEMY_CONN",) if url.startswith("sqlite") else ("SQL_ALCHEMY_CONN", "SQL_ALCHEMY_CONN_ASYNC")
    )
    return {f"AIRFLOW__DATABASE__{name}": url for name in names}


def _sqlite(place: Path) -> Path:
    return place / "airflow.db"


def _make_sqlite(place: Path, settings: Mapping[str, str]) -> None:
    # One whose first migrations were cut off could never be upgraded.
    if _sqlite(place).exists():
        return
    part = place / "airflow.db.part"
    part.unlink(missing_ok=True)
    where = {**settings, **_in(f"sqlite:///{part}")}
    call([str(PROGRAM), "db", "migrate"], f"making {_sqlite(place)}", environment=where)
    part.replace(_sqlite(place))


def _beats(url: str, part: str, since_s: float) -> bool:
    """Whether a part is healthy, by a heartbeat that is not an earlier process's."""
    with contextlib.suppress(BackendError):
        found = _ask("GET", f"{url}/api/v2/monitor/health", None, "")[part]
        latest = found.get(f"latest_{part}_heartbeat")
        newer = latest is None or datetime.fromisoformat(latest).timestamp() > since_s
        return bool(found["status"] == "healthy" and newer)
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
    except (OSError, http.client.HTTPException) as error:
        raise BackendError(f"{url} cannot be reached: {error}") from error
    return json.loads(text) if text else None
