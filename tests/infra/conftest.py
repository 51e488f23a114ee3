"""A place for servers."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that PostgreSQL's own user may enter, unlike those of pytest."""
    path = Path(tempfile.mkdtemp(prefix="vista-servers-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)
