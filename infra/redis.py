"""Redis 7: alone, a primary and a replica below three Sentinels, a Cluster of 3 + 3; with TLS if asked.

There are two users: `admin`, the launcher's, and `vista`, who may touch the keys of the stores only.
`python -m infra.redis COMMAND ...` runs a command with the URL of a fresh server as its last argument.
"""

import hashlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlencode

from infra.kept_secrets import kept_secret, password_file
from infra.processes import wait_until
from infra.servers import (
    HOST,
    Server,
    call,
    filled,
    kept_ports,
    private_folder,
    program,
    running,
    write_private,
)
from infra.tls import Certificates
from vista.errors import BackendError

START_S = 30.0
MEET_S = 60.0  # 5 s for a Cluster of six on two idle cores
PRIMARY_NAME = "vista"
"""The name under which the Sentinels know the primary."""


@dataclass(frozen=True, slots=True)
class Node:
    """One process of Redis or of Sentinel, and how its administrator gets in."""

    server: Server
    port: int
    user: str
    password: str = field(repr=False)
    certificates: Certificates | None = None

    def ask(self, *words: str) -> str:
        """What it answers to one command. Raises `BackendError`: refused or out of reach."""
        trust = ["--tls", "--cacert", str(self.certificates.authority)] if self.certificates else []
        access = ["-e", "-h", HOST, "-p", str(self.port), "--user", self.user, *trust]
        environment = {"REDISCLI_AUTH": self.password}
        what = f"{words[0]} on {self.server.name}"
        return call([program("redis-cli"), *access, *words], what, environment=environment).strip()

    def fields(self, *words: str) -> dict[str, str]:
        """The `name:value` lines that it answers to one command."""
        pairs = (line.partition(":") for line in self.ask(*words).splitlines())
        return {name: value.strip() for name, _, value in pairs}


@dataclass(frozen=True, slots=True)
class Redis:
    """A region's store: its nodes, the Sentinels that watch them, the file with the password of `vista`."""

    nodes: Sequence[Node]
    vista_password: Path
    sentinels: Sequence[Node] = ()

    @property
    def url(self) -> str:
        """What a region's store is opened with."""
        kind = "+sentinel" if self.sentinels else "+cluster" if len(self.nodes) > 1 else ""
        hosts = ",".join(f"{HOST}:{node.port}" for node in self.sentinels or self.nodes)
        name = f"/{PRIMARY_NAME}" if self.sentinels else ""
        options = {"password_file": str(self.vista_password)}
        if certificates := self.nodes[0].certificates:
            options["ca"] = str(certificates.authority)
        scheme = f"{'rediss' if certificates else 'redis'}{kind}"
        return f"{scheme}://vista@{hosts}{name}?{urlencode(options, safe='/')}"

    def wipe(self) -> None:
        """Forget all keys; functions stay."""
        for node in self.nodes:
            if node.fields("INFO", "replication")["role"] == "master":
                node.ask("FLUSHALL")


@contextmanager
def running_redis(place: Path, certificates: Certificates | None = None) -> Iterator[Redis]:
    """One node; with certificates it takes only TLS connections, like all below."""
    place = private_folder(place)
    (port,) = kept_ports(place, 1)
    node = _node(place, "redis", port, "", certificates)
    with running([node.server]):
        yield Redis([node], password_file(place, "vista"))


@contextmanager
def running_sentinel(place: Path, certificates: Certificates | None = None) -> Iterator[Redis]:
    """A primary with one replica, and three Sentinels that replace it when it is silent for a second."""
    place = private_folder(place)
    primary_port, replica_port, *ports = kept_ports(place, 5)
    primary = _node(place, "redis-0", primary_port, "", certificates)
    replica = _node(place, "redis-1", replica_port, f"replicaof {HOST} {primary_port}\n", certificates)
    sentinels = [
        _sentinel(place, f"sentinel-{n}", port, primary_port, certificates) for n, port in enumerate(ports)
    ]
    with running([primary.server, replica.server]):
        _wait(lambda: _follows(replica), f"the replica in {place} did not follow its primary")
        with running([sentinel.server for sentinel in sentinels]):
            _wait(lambda: all(map(_sees_all, sentinels)), f"the Sentinels in {place} did not meet")
            yield Redis([primary, replica], password_file(place, "vista"), sentinels)


