"""`make run BACKENDS=real`: over Hive, Kafka and Redis a refresh ends with the same figures and bytes."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from impala.dbapi import connect
from refreshes import Places, close

from infra.backends import start_backends
from infra.servers import HOST
from infra.services import Services, guards_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1_800)]


@pytest.fixture(scope="module")
def real_refresh() -> Iterator[Places]:
    """In a folder that PostgreSQL's own user may enter, unlike those of pytest."""
    path = Path(tempfile.mkdtemp(prefix="vista-real-"))
    path.chmod(0o755)
    places = Places(path)
    places.run("DATASET=smoke", "BACKENDS=real")
    yield places
    shutil.rmtree(path)


def servers_of(places: Places) -> Path:
    return places.path / "home" / "servers"


def records(warehouse: Path) -> dict[tuple[str, int], tuple[int, int, bytes]]:
    """Epoch and user -> arrival number, time, and the record without the hash of its space's name, which is
    drawn for every cold training, and without the checksum over it."""
    found = {}
    for shard in warehouse.glob("space=*/epoch=*/attempt=*/bucket-*.parquet"):
        for row in pq.ParquetFile(shard).read().to_pylist():
            value = row["value"]
            same = value[:12] + value[20:60] + value[64:]
            found[shard.parts[-3], row["user_id"]] = row["seq"], row["event_time_us"], same
    return found


def test_figures_and_records_are_those_of_the_embedded_run(
    smoke_refresh: Places, real_refresh: Places
) -> None:
    real, embedded = real_refresh.figures(), smoke_refresh.figures()
    for region in (*real["regions"].values(), *embedded["regions"].values()):
        assert (region["coverage"], region["lag_records"]) == (1.0, 0)
    assert close(embedded, real, 1e-6) == []  # sums of two threads, as in a resumed run
    found = records(servers_of(real_refresh) / "warehouse")
    assert found == records(smoke_refresh.path / "home" / "warehouse")
    assert len(found) == 3 * 120  # epochs, users


def test_nothing_of_the_run_is_left_and_sql_finds_its_rows(real_refresh: Places) -> None:
    place = servers_of(real_refresh)
    assert not guards_of(place)
    with Services() as services:
        hive = start_backends(services, place).hiveserver
        access = {"user": "vista", "password": hive.vista_password.read_text(), "auth_mechanism": "PLAIN"}
        with closing(connect(HOST, hive.port, timeout=300, **access)) as connection:
            cursor = connection.cursor()
            cursor.execute("SELECT epoch, count(*) FROM vista.usable_summaries GROUP BY epoch")
            rows = dict(cursor.fetchall())
    assert set(rows.values()) == {120}
    assert len(rows) == 3
