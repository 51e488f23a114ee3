"""Kafka 4, one broker or three; with certificates clients come in only over TLS and with a password."""

import socket
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from infra.java import class_path, installed, java
from infra.kept_secrets import kept_secret, password_file
from infra.processes import wait_until
from infra.servers import (
    HOST,
    Server,
    call,
    filled,
    kept_ports,
    private_folder,
    running,
    write_private,
)
from infra.tls import Certificates
from vista.errors import BackendError

START_S = 90.0  # 2-7 s on two idle cores
HEAP_MB = 256
ARCHIVE = "kafka.jsa"
CLUSTER_ID = "dmlzdGEtbG9jYWwtbG9ncw"
"""16 bytes in base64: what brokers of one Kafka agree on."""


@dataclass(frozen=True, slots=True)
class Broker:
    """One broker, which is a controller too. `port` is that of the brokers among themselves."""

    node: int
    server: Server
    port: int


@dataclass(frozen=True, slots=True)
class Kafka:
    """Running brokers, the addresses for clients, with certificates the file of the password."""

    brokers: Sequence[Broker]
    bootstrap: Sequence[str]
    vista_password: Path | None


@dataclass(frozen=True, slots=True)
class Metadata:
    """What one broker says of all: nodes that live, number of partitions with copies that are not in sync."""

    nodes: frozenset[int]
    behind: int


@contextmanager
def running_kafka(
    place: Path, brokers: int = 1, certificates: Certificates | None = None, mechanisms: str = "PLAIN"
) -> Iterator[Kafka]:
    """One broker, or three of which one may fail; all copies of all partitions are in sync.

    `mechanisms` is how clients with a password may show it; SCRAM-SHA-256 has its own users, none at first.
    """
    kafka = installed("kafka")
    place = private_folder(place)
    ports = kept_ports(place, 3 * brokers)
    by_node = {node + 1: ports[3 * node : 3 * node + 3] for node in range(brokers)}
    nodes = []
    for node, (port, _, _) in by_node.items():
        properties = _settings(place, node, by_node, certificates, mechanisms)
        server = _server(node, port, properties, kafka, f"-XX:SharedArchiveFile={kafka / ARCHIVE}")
        nodes.append(Broker(node, server, port))
    with running([node.server for node in nodes]):
        if not wait_until(lambda: all(_whole(node, brokers) for node in nodes), START_S):
            raise BackendError(
                f"{place}: the brokers were not in sync within {START_S:.0f} s: see their logs"
            )
        addresses = [f"{HOST}:{ports[2 if certificates else 0]}" for ports in by_node.values()]
        yield Kafka(nodes, addresses, password_file(place, "vista") if certificates else None)


def archive_classes(kafka: Path) -> None:
    """Keep a broker's classes as a JVM has them in memory: the next one starts in a third of the time."""
    part = kafka / f"{ARCHIVE}.part"
    with TemporaryDirectory() as scratch:
        ports = kept_ports(Path(scratch), 3)
        properties = _settings(Path(scratch), 1, {1: ports}, None, "")
        server = _server(1, ports[0], properties, kafka, f"-XX:ArchiveClassesAtExit={part}")
        with running([server]):
            pass
        if not part.exists():
            raise BackendError(f"the JVM wrote no archive of Kafka's classes: {server.log.read_text()}")
    part.rename(kafka / ARCHIVE)


def metadata(port: int) -> Metadata | None:
    """Ask a broker's own listener (request 3, version 1, of Kafka's protocol); None if it does not answer."""
    request = struct.pack(">hhihi", 3, 1, 0, -1, -1)
    with suppress(OSError), socket.create_connection((HOST, port), timeout=5) as connection:
        connection.sendall(struct.pack(">i", len(request)) + request)
        with connection.makefile("rb") as stream:
            size = int.from_bytes(stream.read(4))
            answer = stream.read(size)
            return _parsed(_Reader(answer)) if answer and len(answer) == size else None
    return None


def _settings(
    place: Path,
    node: int,
    by_node: Mapping[int, Sequence[int]],
    certificates: Certificates | None,
    mechanisms: str,
) -> Path:
    own = private_folder(place / f"kafka-{node}")
    port, controller_port, client_port = by_node[node]
    listeners = [f"INTERNAL://{HOST}:{port}", f"CONTROLLER://{HOST}:{controller_port}"]
    for_clients = ""
    if certificates:
        listeners.append(f"CLIENT://{HOST}:{client_port}")
        keystore = own / "keystore.pem"
        write_private(keystore, certificates.key.read_text() + certificates.certificate.read_text())
        password = kept_secret(place, "vista")
        for_clients = filled(
            "kafka/client_listener.properties", password=password, keystore=keystore, mechanisms=mechanisms
        )
    copies = len(by_node)
    text = filled(
        "kafka/server.properties", node=node, listeners=",".join(listeners), data=own / "data", copies=copies,
        voters=",".join(f"{other}@{HOST}:{ports[1]}" for other, ports in by_node.items()),
        in_sync=max(1, copies - 1),
    )  # fmt: skip
    write_private(own / "server.properties", text + for_clients)
    return own / "server.properties"


def _server(node: int, port: int, properties: Path, kafka: Path, archive_option: str) -> Server:
    own, jars = properties.parent, class_path(kafka / "lib")
    if not (own / "data" / "meta.properties").exists():
        arguments = ["format", "--cluster-id", CLUSTER_ID, "--config", str(properties)]
        call(java(own, 64, [], "kafka.tools.StorageTool", *arguments), f"formatting {own}", environment=jars)
    command = java(own, HEAP_MB, [archive_option], "kafka.Kafka", str(properties))
    return Server(own.name, own, command, partial(_takes_part, port, node), START_S, jars)


def _takes_part(port: int, node: int) -> bool:
    seen = metadata(port)
    return seen is not None and node in seen.nodes


def _whole(broker: Broker, brokers: int) -> bool:
    seen = metadata(broker.port)
    return seen is not None and len(seen.nodes) == brokers and seen.behind == 0


class _Reader:
    """Kafka's primitive types, read one after the other."""

    def __init__(self, content: bytes) -> None:
        self.content, self.at = content, 0

    def number(self, kind: str) -> int:
        (value,) = struct.unpack_from(f">{kind}", self.content, self.at)
        self.at += struct.calcsize(kind)
        return int(value)

    def skip_text(self) -> None:
        length = self.number("h")  # -1 for none
        self.at += max(0, length)

    def numbers(self) -> list[int]:
        return [self.number("i") for _ in range(self.number("i"))]


def _parsed(reader: _Reader) -> Metadata:
    nodes, behind = set(), 0
    reader.number("i")  # which request
    for _ in range(reader.number("i")):
        nodes.add(reader.number("i"))
        reader.skip_text()  # host
        reader.number("i")  # port
        reader.skip_text()  # rack
    reader.number("i")  # controller
    for _ in range(reader.number("i")):
        reader.number("h")  # error of the topic
        reader.skip_text()
        reader.number("b")  # internal
        for _ in range(reader.number("i")):
            for kind in "hii":  # error, partition, leader
                reader.number(kind)
            wanted, in_sync = reader.numbers(), reader.numbers()
            behind += len(in_sync) < len(wanted)
    return Metadata(frozenset(nodes), behind)
