"""A Ray head of one's own: loopback, own ports, own token, nothing left behind."""

import secrets
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from infra.ports import free_block
from infra.processes import guarded, stop, wait_until
from vista.errors import BackendError

START_S = 180.0  # 8 s on two idle cores, a minute on a busy machine
HEALTH = "/api/local_raylet_healthz"
CPUS = 2
OBJECT_STORE_BYTES = 512 * 2**20
WORKER_PORTS = 300


@dataclass(frozen=True, slots=True)
class RayHead:
    """A started head. `token` is a secret: it may be in environments, never in arguments or logs.

    `url` is the dashboard's, for the Jobs API; `agent_url` is that of the agent which starts the jobs.
    """

    url: str
    agent_url: str
    token: str
    guard: "subprocess.Popen[bytes]"

    def stop(self) -> None:
        """Stop the head and every process below it."""
        stop(self.guard)


def start_ray_head(
    environment: Mapping[str, str], log: IO[bytes], logs: Path, lock: int, workers: int
) -> RayHead:
    """Start a head whose jobs see `environment`, with a CPU per worker; call `wait_for` before using it.

    `log` gets its screen output; `logs` is the directory that gets Ray's own logs when it has ended.
    """
    token = secrets.token_urlsafe(32)
    first = free_block(WORKER_PORTS + 10)
    scratch = Path(tempfile.mkdtemp(prefix="vista-ray-"))  # Ray's sockets need a short path
    scratch.chmod(0o700)
    names = (
        "port", "dashboard-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port",
        "runtime-env-agent-port", "metrics-export-port", "node-manager-port", "object-manager-port",
        "ray-client-server-port",
    )  # fmt: skip
    ports = {name: first + number for number, name in enumerate(names)}
    command = [
        str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--disable-usage-stats",
        "--node-ip-address=127.0.0.1", "--include-dashboard=true", "--dashboard-host=127.0.0.1",
        f"--num-cpus={max(CPUS, workers)}", f"--object-store-memory={OBJECT_STORE_BYTES}",
        f"--temp-dir={scratch}",
        *(f"--{name}={port}" for name, port in ports.items()),
        f"--min-worker-port={first + 10}", f"--max-worker-port={first + 9 + WORKER_PORTS}",
    ]  # fmt: skip
    own = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token,
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        "RAY_raylet_start_wait_time_s": f"{START_S:.0f}",
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # processes that a single node has no use for
        "RAY_TRAIN_METRICS_ENABLED": "0",
    }
    guard = guarded(command, {**environment, **own}, log=log, scratch=scratch, logs=logs, lock=lock)
    return RayHead(
        f"http://127.0.0.1:{ports['dashboard-port']}",
        f"http://127.0.0.1:{ports['dashboard-agent-listen-port']}",
        token,
        guard,
    )


def wait_for(head: RayHead, logs: Path) -> None:
    """Return when the head takes jobs. Raises `BackendError` if it ends or takes too long."""

    def settled() -> bool:
        ended = head.guard.poll() is not None
        return ended or (_answers(head, head.url, "/api/version") and _answers(head, head.agent_url, HEALTH))

    if not wait_until(settled, START_S, every_s=0.25) or head.guard.poll() is not None:
        raise BackendError(f"the local Ray head did not start within {START_S:.0f} s: see {logs}")


def _answers(head: RayHead, url: str, path: str) -> bool:
    request = urllib.request.Request(url + path)
    request.add_header("Authorization", f"Bearer {head.token}")
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(request, timeout=5) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False
