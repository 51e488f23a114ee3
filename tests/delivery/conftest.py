"""Delivery on real servers, by faults. `make test` runs it small, `make test-faults` at full size.

Every test of a "must hold" of the delivery states what it found through `found`; the lines are printed as a
table at the end and written to build/faults.json.
"""

import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
from deployments import Deployment, embedded, on_servers

from infra.redis import Redis, running_redis

REPORT = Path(__file__).parents[2] / "build" / "faults.json"


@dataclass(slots=True)
class Found:
    """What a test counted; `lost`, `duplicated` and `mixed` must be 0 wherever they are counted."""

    test: str
    rounds: int = 0
    lost: int = 0
    duplicated: int = 0
    mixed: int = 0
    seconds: float = 0.0
    slowest_s: float = 0.0  # of the one action that the test is about


FOUND = pytest.StashKey[list[Found]]()


@pytest.fixture(scope="session")
def full_size() -> bool:
    """Whether to run at the size of the specification, which takes minutes a test."""
    return os.environ.get("VISTA_FULL_SIZE") == "1"


@pytest.fixture
def found(request: pytest.FixtureRequest) -> Iterator[Found]:
    """The line of this test in the table."""
    line, started = Found(request.node.name), time.monotonic()
    yield line
    line.seconds = round(time.monotonic() - started, 1)
    request.config.stash.setdefault(FOUND, []).append(line)


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


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    lines = config.stash.get(FOUND, [])
    if not lines:
        return
    terminalreporter.section("what was found")
    terminalreporter.write_line(
        f"{'rounds':>8} {'lost':>6} {'dupl.':>6} {'mixed':>6} {'seconds':>8} {'slowest':>8}  test"
    )
    for line in lines:
        counts = f"{line.rounds:8,} {line.lost:6,} {line.duplicated:6,} {line.mixed:6,}"
        terminalreporter.write_line(f"{counts} {line.seconds:8.1f} {line.slowest_s:8.3f}  {line.test}")
    machine = {"cores": os.cpu_count(), "python": platform.python_version(), "machine": platform.machine()}
    REPORT.parent.mkdir(exist_ok=True)
    report = {"machine": machine, "full_size": os.environ.get("VISTA_FULL_SIZE") == "1"}
    REPORT.write_text(json.dumps({**report, "found": [asdict(line) for line in lines]}, indent=2))
