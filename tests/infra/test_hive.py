"""PostgreSQL and Hive: what was acknowledged survives kill -9, and a wrong password is refused."""

import time
from pathlib import Path

import pytest

from infra.hive import DATABASE, running_hiveserver, running_metastore
from infra.postgres import running_postgres
from infra.servers import HOST
from infra.sql import answer
from infra.thrift_calls import lists_databases, opens_session
from vista.errors import InputError

QUIET_S = 1.0


def test_a_killed_database_keeps_what_it_acknowledged(place: Path) -> None:
    with running_postgres(place) as postgres:
        name = postgres.database("kept").name
        postgres.sql("CREATE TABLE t (n int); INSERT INTO t SELECT generate_series(1, 1000)", name)
        postgres.server.kill()
        postgres.server.start()
        postgres.server.wait()
        assert postgres.sql("SELECT count(*) FROM t", name) == "1000"
        assert postgres.sql("SELECT current_user", name) == name


def test_metastore_and_hiveserver_come_back_and_know_their_users(place: Path) -> None:
    with (
        running_postgres(place / "postgres") as postgres,
        running_metastore(place / "metastore", postgres) as metastore,
        running_hiveserver(place / "hiveserver", metastore) as hiveserver,
    ):
        assert postgres.sql('SELECT "SCHEMA_VERSION" FROM "VERSION"', DATABASE) == "4.0.0"
        assert not opens_session(hiveserver.port, "wrong")
        metastore.server.kill()
        assert not lists_databases(metastore.port)
        metastore.server.start()
        metastore.server.wait()
        password = hiveserver.vista_password.read_text()
        said = hiveserver.server.log.read_text()
        assert opens_session(hiveserver.port, password)
        time.sleep(QUIET_S)
        assert hiveserver.server.log.read_text() == said, "it is asked every few seconds: that says nothing"
        with pytest.raises(InputError, match="nothing has been exported yet"):
            answer(f"{HOST}:{hiveserver.port}", password, "SELECT count(*) FROM usable_summaries")
