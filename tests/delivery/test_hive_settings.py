"""A metastore that cannot be used: a typed error in time that says what to mend; one that was restarted."""

import os
import signal
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from delivery_samples import fresh_database
from pymetastore.hive_metastore.ttypes import Database, FieldSchema, SerDeInfo, StorageDescriptor, Table

from infra.hive import Metastore
from infra.ports import free_block
from infra.s3 import S3
from infra.servers import HOST
from vista.delivery.address import Address
from vista.delivery.catalog import open_catalog
from vista.delivery.hive_thrift import Metastore as Client
from vista.delivery.interfaces import AuditLine
from vista.errors import BackendError, InputError

LIMIT_S = 10.0  # that a wrong setting may take until it is an error


@contextmanager
def refused(said: str) -> Iterator[None]:
    """The block ends in time with a `BackendError` that says so."""
    started_s = time.monotonic()
    with pytest.raises(BackendError, match=said):
        yield
    assert time.monotonic() - started_s < LIMIT_S


@pytest.mark.parametrize(
    "url",
    [
        "hive://127.0.0.1:9083",
        "hive://127.0.0.1:9083/no-name",
        "hive://somebody@127.0.0.1:9083/vista",
        "hive://127.0.0.1:9083,127.0.0.1:9084/vista",
    ],
)
def test_a_url_that_is_no_metastores_is_refused(url: str) -> None:
    with pytest.raises(InputError, match="hive://HOST:PORT/DATABASE"):
        open_catalog(url)


def test_nobody_listens() -> None:
    with refused("check host and port"):
        open_catalog(f"hive://{HOST}:{free_block(1)}/vista")


def test_the_host_does_not_exist() -> None:
    with refused("check host and port"):
        open_catalog("hive://metastore.invalid:9083/vista")


def test_a_server_that_says_nothing() -> None:
    with closing(socket.create_server((HOST, 0))) as silent, refused("does not answer"):
        open_catalog(f"hive://{HOST}:{silent.getsockname()[1]}/vista")


def test_a_server_of_another_kind(s3: S3) -> None:
    with refused("cannot be reached|not thrift"):
        open_catalog(f"hive://{s3.endpoint.removeprefix('http://')}/vista")


@pytest.mark.parametrize("name", ["summaries", "journal", "usable_summaries"])
def test_a_table_of_another_schema_is_named_with_the_difference(metastore: Metastore, name: str) -> None:
    url = fresh_database(metastore)
    database = url.rpartition("/")[2]
    with closing(Client(Address.parse(url, options=frozenset()))) as client:
        client.call(lambda calls: calls.create_database(Database(name=database)))
        other = Table(
            dbName=database, tableName=name, tableType="EXTERNAL_TABLE", partitionKeys=[],
            parameters={"EXTERNAL": "TRUE"},
            sd=StorageDescriptor(
                cols=[FieldSchema("user_id", "string")],
                inputFormat="org.apache.hadoop.mapred.TextInputFormat",
                outputFormat="org.apache.hadoop.hive.ql.io.HiveIgnoreKeyTextOutputFormat",
                serdeInfo=SerDeInfo(
                    serializationLib="org.apache.hadoop.hive.serde2.lazy.LazySimpleSerDe", parameters={}
                ),
            ),
        )  # fmt: skip
        client.call(lambda calls: calls.create_table(other))
    difference = (
        "is a EXTERNAL_TABLE" if name == "usable_summaries" else r"its columns are \(user_id string\)"
    )
    with refused(difference):
        open_catalog(url)


def test_a_warehouse_without_permission_is_named(metastore: Metastore) -> None:
    """The database is there; its place cannot be written by anybody."""
    url = fresh_database(metastore)
    database = url.rpartition("/")[2]
    with closing(Client(Address.parse(url, options=frozenset()))) as client:
        made = Database(name=database, locationUri="file:///proc/vista")
        client.call(lambda calls: calls.create_database(made))
    with refused("may write to its warehouse"):
        open_catalog(url)


def test_a_frozen_metastore_is_an_error_in_time_and_goes_on_afterwards(metastore: Metastore) -> None:
    url = fresh_database(metastore)
    open_catalog(url).close()
    os.kill(metastore.server.pid, signal.SIGSTOP)
    try:
        with refused("does not answer"):
            open_catalog(url)
    finally:
        os.kill(metastore.server.pid, signal.SIGCONT)
    with closing(open_catalog(url)) as catalog:
        assert catalog.releases() == []


def test_a_catalog_rides_out_a_restart(metastore: Metastore, tmp_path: Path) -> None:
    """Its old connection is broken; what it asks next is answered all the same, and done once."""
    line = AuditLine(time_us=1, actor="test", action="note", reason=uuid.uuid4().hex, before="", after="")
    with closing(open_catalog(fresh_database(metastore))) as catalog:
        catalog.note(line)
        metastore.server.kill()
        metastore.server.start()
        metastore.server.wait()
        catalog.note(line)
        assert catalog.audit() == [line, line]
