"""Prometheus over the delivery's workers, with the platform's alerts."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from infra.http_calls import answers
from infra.servers import (
    CONF,
    HOST,
    Server,
    filled,
    kept_ports,
    private_folder,
    program,
    running,
    write_private,
)

START_S = 60.0
RULES = CONF / "prometheus" / "alerts.yml"


@dataclass(frozen=True, slots=True)
class Prometheus:
    """A running server; `url` is its page and its API."""

    server: Server
    url: str


@contextmanager
def running_prometheus(place: Path, workers: Sequence[str]) -> Iterator[Prometheus]:
    """A server that asks the workers, which are addresses, for their metrics; a week of them is kept."""
    place = private_folder(place)
    (port,) = kept_ports(place, 1)
    text = filled("prometheus/prometheus.yml", rules=RULES, workers=json.dumps([*workers]))
    write_private(place / "prometheus.yml", text)
    command = [
        program("prometheus"), f"--config.file={place / 'prometheus.yml'}",
        f"--web.listen-address={HOST}:{port}", f"--storage.tsdb.path={place / 'data'}",
        "--storage.tsdb.retention.time=7d", "--log.level=warn",
    ]  # fmt: skip
    url = f"http://{HOST}:{port}"
    server = Server("prometheus", place, command, lambda: answers(f"{url}/-/ready"), START_S)
    with running([server]):
        yield Prometheus(server, url)
