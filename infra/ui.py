"""`make ui [DATASET=generated] [BACKENDS=real]`: MLflow's page on the store of the runs, until Ctrl-C."""

import os
import sys
from collections.abc import Sequence

from infra.environment import home_of
from infra.mlflow import OPTIONS
from vista.recipes import RECIPES

PORT = 5_000


def main(arguments: Sequence[str]) -> int:
    """Becomes `mlflow ui`; 2 if there is no store for the data set."""
    given = dict(argument.split("=", 1) for argument in arguments)
    recipe = given.get("DATASET", "generated")
    store = home_of(recipe, given.get("BACKENDS", "embedded")) / "mlflow.db"
    if recipe not in RECIPES or not store.exists():
        print(f"error: no MLflow store at {store}: make run DATASET={recipe} first", file=sys.stderr)
        return 2
    options = ["--backend-store-uri", f"sqlite:///{store}", "--host", "127.0.0.1", "--port", str(PORT)]
    print(f"MLflow is starting: http://127.0.0.1:{PORT} answers in some seconds (Ctrl-C ends it)", flush=True)
    os.execve(
        sys.executable,
        [sys.executable, "-m", "mlflow", "ui", "--workers", "1", *options],
        os.environ | OPTIONS,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
