"""What the guide on own data shows must be true of the code."""

import re
from pathlib import Path

import pytest

from vista.config import RefreshConfig
from vista.data.mapping import Mapping, parse_mapping
from vista.data.sources.draft import describe_events

GUIDE = (Path(__file__).parents[2] / "docs" / "guide" / "own-data.md").read_text(encoding="utf-8")


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """Rows as the guide shows them, an hour apart."""
    header, *shown = re.findall(r"^    (ts,.*|\d{10},.*)$", GUIDE, re.MULTILINE)
    rows = [f"{1767225600 + 3600 * n},{shown[n % 2].split(',', 1)[1]}" for n in range(200)]
    (tmp_path / "week-1.csv").write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return tmp_path


def mapping_of_the_guide() -> str:
    found = re.search(r"```yaml\n(.*?)```", GUIDE, re.DOTALL)
    assert found
    return found[1]


def test_the_draft_is_the_one_that_describe_events_makes(shop: Path) -> None:
    drafted = parse_mapping(describe_events(str(shop)).encode(), "draft")
    assert drafted == parse_mapping(mapping_of_the_guide().encode(), "guide")


def test_every_key_of_a_mapping_is_explained() -> None:
    table = GUIDE[GUIDE.index("| key |") : GUIDE.index("An expression is")]
    first_cells = re.findall(r"^\|([^|]+)\|", table, re.MULTILINE)
    explained = {key for cell in first_cells for key in re.findall(r"`(\w+)`", cell)}
    assert explained == set(Mapping.model_fields)


def test_variables_of_make_run_exist() -> None:
    used = set(re.findall(r"`([A-Z_]+)=\d+`", GUIDE))
    assert {name.lower() for name in used} <= set(RefreshConfig.model_fields)
    assert len(used) >= 5
