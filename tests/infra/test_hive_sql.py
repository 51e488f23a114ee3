"""HiveServer2 as its clients see it: its own tables, and files of others, on disk and on S3, as rows."""

import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from impala.dbapi import connect
from pyarrow.fs import FileSystem, LocalFileSystem, S3FileSystem
from thrift.transport.TTransport import TTransportException

from infra.hive import HiveServer, running_hiveserver, running_metastore
from infra.postgres import running_postgres
from infra.s3 import S3, running_s3
from infra.servers import HOST

ANSWER_S = 300.0
"""The first query and the first aggregate of a fresh server take up to a minute on two cores."""

ROWS, VALUE_BYTES = 500, 3_000


@dataclass(frozen=True)
class Hive:
    server: HiveServer
    s3: S3
    place: Path

    def connect(self, password: str | None = None) -> Any:
        password = password or self.server.vista_password.read_text()
        plain = {"auth_mechanism": "PLAIN", "user": "vista", "password": password}
        return connect(HOST, self.server.port, timeout=ANSWER_S, **plain)

    def rows(self, *statements: str) -> list[tuple[Any, ...]]:
        """What the last statement returns."""
        with closing(self.connect()) as connection, closing(connection.cursor()) as cursor:
            for statement in statements:
                cursor.execute(statement)
            return list(cursor.fetchall())


@pytest.fixture(scope="module")
def hive() -> Iterator[Hive]:
    place = Path(tempfile.mkdtemp(prefix="vista-servers-"))
    place.chmod(0o755)
    with (
        running_s3(place / "s3") as s3,
        running_postgres(place / "postgres") as postgres,
        running_metastore(place / "metastore", postgres, s3) as metastore,
        running_hiveserver(place / "hiveserver", metastore) as server,
    ):
        yield Hive(server, s3, place)
    shutil.rmtree(place)


def values(epoch: int) -> list[bytes]:
    return [
        row.tobytes() for row in np.random.default_rng(epoch).integers(0, 256, (ROWS, VALUE_BYTES), np.uint8)
    ]


def write(files: FileSystem, folder: str, epoch: int) -> None:
    files.create_dir(f"{folder}/epoch={epoch}")
    table = pa.table({"user_id": np.arange(ROWS), "value": pa.array(values(epoch), pa.binary())})
    # Hive unpacks a dictionary page in quadratic time
    pq.write_table(table, f"{folder}/epoch={epoch}/bucket.parquet", filesystem=files, use_dictionary=False)


def test_a_table_of_its_own(hive: Hive) -> None:
    made = "CREATE TABLE own (user_id bigint, name string) STORED AS PARQUET"
    filled = "INSERT INTO own VALUES (1, 'a'), (2, 'b')"
    assert hive.rows(made, filled, "SELECT * FROM own ORDER BY user_id") == [(1, "a"), (2, "b")]


@pytest.mark.parametrize("scheme", ["file", "s3"])
def test_files_of_others_are_rows_and_a_new_partition_is_seen_at_once(hive: Hive, scheme: str) -> None:
    if scheme == "s3":
        secret = {"access_key": hive.s3.user, "secret_key": hive.s3.password, "region": "us-east-1"}
        files = S3FileSystem(endpoint_override=hive.s3.endpoint, allow_bucket_creation=True, **secret)
        files.create_dir("warehouse")
        folder = "warehouse/table"
    else:
        files, folder = LocalFileSystem(), str(hive.place / "table")
    write(files, folder, 1)
    made = (
        f"CREATE EXTERNAL TABLE of_{scheme} (user_id bigint, value binary) PARTITIONED BY (epoch int) "
        f"STORED AS PARQUET LOCATION '{scheme}://{folder}'"
    )
    added = f"ALTER TABLE of_{scheme} ADD PARTITION (epoch = 1)"
    asked = f"SELECT epoch, count(*), sum(length(value)) FROM of_{scheme} GROUP BY epoch ORDER BY epoch"
    with closing(hive.connect()) as connection, closing(connection.cursor()) as cursor:
        for statement in (made, added, asked):
            cursor.execute(statement)
        assert cursor.fetchall() == [(1, ROWS, ROWS * VALUE_BYTES)]
        write(files, folder, 2)
        hive.rows(f"ALTER TABLE of_{scheme} ADD PARTITION (epoch = 2)", f"SHOW PARTITIONS of_{scheme}")
        cursor.execute(asked)
        assert cursor.fetchall() == [(epoch, ROWS, ROWS * VALUE_BYTES) for epoch in (1, 2)]
        cursor.execute(f"SELECT user_id, sha2(value, 256) FROM of_{scheme} WHERE epoch = 2")
        expected = {user: hashlib.sha256(value).hexdigest() for user, value in enumerate(values(2))}
        assert dict(cursor.fetchall()) == expected


def test_a_wrong_password_is_refused(hive: Hive) -> None:
    with pytest.raises(TTransportException, match="Error validating the login"):
        hive.connect("wrong").cursor()
