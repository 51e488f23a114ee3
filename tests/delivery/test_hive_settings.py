"""A metastore that cannot be used: a typed error in time that says what to mend; one that was restarted."""

import json
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from delivery_samples import fresh_database
from hive_sql import open_epoch
from pymetastore.hive_metastore.ttypes import Database, FieldSchema, SerDeInfo, StorageDescriptor, Table
from refusals import LIMIT_S, refused

from infra.hive import Metastore
from infra.ports import free_block
from infra.postgres import Postgres
from infra.processes import descendants, wait_until
from infra.s3 import S3
from infra.servers import HOST
from vista.delivery.address import Address
from vista.delivery.catalog import open_catalog
from vista.delivery.hive_thrift import SILENT_S
from vista.delivery.hive_thrift import Metastore as Client
from vista.delivery.interfaces import AuditLine, Release
from vista.errors import EpochError, InputError

LINE = AuditLine(time_us=1, actor="test", action="note", reason=uuid.uuid4().hex, before="", after="")


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


def test_reading_makes_nothing(metastore: Metastore) -> None:
    url = fresh_database(metastore)
    database = url.rpartition("/")[2]
    with (
        closing(Client(Address.parse(url, options=frozenset()))) as client,
        closing(open_catalog(url)) as catalog,
        closing(open_catalog(url)) as other,
    ):
        assert (catalog.releases(), catalog.audit(), catalog.list_epochs("s")) == ([], [], [])
        with pytest.raises(EpochError, match="never opened"):
            catalog.withdraw("s", 1, LINE)
        assert database not in client.call(lambda calls: calls.get_all_databases())
        catalog.note(LINE)
        assert database in client.call(lambda calls: calls.get_all_databases())
        assert other.audit() == [LINE], "who found nothing looks again"


@pytest.mark.parametrize("name", ["summaries", "journal"])
def test_a_table_that_was_dropped_beside_one_that_is_used_is_no_empty_catalog(
    metastore: Metastore, name: str
) -> None:
    url = fresh_database(metastore)
    with closing(open_catalog(url)) as catalog:
        open_epoch(catalog, 1)  # no operator has done anything: the journal's head is its first
    drop(url, name)
    with refused(f"the catalog is damaged: table {name} is not there"):
        open_catalog(url)


def test_tables_that_are_only_begun_are_an_empty_catalog_and_a_lost_view_is_made_again(
    metastore: Metastore,
) -> None:
    url = fresh_database(metastore)
    with closing(open_catalog(url)) as catalog:
        catalog._make()
    drop(url, "usable_summaries")
    drop(url, "summaries")  # who made them was killed after the journal
    with closing(open_catalog(url)) as catalog:
        assert catalog.releases() == []
        catalog.note(LINE)
    drop(url, "usable_summaries")
    with closing(open_catalog(url)) as catalog:
        assert catalog.audit() == [LINE]
        catalog.note(LINE)
    with closing(Client(Address.parse(url, options=frozenset()))) as client:
        database = url.rpartition("/")[2]
        assert "usable_summaries" in client.call(lambda calls: calls.get_all_tables(database))


def drop(url: str, name: str) -> None:
    """As DROP TABLE does."""
    with closing(Client(Address.parse(url, options=frozenset()))) as client:
        client.call(lambda calls: calls.drop_table(url.rpartition("/")[2], name, True))


def test_an_operation_that_a_newer_version_has_begun_is_finished_and_kept_as_it_was_written(
    metastore: Metastore,
) -> None:
    """Keys that this version does not know are ignored, in the head and in the history."""
    release = Release(id="r-1", space="s", epoch=1, foundation="f", downstream="d")
    url = fresh_database(metastore)
    with closing(open_catalog(url)) as catalog:
        catalog.note(LINE)
        head = catalog._journal.head()
        newer = json.loads(head) | {"number": 2, "token": "newer"}
        newer["release"] = release.model_dump() | {"rollout": "half"}
        assert catalog._journal.swap_head(head, json.dumps(newer))
    with closing(open_catalog(url)) as catalog:
        assert catalog.releases() == [release]
        assert json.loads(catalog._journal.get("operations", 2)) == newer
        catalog.swap_release("r-1", release.model_copy(update={"id": "r-2"}), LINE)
        assert [one.id for one in catalog.releases()] == ["r-1", "r-2"]


