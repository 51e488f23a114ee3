"""A warehouse on S3 that cannot be used: a typed error in time that says what to mend."""

import http.client
import socket
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow.fs as fs
import pytest
from delivery_samples import record, users_of
from refusals import refused

from infra.ports import free_block
from infra.s3 import S3, running_s3
from infra.servers import HOST
from vista.summary.files import names_in, read
from vista.summary.table import write_shard


@pytest.fixture(scope="module")
def closed_s3(servers_place: Path) -> Iterator[S3]:
    """One of its own, which can be told to look at its clients' keys; it has the bucket `table`."""
    with running_s3(servers_place / "closed-s3") as server:
        how = {"access_key": server.user, "secret_key": server.password, "region": "us-east-1"}
        opened = fs.S3FileSystem(endpoint_override=server.endpoint, allow_bucket_creation=True, **how)
        opened.create_dir("table")
        yield server


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "vista")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "vista")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)


def uses(bucket: str) -> list[Callable[[], object]]:
    """What exporters, committers and readers do first."""
    users = np.array(users_of(0, 3))
    records = [record(user) for user in users.tolist()]
    return [
        lambda: read(f"s3://{bucket}/table", "_bucket-00000.json"),
        lambda: names_in(f"s3://{bucket}/table"),
        lambda: write_shard(f"s3://{bucket}/table", 0, users, users, users, records),
    ]


def test_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{HOST}:{free_block(1)}")
    for use in uses("nobody"):
        with refused("s3://nobody/table: .*check the bucket, AWS_ENDPOINT_URL"):
            use()


def test_the_host_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://nowhere.invalid:9000")
    for use in uses("nowhere"):
        with refused("check the bucket, AWS_ENDPOINT_URL"):
            use()


def test_a_server_that_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(socket.create_server((HOST, 0))) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{HOST}:{silent.getsockname()[1]}")
        for use in uses("silent"):
            with refused("check the bucket, AWS_ENDPOINT_URL"):
                use()


def test_the_bucket_does_not_exist(closed_s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", closed_s3.endpoint)
    for use in uses("no-such-bucket"):
        with refused("there is no bucket no-such-bucket; check the bucket"):
            use()


def test_wrong_keys(closed_s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", closed_s3.endpoint)
    looks_at_keys(closed_s3, after=0)
    try:
        for use in uses("table"):
            with refused("AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
                use()
    finally:
        looks_at_keys(closed_s3, after=10**9)
    for use in uses("table"):
        use()
    assert names_in("s3://table/table") == ["_bucket-00000.json", "bucket-00000.parquet"]


def looks_at_keys(server: S3, after: int) -> None:
    """The server takes any keys for so many requests."""
    with closing(
        http.client.HTTPConnection(server.endpoint.removeprefix("http://"), timeout=30)
    ) as connection:
        connection.request("POST", "/moto-api/reset-auth", body=str(after).encode())
        assert connection.getresponse().status == 200
