"""Fixtures that several folders share."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of the real data sets: `VISTA_DATA_DIR`, by default ../shared/data. CI must have it."""
    path = Path(os.environ.get("VISTA_DATA_DIR", Path(__file__).parents[2] / "shared" / "data"))
    if not path.is_dir():
        message = f"no real data at {path}: set VISTA_DATA_DIR; this test did NOT run"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return path