def test_a_warehouse_without_permission_is_named(metastore: Metastore) -> None:
    """The database is there; its place cannot be written by anybody."""
    url = fresh_database(metastore)
    database = url.rpartition("/")[2]
    with closing(Client(Address.parse(url, options=frozenset()))) as client:
        made = Database(name=database, locationUri="file:///proc/vista")
        client.call(lambda calls: calls.create_database(made))
    with closing(open_catalog(url)) as catalog, refused("may write to its warehouse"):
        catalog.note(LINE)


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


def test_a_metastore_that_is_frozen_in_the_middle_of_a_call_is_an_error_in_time(metastore: Metastore) -> None:
    with closing(open_catalog(fresh_database(metastore))) as catalog:
        catalog.note(LINE)
        for ask in (lambda: catalog.note(LINE), catalog.releases, lambda: catalog.list_epochs("s")):
            os.kill(metastore.server.pid, signal.SIGSTOP)
            try:
                with refused("does not answer"):
                    ask()
            finally:
                os.kill(metastore.server.pid, signal.SIGCONT)
            before = len(catalog.audit())
            catalog.note(LINE)
            assert len(catalog.audit()) == before + 1


def test_a_metastore_whose_database_is_frozen_is_an_error_in_time(
    metastore: Metastore, postgres: Postgres
) -> None:
    url = fresh_database(metastore)
    with closing(open_catalog(url)) as catalog:
        catalog.note(LINE)
        processes = {postgres.server.pid, *descendants(postgres.server.pid)}
        for pid in processes:
            os.kill(pid, signal.SIGSTOP)
        try:
            with refused("does not answer"):
                catalog.note(LINE)
            with refused("does not answer"):
                open_catalog(url)
        finally:
            for pid in processes:
                os.kill(pid, signal.SIGCONT)
        before = len(catalog.audit())
        catalog.note(LINE)
        assert len(catalog.audit()) == before + 1


def test_a_call_that_takes_long_is_waited_for_while_others_are_answered(
    metastore: Metastore, postgres: Postgres
) -> None:
    with closing(open_catalog(fresh_database(metastore))) as catalog:
        catalog.note(LINE)
        with locked_tables(postgres, seconds=3 * SILENT_S):
            started_s = time.monotonic()
            catalog.note(LINE)
            assert time.monotonic() - started_s > SILENT_S
        assert catalog.audit() == [LINE, LINE]


@contextmanager
def locked_tables(postgres: Postgres, seconds: float) -> Iterator[None]:
    """The metastore waits for its database as soon as it looks for a table."""
    lock = f'BEGIN; LOCK TABLE "TABLE_PARAMS"; SELECT pg_sleep({seconds}); COMMIT'
    held = (
        "SELECT 1 FROM pg_locks WHERE relation = '\"TABLE_PARAMS\"'::regclass AND mode ~ '^AccessExclusive'"
    )
    locking = threading.Thread(target=postgres.sql, args=(lock, "hive"))
    locking.start()
    assert wait_until(lambda: bool(postgres.sql(held, "hive")), LIMIT_S)
    yield
    locking.join()


def test_a_catalog_rides_out_a_restart(metastore: Metastore, tmp_path: Path) -> None:
    """Its old connection is broken; what it asks next is answered all the same, and done once."""
    with closing(open_catalog(fresh_database(metastore))) as catalog:
        catalog.note(LINE)
        metastore.server.kill()
        metastore.server.start()
        metastore.server.wait()
        catalog.note(LINE)
        assert catalog.audit() == [LINE, LINE]
