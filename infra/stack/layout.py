"""What a local stack consists of, in the order in which its parts need each other."""

import os
from collections.abc import Mapping
from pathlib import Path
from shlex import quote

from infra.airflow import PROGRAM, USER, running_airflow
from infra.backends import REGIONS, start_backends
from infra.environment import BACKENDS, ROOT, jobs_environment, place_of
from infra.kept_secrets import SECRETS, keep_together
from infra.mlflow import running_mlflow
from infra.postgres import Database
from infra.prometheus import running_prometheus
from infra.ray_head import connection, running_ray
from infra.regions import region_worker
from infra.servers import write_private
from infra.services import Services

HOME = "home"
ENVIRONMENT = "environment"
DEPLOYMENT = ("VISTA_HOME", "VISTA_RUNS", "MLFLOW_TRACKING_URI", *BACKENDS)
"""What `Settings` reads."""
AIRFLOW_CLI = "airflow/cli"


def start(services: Services, place: Path, *, embedded: bool) -> tuple[str, ...]:
    """Start everything; what a user wants to know of it, a line each. Raises `BackendError`."""
    keep_together(place)
    if embedded:
        return _start_orchestration(services, place, {}, None, None)
    backends = start_backends(services, place)
    databases = (backends.postgres.database("airflow"), backends.postgres.database("mlflow"))
    pages = _start_orchestration(services, place, backends.environment, *databases)
    return (*pages, *_start_delivery(services, place, backends.environment))


def _start_orchestration(
    services: Services,
    place: Path,
    backends: Mapping[str, str],
    airflow_database: Database | None,
    mlflow_database: Database | None,
) -> tuple[str, ...]:
    mlflow = services.enter("mlflow", running_mlflow(place / "mlflow", mlflow_database))
    services.ready("mlflow", mlflow.server, mlflow.url)
    runs = place_of("VISTA_RUNS", ROOT / "runs", os.environ)
    environment = jobs_environment(runs, place / HOME, mlflow.url, backends)
    write_environment(place, environment)
    ray = services.enter("ray", running_ray(place / "ray", environment))
    services.ready("ray", ray.server, ray.address.url)
    theirs = {**environment, **connection(ray.address.url, ray.address.token)}
    running = running_airflow(place / "airflow", ROOT / "dags", theirs, airflow_database)
    airflow = services.enter("airflow", running)
    write_airflow_cli(place, airflow.services["scheduler"].environment)
    for name, server in airflow.services.items():
        services.ready(f"airflow-{name}", server, airflow.url if name == "api-server" else "-")
    return (
        f"Airflow  {airflow.url}  user {USER}, password in {place / SECRETS}: airflow/{USER}",
        f"MLflow   {mlflow.url}",
        f"Ray      {ray.address.url}  token in {place / SECRETS}: ray/token",
    )


def _start_delivery(services: Services, place: Path, backends: Mapping[str, str]) -> tuple[str, ...]:
    environment = {**backends, "VISTA_HOME": str(place / HOME)}
    workers = {region: region_worker(place / f"delivery-{region}", region, environment) for region in REGIONS}
    addresses = [address for _, address in workers.values()]
    prometheus = services.enter("prometheus", running_prometheus(place / "prometheus", addresses))
    services.ready("prometheus", prometheus.server, prometheus.url)
    for region, (server, address) in workers.items():
        services.add(f"delivery-{region}", server, address)
    return (f"Alerts   {prometheus.url}/alerts",)


def write_environment(place: Path, environment: Mapping[str, str]) -> None:
    """For a shell that wants to look at the deployment by `python -m vista`, whatever it looked at before."""
    lines = [
        f"export {name}={quote(environment[name])}\n" if name in environment else f"unset {name}\n"
        for name in DEPLOYMENT
    ]
    write_private(place / ENVIRONMENT, "".join(lines))


def write_airflow_cli(place: Path, environment: Mapping[str, str]) -> None:
    """Airflow's own command line, on this stack's tables. It holds the stack's keys. A program and not a file
    to source: the next stack or run of that shell would take its values over."""
    exports = [
        f"export {name}={quote(value)}\n"
        for name, value in sorted(environment.items())
        if name.startswith("AIRFLOW_") or name in ("PGPASSFILE", "PYTHONPATH")
    ]
    path = place / AIRFLOW_CLI
    write_private(path, "".join(("#!/bin/sh\n", *exports, f'exec {quote(str(PROGRAM))} "$@"\n')))
    path.chmod(0o700)
