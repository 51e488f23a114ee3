"""`make run BACKENDS=real`: over Hive, Kafka and Redis a refresh ends with the same figures and bytes."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from refreshes import ROOT, Places, close

from infra.services import guards_of

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


def test_nothing_of_the_run_is_left_and_make_sql_finds_its_rows(real_refresh: Places) -> None:
    place = servers_of(real_refresh)
    assert not guards_of(place)
    query = (
        "SELECT space, epoch, count(*) AS users FROM usable_summaries GROUP BY space, epoch ORDER BY epoch"
    )
    command = ["make", "--silent", "sql", f"QUERY={query}", "DATASET=smoke"]
    environment = {**os.environ, "VISTA_HOME": str(real_refresh.path / "home")}
    said = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert not guards_of(place)
    header, _, *rows = said.splitlines()[-5:]
    assert header.split() == ["space", "epoch", "users"], said
    assert [row.split()[1:] for row in rows] == [["1", "120"], ["2", "120"], ["3", "120"]], said
