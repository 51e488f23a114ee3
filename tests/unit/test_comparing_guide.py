"""What the guide on comparing experiments names must exist in the code."""

import re
from pathlib import Path

import click

from vista.__main__ import commands

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "guide" / "comparing-experiments.md").read_text(encoding="utf-8")
CODE = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "vista").rglob("*.py")))


def test_every_option_exists() -> None:
    params = [one for name in ("compare", "experiment") for one in commands.commands[name].params]
    known = {option for one in params if isinstance(one, click.Option) for option in one.opts}
    named = set(re.findall(r"`(--[a-z-]+)", GUIDE))
    assert named <= known
    assert len(named) > 3


def test_every_tag_and_metric_is_one_that_is_written() -> None:
    tags = set(re.findall(r"`((?:vista|airflow)\.[a-z_]+)`", GUIDE))
    missing = {
        tag for tag in tags if tag not in CODE and f'"{tag.removeprefix("airflow.")}"' not in CODE
    }  # Airflow's words stand beside those of the job's metadata
    assert not missing
    assert len(tags) > 12
    metrics = set(re.findall(r"`test_(\w+)`", GUIDE))
    assert metrics <= {"auc", "ne", "gauc", "calibration"}
