"""What jobs on Ray's node see, and Airflow's processes too."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BACKENDS = ("VISTA_CATALOG_URL", "VISTA_LOG_URL", "VISTA_REGIONS", "VISTA_WAREHOUSE")
"""Variables that name a deployment's back ends."""


def home_of(recipe: str, backends: str, environment: Mapping[str, str]) -> Path:
    """Where the deployment of a recipe's runs is: in VISTA_HOME, by default one per kind of back ends."""
    default = ROOT / "var" / (recipe if backends == "embedded" else f"{recipe}-{backends}")
    return place_of("VISTA_HOME", default, environment)


def place_of(variable: str, default: Path, environment: Mapping[str, str]) -> Path:
    """The folder that a variable names; one that is empty counts as not set."""
    return Path(environment.get(variable) or default).absolute()


def inherited() -> dict[str, str]:
    """This process's variables but for back ends: those are another deployment's, whose environment somebody
    sourced in the same shell."""
    return {name: value for name, value in os.environ.items() if name not in BACKENDS}


def jobs_environment(runs: Path, home: Path, mlflow_url: str, backends: Mapping[str, str]) -> dict[str, str]:
    """Places and back ends (empty: the embedded ones below `home`); no secret."""
    return {
        **inherited(),
        "VISTA_RUNS": str(runs),
        "VISTA_HOME": str(home),
        "VISTA_PYTHON": sys.executable,
        "MLFLOW_TRACKING_URI": mlflow_url,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PYTHONUNBUFFERED": "1",
        **backends,
    }