@contextmanager
def running_cluster(place: Path, certificates: Certificates | None = None) -> Iterator[Redis]:
    """Three primaries with a replica each, all slots taken, every node in sight of every other."""
    place = private_folder(place)
    ports = kept_ports(place, 12)
    nodes = [
        _node(place, f"redis-{n}", port, filled("redis/cluster.conf", bus_port=bus_port), certificates)
        for n, (port, bus_port) in enumerate(zip(ports[:6], ports[6:], strict=True))
    ]
    with running([node.server for node in nodes]):
        if nodes[0].fields("CLUSTER", "INFO")["cluster_known_nodes"] == "1":
            addresses = [f"{HOST}:{node.port}" for node in nodes]
            nodes[0].ask("--cluster", "create", *addresses, "--cluster-replicas", "1", "--cluster-yes")
        _wait(lambda: _whole(nodes), f"the Cluster in {place} did not form")
        yield Redis(nodes, password_file(place, "vista"))


def _node(place: Path, name: str, port: int, extra: str, certificates: Certificates | None) -> Node:
    own = private_folder(place / name)
    admin, vista = (kept_secret(place, user) for user in ("admin", "vista"))
    hashes = {"admin_sha256": _sha256(admin), "vista_sha256": _sha256(vista)}
    write_private(own / "users.acl", filled("redis/users.acl", **hashes))
    base = filled("redis/redis.conf", port=port, place=own, users=own / "users.acl", password=admin)
    write_private(own / "redis.conf", base + extra + _tls(port, certificates))
    command = [program("redis-server"), str(own / "redis.conf")]
    node = Node(
        Server(name, own, command, lambda: _answers(node), START_S), port, "admin", admin, certificates
    )
    return node


def _sentinel(
    place: Path, name: str, port: int, primary_port: int, certificates: Certificates | None
) -> Node:
    own = private_folder(place / name)
    vista = kept_secret(place, "vista")
    text = filled(
        "redis/sentinel.conf", port=port, place=own, own_password=vista, primary_name=PRIMARY_NAME,
        primary_port=primary_port, password=kept_secret(place, "admin"),
    )  # fmt: skip
    write_private(own / "sentinel.conf", text + _tls(port, certificates))
    # it writes that file anew, passwords too, by the umask
    private = ["/bin/sh", "-c", 'umask 077; exec "$@"', "sh"]
    command = [*private, program("redis-server"), str(own / "sentinel.conf"), "--sentinel"]
    node = Node(
        Server(name, own, command, lambda: _answers(node), START_S), port, "default", vista, certificates
    )
    return node


def _tls(port: int, certificates: Certificates | None) -> str:
    if certificates is None:
        return ""
    paths = {name: getattr(certificates, name) for name in ("certificate", "key", "authority")}
    return filled("redis/tls.conf", port=port, **paths)


def _answers(node: Node) -> bool:
    with suppress(BackendError):
        return node.ask("PING") == "PONG"
    return False


def _follows(node: Node) -> bool:
    return node.fields("INFO", "replication").get("master_link_status") == "up"


def _sees_all(sentinel: Node) -> bool:
    known = sentinel.ask("SENTINEL", "master", PRIMARY_NAME).splitlines()
    values = dict(zip(known[::2], known[1::2], strict=True))
    return (values["num-slaves"], values["num-other-sentinels"], values["flags"]) == ("1", "2", "master")


def _whole(nodes: Sequence[Node]) -> bool:
    for node in nodes:
        info = node.fields("CLUSTER", "INFO")
        links = [line.split()[2:8:5] for line in node.ask("CLUSTER", "NODES").splitlines()]
        replicas = sum("slave" in flags for flags, _ in links)
        if info["cluster_state"] != "ok" or replicas != 3 or len(links) != 6:
            return False
        if any("fail" in flags or state != "connected" for flags, state in links):
            return False
        if node.fields("INFO", "replication")["role"] == "slave" and not _follows(node):
            return False
    return True


def _wait(condition: Callable[[], bool], otherwise: str) -> None:
    if not wait_until(condition, MEET_S):
        raise BackendError(f"{otherwise} within {MEET_S:.0f} s: see the logs there")


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def main() -> int:
    """The exit code of the command."""
    with (
        tempfile.TemporaryDirectory(prefix="vista-redis-") as place,
        running_redis(Path(place) / "redis") as redis,
    ):
        return subprocess.run([*sys.argv[1:], redis.url], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
