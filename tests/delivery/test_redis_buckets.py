"""What a region's Redis costs does not grow with the square of its buckets."""

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from statistics import median

import pytest
from delivery_samples import SPACES, users_of

from infra.redis import Redis, running_cluster, running_redis
from vista.delivery.control import retirement
from vista.delivery.log import open_log
from vista.delivery.readiness import RegionState
from vista.delivery.store import open_store
from vista.delivery.worker import drain

MANY = 4_096
RETIRED = 64


@pytest.fixture(scope="module")
def cluster(servers_place: Path) -> Iterator[Redis]:
    with running_cluster(servers_place / "many-buckets") as redis:
        yield redis


@pytest.fixture(scope="module")
def single(servers_place: Path) -> Iterator[Redis]:
    with running_redis(servers_place / "few-buckets") as redis:
        yield redis


def cpu_s(redis: Redis, buckets: int) -> float:
    """Of this process, for the state of one bucket; the first one, which counts them all, is left out."""
    redis.wipe()
    taken_s = []
    with closing(open_store(redis.url, buckets)) as store:
        for bucket in (0, *range(50)):
            started_s = time.process_time()
            assert store.state(bucket % buckets).free_bytes > 0
            taken_s.append(time.process_time() - started_s)
    return median(taken_s[1:])


def test_the_state_of_a_bucket_costs_the_same_whatever_their_number(cluster: Redis) -> None:
    few_s, many_s = cpu_s(cluster, 4), cpu_s(cluster, MANY)
    assert many_s < 3 * few_s, (few_s, many_s)


def test_free_bytes_are_still_those_of_the_buckets_node(cluster: Redis) -> None:
    cluster.wipe()
    with closing(open_store(cluster.url, 16)) as store:
        state = RegionState.of("east", store, 16)
    free_bytes = [bucket.free_bytes for bucket in state.buckets]
    assert len(set(free_bytes)) > 1, "nodes have different shares of 16 buckets"
    assert max(free_bytes) < 16 * 2**40


def test_a_retirement_of_every_bucket_looks_at_each_a_few_times(single: Redis, tmp_path: Path) -> None:
    single.wipe()
    with (
        closing(open_log(f"sqlite:///{tmp_path}/log.db", RETIRED)) as log,
        closing(open_store(single.url, RETIRED)) as store,
    ):
        assert users_of(0, 1, RETIRED)
        log.broadcast(range(RETIRED), retirement(SPACES[0], 1))
        single.nodes[0].ask("CONFIG", "RESETSTAT")
        drain("east", log, store)
        assert all(store.state(bucket).floors == {SPACES[0]: 2} for bucket in range(RETIRED))
    calls = single.nodes[0].fields("INFO", "commandstats")["cmdstat_hgetall"]
    count = int(calls.partition("calls=")[2].partition(",")[0])
    assert RETIRED <= count < 4 * RETIRED, "one to begin, one to retire, one above"
