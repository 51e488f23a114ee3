"""Delivery on real servers, by faults. `make test` runs it small, `make test-faults` at full size."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from deployments import Deployment, embedded, on_servers

from infra.redis import Redis, running_redis


@pytest.fixture(scope="session")
def three_redis(servers_place: Path) -> Iterator[dict[str, Redis]]:
    """A Redis for each of three regions."""
    with ExitStack() as stack:
        yield {
            region: stack.enter_context(running_redis(servers_place / f"redis-{region}"))
            for region in ("east", "west", "south")
        }


@pytest.fixture(params=["embedded", "servers"])
def deployment(request: pytest.FixtureRequest, tmp_path: Path) -> Deployment:
    """The back ends that the tests of regions run over."""
    if request.param == "embedded":
        return embedded(tmp_path)
    return on_servers(
        tmp_path, *(request.getfixturevalue(name) for name in ("metastore", "kafka", "three_redis"))
    )
