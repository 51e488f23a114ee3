"""An S3 in memory (moto's server), for tests: nothing is left when it stops."""

import http.client
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from infra.servers import HOST, Server, kept_ports, private_folder, running

START_S = 60.0


@dataclass(frozen=True, slots=True)
class S3:
    """A running server. It lets everybody in; clients must show some name and password all the same."""

    server: Server
    endpoint: str
    user: str = "vista"
    password: str = "vista"


@contextmanager
def running_s3(place: Path) -> Iterator[S3]:
    """A server without buckets."""
    place = private_folder(place)
    (port,) = kept_ports(place, 1)
    command = [sys.executable, "-m", "moto.server", "--host", HOST, "--port", str(port)]
    server = Server("s3", place, command, lambda: _lists_buckets(port), START_S)
    with running([server]):
        yield S3(server, f"http://{HOST}:{port}")


def _lists_buckets(port: int) -> bool:
    connection = http.client.HTTPConnection(HOST, port, timeout=10)
    with suppress(OSError, http.client.HTTPException):
        connection.request("GET", "/", headers={"Host": f"{HOST}:{port}"})
        return b"<ListAllMyBucketsResult" in connection.getresponse().read()
    return False
