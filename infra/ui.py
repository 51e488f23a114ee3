"""`make ui [DATASET=generated] [BACKENDS=real]`: MLflow's page on the store of the runs, until Ctrl-C.

The store is that of `make run` with the same variables and VISTA_HOME.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from infra.environment import home_of
from infra.mlflow import OPTIONS
from vista.errors import InputError
from vista.recipes import RECIPES

PORT = 5_000


def store_of(arguments: Sequence[str], environment: Mapping[str, str]) -> Path:
    """The file of the store that KEY=VALUE arguments ask for. Raises `InputError`."""
    given = dict(argument.split("=", 1) for argument in arguments)
    if unknown := sorted(given.keys() - {"DATASET", "BACKENDS"}):
        raise InputError(f"make ui {unknown[0]}=...: it takes DATASET, BACKENDS")
    recipe, backends = given.get("DATASET") or "generated", given.get("BACKENDS") or "embedded"
    if recipe not in RECIPES:
        raise InputError(f"DATASET={recipe} does not exist: choose one of {', '.join(RECIPES)}")
    store = home_of(recipe, backends, environment) / "mlflow.db"
    if not store.exists():
        named = " (VISTA_HOME names the folder)" if environment.get("VISTA_HOME") else ""
        raise InputError(f"no MLflow store at {store}{named}: make run DATASET={recipe} first")
    return store


def main(arguments: Sequence[str]) -> int:
    """Becomes `mlflow ui`; 2 if there is no store for the data set."""
    try:
        store = store_of(arguments, os.environ)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    options = ["--backend-store-uri", f"sqlite:///{store}", "--host", "127.0.0.1", "--port", str(PORT)]
    print(f"MLflow is starting: http://127.0.0.1:{PORT} answers in some seconds (Ctrl-C ends it)", flush=True)
    os.execve(
        sys.executable,
        [sys.executable, "-m", "mlflow", "ui", "--workers", "1", *options],
        os.environ | OPTIONS,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
