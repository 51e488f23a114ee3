"""What the guides tell people to type, and what they show, must exist."""

import re
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from mlflow import environment_variables

from vista.__main__ import commands

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
GUIDES = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "guide").glob("*.md")}
TYPED = [
    line
    for text in (GUIDE, *GUIDES.values())
    for line in re.findall(r"python -m vista ((?:[a-z-]+)(?: [^`\n;,:)|]*)?)", text)
]


def test_the_guides_show_commands() -> None:
    assert len({line.split()[0] for line in TYPED}) > 5


def test_every_picture_that_is_shown_exists_and_every_one_that_exists_is_shown() -> None:
    shown = {name for text in GUIDES.values() for name in re.findall(r"\]\(pictures/([^)]+)\)", text)}
    assert shown == {path.name for path in (ROOT / "docs" / "guide" / "pictures").glob("*")}


@pytest.mark.parametrize("line", sorted(set(TYPED)))
def test_every_command_and_option_exists(line: str) -> None:
    name, *rest = line.split()
    command = commands.commands[name]
    known = {option for one in command.params if isinstance(one, click.Option) for option in one.opts}
    assert {word for word in rest if word.startswith("--")} <= known | {"--help"}


def test_every_variable_is_one_that_we_or_a_client_reads() -> None:
    used = set(re.findall(r"`(VISTA_[A-Z_]+|MLFLOW_[A-Z_]+)`", GUIDE))
    ours = re.findall(r'"(VISTA_[A-Z_]+|MLFLOW_[A-Z_]+)"', (ROOT / "vista" / "config.py").read_text())
    assert used >= set(ours)
    assert all(hasattr(environment_variables, name) for name in used - set(ours)), "MLflow's own"


def test_every_file_that_is_named_exists() -> None:
    for path in re.findall(r"`((?:infra|docs|vista)/[\w./-]+)`", GUIDE):
        assert (ROOT / path).exists(), path


def test_every_test_that_is_named_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", GUIDE))
    files = [path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py")]
    assert len(named) > 40
    assert named <= set(re.findall(r"^def (test_\w+)\(", "\n".join(files), re.MULTILINE))


def test_every_metric_is_explained_and_exists() -> None:
    code = (ROOT / "vista" / "delivery" / "region_health.py").read_text(encoding="utf-8")
    told = {name.removesuffix("_total") for name in re.findall(r"^\| `(vista_\w+)` \|", GUIDE, re.MULTILINE)}
    assert told == set(re.findall(r'"(vista_\w+)"', code))


def test_every_alert_is_explained_and_exists() -> None:
    rules = (ROOT / "infra" / "conf" / "prometheus" / "alerts.yml").read_text(encoding="utf-8")
    alerts = re.findall(r"alert: (\w+)\n +expr: .*\n(?: +for: (\d+)m\n)?", rules)
    assert len(alerts) == rules.count("alert:")
    metrics = GUIDE.partition("## Metrics and alerts")[2].partition("\n## ")[0]
    told = dict(re.findall(r"`([A-Z][A-Za-z]+)`([:,][^|\n]*)", metrics))
    assert told.keys() == dict(alerts).keys()
    for name, minutes in alerts:
        assert not minutes or f"for {minutes} minute" in told[name], name


def test_the_capacity_that_is_shown_is_what_is_printed() -> None:
    (typed,) = re.findall(r"^    python -m vista (capacity .*)$", GUIDE, re.MULTILINE)
    (shown,) = re.findall(r"^```\n(.*?)```$", GUIDE, re.MULTILINE | re.DOTALL)
    printed = CliRunner().invoke(commands, typed.split(), catch_exceptions=False)
    assert printed.output == shown


def test_every_promise_is_tried_by_the_tests_that_are_named() -> None:
    """The rows of the table of `make test-faults`: the marks of the tests."""
    told = {
        int(number): set(re.findall(r"`(tests/[\w./]+)`", places))
        for number, places in re.findall(r"^\| (\d+) \|[^|]*\|([^|]*)\|$", GUIDE, re.MULTILINE)
    }
    marked: dict[int, set[str]] = {}
    for path in (ROOT / "tests").rglob("test_*.py"):
        for number in re.findall(r"^@pytest\.mark\.must_hold\((\d+)\)$", path.read_text(), re.MULTILINE):
            marked.setdefault(int(number), set()).add(str(path.relative_to(ROOT)))
    assert marked == told
    assert sorted(told) == list(range(1, 14))
