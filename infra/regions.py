"""The delivery's workers of the local stack, one per region."""

import sys
from collections.abc import Mapping
from pathlib import Path

from infra.environment import ROOT
from infra.http_calls import says
from infra.servers import HOST, Server, kept_ports, private_folder

START_S = 60.0


def region_worker(place: Path, region: str, environment: Mapping[str, str]) -> tuple[Server, str]:
    """A worker that is not started yet, and the address of its metrics; `ready` when it tells its health, and
    not that it waits for a first delivery."""
    place = private_folder(place)
    (port,) = kept_ports(place, 1)
    command = [sys.executable, "-m", "vista", "deliver", "--region", region, "--port", str(port)]
    health = f"http://{HOST}:{port}/healthz"
    own = {**environment, "PYTHONPATH": str(ROOT)}
    server = Server(f"delivery-{region}", place, command, lambda: _delivers(health), START_S, own)
    return server, f"{HOST}:{port}"


def _delivers(health: str) -> bool:
    said = says(health)
    return said is not None and not said["waiting"]
