"""Hive 4: the metastore, its tables in PostgreSQL, and HiveServer2, with Tez inside its own process."""

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from infra.java import class_path, installed, java
from infra.postgres import Postgres
from infra.servers import (
    CONF,
    HOST,
    Server,
    filled,
    kept_password,
    kept_ports,
    private_folder,
    running,
    write_private,
)

START_S = 120.0  # the metastore 4-7 s, HiveServer2 7-10 s on two idle cores
METASTORE_HEAP_MB, HIVESERVER_HEAP_MB = 384, 1024
OPENED = (
    "java.lang", "java.lang.reflect", "java.util", "java.util.concurrent", "java.util.concurrent.atomic",
    "java.util.regex", "java.net", "java.nio", "java.io", "java.time", "java.text", "java.math", "sun.nio.ch",
)  # fmt: skip
"""Packages of java.base whose private parts Hive reaches into."""

OPTIONS = [
    *(f"--add-opens=java.base/{package}=ALL-UNNAMED" for package in OPENED),
    "--add-opens=java.sql/java.sql=ALL-UNNAMED",
]
DATABASE = "hive"

ANSWER_S = 30.0
THRIFT_CALL, THRIFT_REPLY = 0x80010001, 0x80010002
SASL_START, SASL_OK, SASL_COMPLETE = 1, 2, 5
OPEN_SESSION = bytes.fromhex("0c0001 080001 00000009 00 00")
"""Arguments: field 1, a struct with field 1, the client's version 10 of the protocol."""

SUCCESS_STATUS = bytes.fromhex("0c0001 080001 00000000")
"""Field 1 of the answer, a struct with field 1: 0."""


@dataclass(frozen=True, slots=True)
class Metastore:
    """A running metastore, thrift on loopback."""

    server: Server
    port: int


@dataclass(frozen=True, slots=True)
class HiveServer:
    """A running HiveServer2, SASL PLAIN on loopback, and the file with the password of `vista`."""

    server: Server
    port: int
    vista_password: Path


@contextmanager
def running_metastore(place: Path, postgres: Postgres) -> Iterator[Metastore]:
    """A metastore whose tables are in the database `hive`, made if it is not there."""
    hive, metastore = installed("hive"), installed("metastore")
    (port,) = kept_ports(private_folder(place), 1)
    database = postgres.database(DATABASE)
    if not postgres.sql("""SELECT to_regclass('"VERSION"')""", DATABASE):
        _make_tables(postgres, metastore / "sql" / "hive-schema-4.0.0.postgres.sql")
    access = {"database_port": database.port, "database_password": database.password.read_text()}
    text = filled("hive/metastore-site.xml", port=port, place=place, database=database.name, **access)
    write_private(place / "metastore-site.xml", text)
    write_private(place / "core-site.xml", filled("hive/core-site.xml"))
    command = java(
        "org.apache.hadoop.hive.metastore.HiveMetaStore", "-p", str(port),
        heap_mb=METASTORE_HEAP_MB, options=OPTIONS,
    )  # fmt: skip
    jars = class_path(place, metastore / "lib", hive / "lib")
    server = Server("metastore", place, command, lambda: _lists_databases(port), START_S, jars)
    with running([server]):
        yield Metastore(server, port)


@contextmanager
def running_hiveserver(place: Path, metastore: Metastore) -> Iterator[HiveServer]:
    """A HiveServer2 over the metastore. Its first query and first aggregate take up to a minute."""
    hive = installed("hive")
    (port,) = kept_ports(private_folder(place), 1)
    password = place / "vista.password"
    kept_password(password)
    for name in ("core-site.xml", "mapred-site.xml", "tez-site.xml"):
        write_private(place / name, filled(f"hive/{name}"))
    text = filled(
        "hive/hive-site.xml",
        port=port,
        metastore_port=metastore.port,
        place=place,
        log=CONF / "log4j2.properties",
    )
    write_private(place / "hive-site.xml", text)
    scratch = place / "scratch"
    scratch.mkdir(exist_ok=True)
    scratch.chmod(0o777)  # Hive insists; the folder above is closed
    options = [*OPTIONS, f"-Dvista.passwords={place}"]
    command = java("org.apache.hive.service.server.HiveServer2", heap_mb=HIVESERVER_HEAP_MB, options=options)
    jars = class_path(place, hive / "classes", hive / "lib")
    server = Server(
        "hiveserver2", place, command, lambda: _opens_session(port, password.read_text()), START_S, jars
    )
    with running([server]):
        yield HiveServer(server, port, password)


def _make_tables(postgres: Postgres, schema: Path) -> None:
    statements = schema.read_text(encoding="utf-8")
    statements = statements.replace("SET default_with_oids = false;", "")  # PostgreSQL 12 forgot this setting
    postgres.sql(f"BEGIN;\n{statements}\nCOMMIT;", DATABASE)


def _lists_databases(port: int) -> bool:
    """Ask for `get_all_databases`, which reads PostgreSQL, in Thrift's binary protocol."""
    return _succeeded(_answer(port, _call("get_all_databases", b"\0")), "get_all_databases")


def _opens_session(port: int, password: str) -> bool:
    """Log in with SASL PLAIN and ask for `OpenSession` in Thrift's binary protocol."""
    plain = b"\0vista\0" + password.encode()
    login = _sasl(SASL_START, b"PLAIN") + _sasl(SASL_OK, plain)
    request = _call("OpenSession", OPEN_SESSION)
    answer = _answer(port, login + struct.pack(">i", len(request)) + request)
    welcome = _sasl(SASL_COMPLETE, b"")
    return answer.startswith(welcome) and _succeeded(
        answer[len(welcome) + 4 :], "OpenSession", SUCCESS_STATUS
    )


def _answer(port: int, request: bytes) -> bytes:
    """Everything that is answered; nothing if the server cannot be reached or breaks off."""
    with suppress(OSError), socket.create_connection((HOST, port), timeout=ANSWER_S) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        with connection.makefile("rb") as stream:
            return stream.read()
    return b""


def _sasl(status: int, content: bytes) -> bytes:
    return struct.pack(">bi", status, len(content)) + content


def _call(name: str, arguments: bytes) -> bytes:
    return struct.pack(">Ii", THRIFT_CALL, len(name)) + name.encode() + struct.pack(">i", 0) + arguments


def _succeeded(answer: bytes, name: str, result: bytes = b"") -> bool:
    """Whether a call was answered with its result, which is field 0, and not with an exception."""
    header = struct.pack(">Ii", THRIFT_REPLY, len(name)) + name.encode() + struct.pack(">i", 0)
    body = answer.removeprefix(header)
    return body != answer and body[:1] != b"\0" and body[1:3] == b"\0\0" and body[3:].startswith(result)
