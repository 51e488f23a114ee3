"""Stacks in places of their own; what was measured of them is printed at the end."""

import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from local_stack import Stack

MEASURED = pytest.StashKey[dict[str, dict[str, float]]]()


@pytest.fixture(scope="session")
def new_stack(request: pytest.FixtureRequest) -> Iterator[Callable[[str], Stack]]:
    """Makes stacks that do not run yet, in folders that PostgreSQL's own user may enter."""
    stacks: dict[str, Stack] = {}

    def make(name: str) -> Stack:
        path = Path(tempfile.mkdtemp(prefix=f"vista-stack-{name}-"))
        path.chmod(0o755)
        stacks[name] = Stack(path / "stack")
        return stacks[name]

    yield make
    measured = {name: stack.measured for name, stack in stacks.items()}
    request.config.stash[MEASURED] = measured
    for stack in stacks.values():
        stack.clear_away()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if measured := config.stash.get(MEASURED, None):
        terminalreporter.section("what was measured")
        terminalreporter.write_line(json.dumps(measured, indent=2))
