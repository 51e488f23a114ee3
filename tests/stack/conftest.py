"""Stacks in places of their own; what was measured of them is printed at the end."""

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from local_stack import Stack
from pages import Airflow, opened_page
from playwright.sync_api import Page

from infra.kept_secrets import SECRETS

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


@pytest.fixture(scope="module")
def secrets(stack: Stack) -> Mapping[str, str]:
    """Of the module's own `stack`, which is up."""
    found: Mapping[str, str] = json.loads((stack.path / SECRETS).read_text())
    return found


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    with opened_page() as page:
        yield page


@pytest.fixture(scope="module")
def airflow(stack: Stack, secrets: Mapping[str, str], page: Page) -> Airflow:
    found = Airflow(page, stack.services()["airflow-api-server"].address)
    found.log_in("admin", secrets["airflow/admin"])
    return found


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if measured := config.stash.get(MEASURED, None):
        terminalreporter.section("what was measured")
        terminalreporter.write_line(json.dumps(measured, indent=2))
