"""Epochs that were published in Hive, as other programs read them: SQL, and plain pyarrow."""

import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow.dataset as ds
import pytest
from delivery_samples import SPACES, finish_stages, fresh_database, settings_of
from hive_sql import Sql, open_epoch, session, write_rows
from must_hold import Found
from pyarrow.fs import S3FileSystem

from infra.hive import HiveServer, Metastore
from infra.s3 import S3
from vista.config import RefreshConfig
from vista.delivery.catalog import open_catalog
from vista.delivery.deliver import deliver_epoch
from vista.delivery.interfaces import AuditLine, Catalog, Epoch
from vista.delivery.publish import attempt_directory, commit
from vista.delivery.retention import sweep
from vista.summary.files import files_at, names_in
from vista.summary.join import SummaryReader

SPACE = SPACES[0]


@pytest.fixture
def database(metastore: Metastore) -> str:
    return fresh_database(metastore)


@pytest.fixture
def catalog(database: str) -> Iterator[Catalog]:
    with closing(open_catalog(database)) as opened:
        yield opened


@pytest.fixture(scope="module")
def sql(hiveserver: HiveServer) -> Iterator[Sql]:
    with session(hiveserver) as opened:
        yield opened


@pytest.fixture
def on_s3(s3: S3, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a bucket, and the environment in which it is found."""
    known = {"access_key": s3.user, "secret_key": s3.password, "region": "us-east-1"}
    bucket = f"vista-{uuid.uuid4().hex[:8]}"
    S3FileSystem(endpoint_override=s3.endpoint, allow_bucket_creation=True, **known).create_dir(bucket)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.user)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.password)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    return f"s3://{bucket}"


def table(database: str, name: str = "summaries") -> str:
    return f"{database.rpartition('/')[2]}.{name}"


def plain_rows(epoch: Epoch) -> int:
    """What pyarrow finds in the epoch's folder, told nothing."""
    files, path = files_at(epoch.location)
    rows: int = ds.dataset(path, filesystem=files, format="parquet").count_rows()
    return rows


def withdraw(catalog: Catalog, epoch: Epoch) -> None:
    line = AuditLine(time_us=1, actor="test", action="withdraw", reason="bad", before="", after="")
    catalog.withdraw(epoch.space, epoch.epoch, line)


def check_sql(sql: Sql, database: str, epoch: Epoch, hashes: dict[int, str], found: Found) -> None:
    """Count and hash of every row are what was written."""
    name = table(database, "usable_summaries")
    where = f"WHERE space = '{SPACE}' AND epoch = {epoch.epoch}"
    ((rows, users),) = sql.rows(f"SELECT count(*), count(DISTINCT user_id) FROM {name} {where}")
    seen = dict(sql.rows(f"SELECT user_id, sha2(value, 256) FROM {name} {where}"))
    found.rounds += 1
    found.add(duplicated=rows - users, lost=sum(seen.get(user) != digest for user, digest in hashes.items()))
    assert (found.lost, found.duplicated, rows, len(seen)) == (0, 0, len(hashes), len(hashes))


@pytest.mark.must_hold(1)
def test_sql_finds_every_row_as_it_was_written(
    catalog: Catalog, database: str, sql: Sql, servers_place: Path, full_size: bool, found: Found
) -> None:
    """Must hold 1: 100k summaries of 33 kB published, count and per-row hash equal through HiveServer2."""
    users, buckets = (100_000, 32) if full_size else (2_000, 4)
    epoch = open_epoch(catalog, 1, buckets=buckets)
    attempt = attempt_directory(servers_place / "table", epoch, "one")
    hashes = write_rows(attempt, epoch, users, seeds=128, width=256)
    published = commit(catalog, epoch, attempt)
    assert plain_rows(published) == published.rows == users
    check_sql(sql, database, published, hashes, found)


def test_a_new_epoch_is_seen_at_once_and_a_withdrawn_one_no_more(
    catalog: Catalog, database: str, sql: Sql, servers_place: Path
) -> None:
    """In a session that is open, by the view and by the table itself."""
    counted = "SELECT epoch, count(*) FROM {} GROUP BY epoch ORDER BY epoch"
    published = []
    for number in (1, 2):
        epoch = open_epoch(catalog, number)
        attempt = attempt_directory(servers_place / "seen", epoch, "one")
        write_rows(attempt, epoch, 50 * number, 4, 8)
        published.append(commit(catalog, epoch, attempt))
        expected = [(n, 50 * n) for n in range(1, number + 1)]
        assert sql.rows(counted.format(table(database))) == expected
    withdraw(catalog, published[0])
    for name in ("summaries", "usable_summaries"):
        assert sql.rows(counted.format(table(database, name))) == [(2, 100)]
    assert catalog.list_epochs(SPACE)[0] == published[0].model_copy(update={"withdrawn": True})
    assert plain_rows(published[0]) == 50, "a withdrawal touches no file"


@pytest.mark.must_hold(1)
def test_a_table_on_s3_is_written_verified_read_and_swept(
    catalog: Catalog, database: str, sql: Sql, on_s3: str, found: Found
) -> None:
    epoch = open_epoch(catalog, 1)
    attempt = attempt_directory(f"{on_s3}/table", epoch, "one")
    hashes = write_rows(attempt, epoch, 200, 4, 8)
    published = commit(catalog, epoch, attempt)
    assert published.location == attempt
    assert plain_rows(published) == 200
    check_sql(sql, database, published, hashes, found)
    cut_us_B = np.full(200, published.as_of_us)
    assert SummaryReader([published]).lookup(np.arange(200), cut_us_B)[1].all()
    late = attempt_directory(f"{on_s3}/table", epoch, "late")
    write_rows(late, epoch, 200, 4, 8)
    assert commit(catalog, epoch, late) == published
    assert names_in(late) == [], "a loser deletes its files"
    assert sweep(catalog, f"{on_s3}/table") == []
    withdraw(catalog, published)
    assert sweep(catalog, f"{on_s3}/table") == []
    assert names_in(attempt.rpartition("/")[0]) == ["attempt=one", "attempt=one.unused"]


def test_an_epoch_on_s3_reaches_every_region(
    catalog: Catalog, database: str, on_s3: str, tmp_path: Path
) -> None:
    """The stage that delivers, over a catalog in Hive and files on S3; no pin is left."""
    epoch = open_epoch(catalog, 1)
    attempt = attempt_directory(f"{on_s3}/delivered", epoch, "one")
    write_rows(attempt, epoch, 200, 4, 8)
    published = commit(catalog, epoch, attempt)
    changed = {"catalog_url": database, "warehouse": f"{on_s3}/delivered"}
    settings = settings_of(tmp_path).model_copy(update=changed)
    finish_stages(settings, "run", published)
    report = deliver_epoch(RefreshConfig(recipe="smoke", run_id="run"), settings)
    assert report.delivered
    assert {name: region.coverage for name, region in report.regions.items()} == {"east": 1.0, "west": 1.0}
    assert report.appended_records == 200
    assert names_in(attempt.rpartition("/")[0]) == ["attempt=one"]
