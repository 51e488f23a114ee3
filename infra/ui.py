"""`make ui [DATASET=generated] [BACKENDS=real]`: MLflow's page on the store of the runs, until Ctrl-C.

The store is that of `make run` with the same variables and VISTA_HOME.
"""

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from infra.environment import home_of
from infra.mlflow import OPTIONS
from infra.ports import free_block, is_free
from infra.processes import guarded, stop
from infra.servers import HOST
from vista.errors import InputError, VistaError
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
    """Shows the page until Ctrl-C (130) or until the server ends (its exit code, after its own words); 2 if
    there is no store for the data set, 1 if no port is free."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        store = store_of(arguments, os.environ)
        port = PORT if is_free(PORT) else free_block(1)
    except VistaError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    command = [
        sys.executable, "-m", "mlflow", "ui", "--workers", "1",
        "--backend-store-uri", f"sqlite:///{store}", "--host", HOST, "--port", str(port),
    ]  # fmt: skip
    taken = "" if port == PORT else f"port {PORT} is taken; "
    print(
        f"{taken}MLflow is starting: http://{HOST}:{port} answers in some seconds (Ctrl-C ends it)",
        flush=True,
    )
    server = guarded(command, os.environ | OPTIONS)  # Ctrl-C does not reach it, which would show tracebacks
    try:
        return server.wait()
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not leave half of it running
        stop(server)
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
