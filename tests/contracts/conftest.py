"""The back ends under contract. A second one is one more branch in a fixture here; no test changes."""

import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from delivery_samples import BUCKETS, fresh_database
from kafka import KafkaAdminClient

from infra.processes import wait_until
from infra.redis import Redis, running_cluster, running_redis
from vista.delivery.catalog import open_catalog
from vista.delivery.interfaces import Catalog, Log, Store
from vista.delivery.log import open_log
from vista.delivery.store import open_store
from vista.errors import NoLogError


def fresh_url(backend: str, path: Path, name: str) -> str:
    """The URL of an empty back end."""
    assert backend == "sqlite"
    return f"sqlite:///{path}/{name}.db"


@pytest.fixture(scope="session")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    with running_redis(tmp_path_factory.mktemp("redis")) as servers:
        yield servers


@pytest.fixture(scope="session")
def redis_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    with running_cluster(tmp_path_factory.mktemp("redis-cluster")) as servers:
        yield servers


@pytest.fixture(params=["sqlite", "redis", "redis_cluster"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return fresh_url(request.param, tmp_path, "store")
    servers: Redis = request.getfixturevalue(request.param)
    servers.wipe()
    return servers.url


@pytest.fixture
def wipe(request: pytest.FixtureRequest, store_url: str) -> Callable[[], None]:
    """Take everything from the store, whoever has it open."""
    if not store_url.startswith("sqlite:"):
        servers: Redis = request.getfixturevalue("redis_cluster" if "cluster" in store_url else "redis")
        return servers.wipe
    path = Path(store_url.removeprefix("sqlite:///"))

    def delete() -> None:
        for file in path.parent.glob(f"{path.name}*"):
            file.unlink()

    return delete


@pytest.fixture(params=["sqlite", "kafka"])
def log_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "kafka":
        broker = request.getfixturevalue("kafka").brokers[0]
        return f"kafka://127.0.0.1:{broker.port}/log-{uuid.uuid4().hex}"
    return fresh_url(request.param, tmp_path, "log")


@pytest.fixture
def lose_log(log_url: str) -> Callable[[], None]:
    """Delete the log, whoever has it open."""
    if log_url.startswith("sqlite:"):
        path = Path(log_url.removeprefix("sqlite:///"))
        return lambda: [file.unlink() for file in path.parent.glob(f"{path.name}*")].clear()

    def is_gone() -> bool:
        try:
            open_log(log_url).close()
        except NoLogError:
            return True
        return False

    def delete() -> None:
        _, _, server, topic = log_url.split("/")
        with closing(KafkaAdminClient(bootstrap_servers=server)) as admin:
            admin.delete_topics([topic])
        assert wait_until(is_gone, 30.0)

    return delete


@pytest.fixture(params=["sqlite", "hive"])
def catalog_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "hive":
        return fresh_database(request.getfixturevalue("metastore"))
    return fresh_url(request.param, tmp_path, "catalog")


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    opened = open_store(store_url, BUCKETS)
    yield opened
    opened.close()


@pytest.fixture
def log(log_url: str) -> Iterator[Log]:
    opened = open_log(log_url, BUCKETS)
    yield opened
    opened.close()


@pytest.fixture
def catalog(catalog_url: str) -> Iterator[Catalog]:
    opened = open_catalog(catalog_url)
    yield opened
    opened.close()
