"""Hive 4: the metastore, its tables in PostgreSQL, and HiveServer2, with Tez inside its own process."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from infra.java import class_path, installed, java
from infra.kept_secrets import kept_secret, password_file
from infra.postgres import Postgres
from infra.s3 import S3
from infra.servers import (
    CONF,
    Server,
    filled,
    kept_ports,
    private_folder,
    running,
    write_private,
)
from infra.thrift_calls import lists_databases, opens_session

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


@dataclass(frozen=True, slots=True)
class Metastore:
    """A running metastore, and the S3 that it may look at."""

    server: Server
    port: int
    s3: S3 | None


@dataclass(frozen=True, slots=True)
class HiveServer:
    """A running HiveServer2, SASL PLAIN on loopback, and the file with the password of `vista`."""

    server: Server
    port: int
    vista_password: Path


@contextmanager
def running_metastore(place: Path, postgres: Postgres, s3: S3 | None = None) -> Iterator[Metastore]:
    """A metastore whose tables are in the database `hive`, made if it is not there.

    It looks at every place that it is told of, so places on S3 need `s3`.
    """
    hive, metastore = installed("hive"), installed("metastore")
    place = private_folder(place)
    (port,) = kept_ports(place, 1)
    database = postgres.database(DATABASE)
    if not postgres.sql("""SELECT to_regclass('"VERSION"')""", DATABASE):
        _make_tables(postgres, metastore / "sql" / "hive-schema-4.0.0.postgres.sql")
    text = filled(
        "hive/metastore-site.xml", port=port, place=place, database=database.name,
        database_port=database.port, database_password=database.password,
    )  # fmt: skip
    write_private(place / "metastore-site.xml", text)
    access = _file_systems(place, s3)
    main = "org.apache.hadoop.hive.metastore.HiveMetaStore"
    command = java(place, METASTORE_HEAP_MB, OPTIONS, main, "-p", str(port))
    environment = {**class_path(place, metastore / "lib", hive / "lib"), **access}
    server = Server("metastore", place, command, partial(lists_databases, port), START_S, environment)
    with running([server]):
        yield Metastore(server, port, s3)


@contextmanager
def running_hiveserver(place: Path, metastore: Metastore) -> Iterator[HiveServer]:
    """A HiveServer2 over the metastore. Its first query and first aggregate take up to a minute."""
    hive = installed("hive")
    place = private_folder(place)
    (port,) = kept_ports(place, 1)
    password = kept_secret(place, "vista")
    vista_password = password_file(place, "vista")
    access = _file_systems(place, metastore.s3)
    values = {"port": port, "metastore_port": metastore.port, "place": place}
    for name in ("hive-site.xml", "mapred-site.xml", "tez-site.xml"):
        write_private(place / name, filled(f"hive/{name}", **values, log=CONF / "log4j2.properties"))
    scratch = place / "scratch"
    scratch.mkdir(exist_ok=True)
    scratch.chmod(0o777)  # Hive insists; the folder above is closed
    options = [*OPTIONS, f"-Dvista.passwords={place}"]
    command = java(place, HIVESERVER_HEAP_MB, options, "org.apache.hive.service.server.HiveServer2")
    environment = {**class_path(place, hive / "classes", hive / "lib"), **access}
    answers = partial(opens_session, port, password)
    server = Server("hiveserver2", place, command, answers, START_S, environment)
    with running([server]):
        yield HiveServer(server, port, vista_password)


def _file_systems(place: Path, s3: S3 | None) -> Mapping[str, str]:
    """Write core-site.xml; the environment with the password, hidden from Tez if a file held it."""
    text = filled("hive/core-site.xml", s3_endpoint=s3.endpoint if s3 else "")
    write_private(place / "core-site.xml", text)
    return {"AWS_ACCESS_KEY_ID": s3.user, "AWS_SECRET_ACCESS_KEY": s3.password} if s3 else {}


def _make_tables(postgres: Postgres, schema: Path) -> None:
    statements = schema.read_text(encoding="utf-8")
    statements = statements.replace("SET default_with_oids = false;", "")  # PostgreSQL 12 forgot this setting
    postgres.sql(f"BEGIN;\n{statements}\nCOMMIT;", DATABASE)
