"""A Ray head of one's own: loopback, own ports, own token, nothing left behind.

`python -m infra.ray_head LOGS` starts one for a program of Airflow's environment: it prints where the head is
as JSON when it takes jobs, and stops it when standard input ends.
"""

import json
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from infra.http_calls import answers
from infra.kept_secrets import kept_secret
from infra.ports import free_block
from infra.processes import guarded, stop, wait_until
from infra.servers import Server, kept_ports, private_folder, running
from vista.errors import BackendError

START_S = 180.0  # 8 s on two idle cores, a minute on a busy machine
HEALTH = "/api/local_raylet_healthz"
CPUS = 2
OBJECT_STORE_BYTES = 512 * 2**20
WORKER_PORTS = 300
PORTS = (
    "port", "dashboard-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port",
    "runtime-env-agent-port", "metrics-export-port", "node-manager-port", "object-manager-port",
    "ray-client-server-port",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class HeadAddress:
    """Where a head is, also after it was killed and started again: the first of its ports, and its token.

    `token` is a secret: it may be in environments, never in arguments or logs.
    """

    first_port: int
    token: str

    @property
    def ports(self) -> dict[str, int]:
        """Ray's option -> port."""
        return {name: self.first_port + number for number, name in enumerate(PORTS)}

    @property
    def url(self) -> str:
        """The dashboard's, for the Jobs API."""
        return f"http://127.0.0.1:{self.ports['dashboard-port']}"

    @property
    def agent_url(self) -> str:
        """That of the agent which starts the jobs."""
        return f"http://127.0.0.1:{self.ports['dashboard-agent-listen-port']}"


def new_address() -> HeadAddress:
    """Free ports and a token that nobody else has."""
    return HeadAddress(free_block(WORKER_PORTS + 10), secrets.token_urlsafe(32))


@dataclass(frozen=True, slots=True)
class RayHead:
    """A started head."""

    address: HeadAddress
    guard: "subprocess.Popen[bytes]"

    def stop(self) -> None:
        """Stop the head and every process below it."""
        stop(self.guard)


@dataclass(frozen=True, slots=True)
class Ray:
    """A head as a server of the local stack, which may be started again."""

    server: Server
    address: HeadAddress


def start_ray_head(
    address: HeadAddress,
    environment: Mapping[str, str],
    log: IO[bytes],
    logs: Path,
    lock: int | None,
    workers: int,
) -> RayHead:
    """Start a head whose jobs see `environment`, with a CPU per worker; call `wait_for` before using it.

    `log` gets its screen output; `logs` is the directory that gets Ray's own logs when it has ended.
    """
    scratch = _scratch()
    command, own = _command(address, scratch, workers), _environment(address)
    guard = guarded(command, {**environment, **own}, log=log, scratch=scratch, logs=logs, lock=lock)
    return RayHead(address, guard)


@contextmanager
def running_ray(place: Path, environment: Mapping[str, str]) -> Iterator[Ray]:
    """A head with a CPU per core of this machine; ports and token are kept. Its jobs see `environment`."""
    place = private_folder(place)
    address = HeadAddress(kept_ports(place, WORKER_PORTS + 10)[0], kept_secret(place, "token"))
    scratch = _scratch()
    command = _command(address, scratch, os.cpu_count() or 1)
    own = {**environment, **_environment(address)}
    server = Server("ray", place, command, lambda: _takes_jobs(address), START_S, own, scratch=scratch)
    with running([server]):
        yield Ray(server, address)


def connection(url: str, token: str) -> dict[str, str]:
    """Airflow's connection to a head, as a variable."""
    found = {"conn_type": "generic", "host": url, "password": token}
    return {"AIRFLOW_CONN_RAY_DEFAULT": json.dumps(found)}


def _scratch() -> Path:
    return Path(tempfile.mkdtemp(prefix="vista-ray-"))  # Ray's sockets need a short path


def _command(address: HeadAddress, scratch: Path, workers: int) -> list[str]:
    first_worker = address.first_port + 10
    return [
        str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--disable-usage-stats",
        "--node-ip-address=127.0.0.1", "--include-dashboard=true", "--dashboard-host=127.0.0.1",
        f"--num-cpus={max(CPUS, workers)}", f"--object-store-memory={OBJECT_STORE_BYTES}",
        f"--temp-dir={scratch}",
        *(f"--{name}={port}" for name, port in address.ports.items()),
        f"--min-worker-port={first_worker}", f"--max-worker-port={first_worker + WORKER_PORTS - 1}",
    ]  # fmt: skip


def _environment(address: HeadAddress) -> dict[str, str]:
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": address.token,
        "RAY_ADDRESS": f"127.0.0.1:{address.ports['port']}",  # whoever asks must not find another head here
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # elsewhere than there it takes 127.0.0.1 for any interface
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        "RAY_raylet_start_wait_time_s": "60",  # it ends after 30 s without its agents, unheard
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # processes that a single node has no use for
        "RAY_TRAIN_METRICS_ENABLED": "0",
    }


def wait_for(head: RayHead, logs: Path) -> None:
    """Return when the head takes jobs. Raises `BackendError` if it ends or takes too long."""

    def settled() -> bool:
        return head.guard.poll() is not None or _takes_jobs(head.address)

    if not wait_until(settled, START_S, every_s=0.25) or head.guard.poll() is not None:
        raise BackendError(f"the local Ray head did not start within {START_S:.0f} s: see {logs}")


def _takes_jobs(address: HeadAddress) -> bool:
    login = {"Authorization": f"Bearer {address.token}"}
    return answers(address.url + "/api/version", login) and answers(address.agent_url + HEALTH, login)


def main(logs: Path) -> int:
    """Start a head, say where it is, stop it when standard input ends."""
    logs.mkdir(parents=True, exist_ok=True)
    with (logs / "head.log").open("ab") as log:
        head = start_ray_head(new_address(), os.environ, log, logs, None, CPUS)
        try:
            wait_for(head, logs)
            print(json.dumps({"url": head.address.url, "token": head.address.token}), flush=True)
            sys.stdin.read()
        finally:
            head.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
