"""A backfill of three days by the stages themselves, beside a release that is newer than two of them."""

import hashlib
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from vista.config import RefreshConfig, Settings
from vista.data.schema import DAY_US
from vista.data.sources.generated import START_US
from vista.delivery.catalog import open_catalog
from vista.delivery.interfaces import Epoch
from vista.delivery.log import open_log
from vista.jobs import STAGES, run_stage
from vista.runs import RunDirectory
from vista.serve.operations import promote_by_hand

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3_600)]
OLD, OLDER, NEWEST = "2022-01-12", "2022-01-11", "2022-01-13"  # days 4, 3 and 5 of the data


def refresh_until(day: str, settings: Settings, *, warm_start: bool = True) -> dict[str, Any]:
    """What Airflow runs for a partition; the reports by stage."""
    config = RefreshConfig(
        recipe="smoke", run_id=f"production_refresh-{day}", until=day, warm_start=warm_start, workers=1
    )
    return {stage: run_stage(stage, config, settings) for stage in STAGES}


def epochs_of(settings: Settings, space: str) -> list[Epoch]:
    with closing(open_catalog(settings.catalog_url)) as catalog:
        return catalog.list_epochs(space)


def log_ends(settings: Settings) -> list[int]:
    with closing(open_log(settings.log_url)) as log:
        return [log.bounds(partition)[1] for partition in range(log.partitions)]


def content(folder: Path) -> dict[str, str]:
    """Every file below a folder by its bytes."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_three_days_are_three_epochs_and_a_rerun_changes_nothing(tmp_path: Path) -> None:
    """Must-hold 8."""
    settings = Settings.from_environment(
        {"VISTA_HOME": str(tmp_path / "home"), "VISTA_RUNS": str(tmp_path / "runs")}
    )
    first = refresh_until("2022-01-10", settings, warm_start=False)
    assert first["promote"]["promoted"], first["promote"]
    space = first["deliver"]["space"]
    before = epochs_of(settings, space)

    newest = refresh_until(NEWEST, settings)
    if not newest["promote"]["promoted"]:  # so little data: the gate may well refuse
        promote_by_hand(settings, f"production_refresh-{NEWEST}", "the newest day serves", dry_run=False)
    ends = log_ends(settings)
    days = {OLDER: refresh_until(OLDER, settings), OLD: refresh_until(OLD, settings), NEWEST: newest}

    made = epochs_of(settings, space)[len(before) :]
    assert sorted(epoch.as_of_us for epoch in made) == [START_US + day * DAY_US for day in (3, 4, 5)]
    assert all(epoch.published for epoch in made)
    assert {day: reports["deliver"]["delivered"] for day, reports in days.items()} == {
        OLDER: False, OLD: False, NEWEST: True,
    }  # fmt: skip
    assert "older epochs stay in the table" in days[OLDER]["deliver"]["reason"]
    assert not days[OLD]["promote"]["promoted"]
    assert log_ends(settings) == ends
    with closing(open_catalog(settings.catalog_url)) as catalog:
        assert catalog.releases()[-1].epoch == newest["deliver"]["epoch"]

    kept = content(tmp_path)
    assert {day: refresh_until(day, settings) for day in (OLDER, OLD, NEWEST)} == days
    assert content(tmp_path) == kept

    for day in (OLDER, NEWEST):  # done again in earnest: what is published stays, what was appended too
        run = RunDirectory.named(settings.runs, f"production_refresh-{day}")
        for stage in ("export_summaries", "deliver"):
            (run.path / "stages" / f"{stage}.json").unlink()
        again = refresh_until(day, settings)
        assert again["export_summaries"]["newest_epoch"] == days[day]["export_summaries"]["newest_epoch"]
        assert again["deliver"]["appended_records"] == 0
    assert epochs_of(settings, space) == [*before, *made]
    assert content(tmp_path / "home" / "warehouse") == {
        name.removeprefix("home/warehouse/"): digest
        for name, digest in kept.items()
        if name.startswith("home/warehouse/")
    }
