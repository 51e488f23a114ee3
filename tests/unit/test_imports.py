"""Importing is free, and the light part of the platform stays light."""

import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import vista

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "triton", "ray", "mlflow", "airflow")
LIGHT = (
    "vista.config",
    "vista.jobs",
    "vista.recipes",
    "vista.delivery",
    "vista.summary.record",
    "vista.__main__",
)


def fresh(code: str, cwd: Path, **more: str) -> "subprocess.CompletedProcess[str]":
    """Run `code` in an interpreter of its own."""
    environment = {
        "PYTHONPATH": str(ROOT),
        "PATH": "/usr/bin:/bin",
        "HOME": str(cwd),
        "TMPDIR": str(cwd),
        **more,
    }
    return subprocess.run(
        [sys.executable, "-B", "-c", code],
        cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip


@pytest.mark.parametrize("module", LIGHT)
def test_light_modules_load_nothing_heavy(module: str, tmp_path: Path) -> None:
    code = (
        f"import importlib, pkgutil, sys\nm = importlib.import_module({module!r})\n"
        "for found in pkgutil.iter_modules(getattr(m, '__path__', ())):\n"
        f"    importlib.import_module({module!r} + '.' + found.name)\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = fresh(code, tmp_path)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def test_the_embedded_log_needs_no_client(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom vista.delivery.log import open_log\n"
        "log = open_log('sqlite:///log.db', 1)\nassert log.append(0, [b'a']) == 1\n"
        "print([name for name in sys.modules if name.partition('.')[0] == 'kafka'])"
    )
    done = fresh(code, tmp_path)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def test_importing_everything_writes_nothing(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    names = [
        module.name
        for module in pkgutil.walk_packages(vista.__path__, "vista.")
        if not module.name.startswith("vista.orchestration.")  # Airflow's environment: tests/dags
    ]
    assert len(names) > 20
    code = f"import importlib\nfor name in {names!r}: importlib.import_module(name)"
    done = fresh(code, tmp_path, MPLCONFIGDIR=str(tmp_path_factory.mktemp("matplotlib")))  # its font cache
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_import_contracts_hold() -> None:
    done = subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
