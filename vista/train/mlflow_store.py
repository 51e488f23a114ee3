"""MLflow's store: a client of it, the tables of a new SQLite one, what it raises as `BackendError`.

    python -m vista.train.mlflow_store URL

makes the tables in a process of its own.
"""

import logging
import os
import sys
import uuid
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from vista.errors import BackendError

SQLITE = "sqlite:///"
MANY = 10_000
"""Runs that one search may find."""

P = ParamSpec("P")
R = TypeVar("R")


def mapped(function: Callable[P, R]) -> Callable[P, R]:
    """What MLflow and its database raise, as `BackendError`."""

    @wraps(function)
    def with_our_errors(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except Exception as error:
            if type(error).__module__.partition(".")[0] not in ("mlflow", "sqlalchemy", "alembic"):
                raise
            why = str(error).splitlines()[0]
            raise BackendError(
                f"MLflow: {type(error).__name__}: {why}; check MLFLOW_TRACKING_URI, and that the server "
                "answers or the file is whole"
            ) from error

    return with_our_errors


def client(url: str) -> Any:
    """MLflow's client of the tracking store and the registry at `url`."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    for name in ("alembic", "mlflow.system_metrics"):  # a line per migration of a new store, per thread
        logging.getLogger(name).setLevel(logging.WARNING)
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=url, registry_uri=url)


def file_of(url: str) -> Path | None:
    """The file of a SQLite store; None for a server."""
    return Path(url.removeprefix(SQLITE)) if url.startswith(SQLITE) else None


def make_store(url: str) -> None:
    """The tables of a new SQLite store, whole or not at all; only one process at a time may call it.

    MLflow refuses a store for ever whose first migrations were cut off in the middle.
    """
    path = file_of(url)
    if path is None or path.exists():
        return
    for left in path.parent.glob(f".{path.name}.*"):
        left.unlink()
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    client(f"{SQLITE}{unfinished}").search_experiments()
    unfinished.rename(path)


if __name__ == "__main__":
    make_store(sys.argv[1])
