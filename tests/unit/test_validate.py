"""A newest day that is not like the others stops the run with figures."""

import re
from datetime import date
from pathlib import Path

import polars as pl
import pytest

from vista.config import DataConfig, GeneratedConfig, WindowConfig
from vista.data.prepare import prepare_dataset
from vista.data.rejects import Rejects
from vista.data.sources import SOURCES, Source, SourceInfo
from vista.data.validate import DayFigures, check_newest_day, day_figures
from vista.errors import DataValidationError

USUAL = DayFigures(day=0, candidates=1_000, label_rate=0.4, new_items=0.1, known_users=0.9)
JAN_1 = date(2026, 1, 1)


def days(**newest: float) -> list[DayFigures]:
    earlier = [USUAL.model_copy(update={"day": day, "candidates": 900 + 50 * day}) for day in range(5)]
    return [*earlier, USUAL.model_copy(update={"day": 5} | newest)]


def test_a_usual_day_passes() -> None:
    check_newest_day(days(), JAN_1)
    check_newest_day(days(candidates=650, label_rate=0.5, new_items=0.5, known_users=0.5), JAN_1)


@pytest.mark.parametrize(
    ("newest", "message"),
    [
        ({"candidates": 500}, "500 candidates, usually 1,000"),
        ({"label_rate": 0.1}, "label rate 0.1000, usually 0.4000"),
        ({"new_items": 0.9}, "90.0% of candidates are new items, usually 10.0%"),
        ({"known_users": 0.2}, "20.0% known users, usually 90.0%"),
    ],
)
def test_each_figure_is_checked_and_named(newest: dict[str, float], message: str) -> None:
    with pytest.raises(DataValidationError, match=re.escape(message)):
        check_newest_day(days(**newest), JAN_1)


def test_everything_that_is_off_is_named_at_once() -> None:
    with pytest.raises(
        DataValidationError,
        match=r"^day 5 \(2026-01-06\), the newest, .*candidates.*label rate.*known users.*Wait for the rest",
    ):
        check_newest_day(days(candidates=300, label_rate=0.0, known_users=0.0), JAN_1)


def test_a_small_day_may_be_off_by_chance() -> None:
    small = [one.model_copy(update={"candidates": 8}) for one in days(label_rate=0.75, known_users=0.4)]
    check_newest_day(small, JAN_1)


def test_two_earlier_days_are_no_usual_day() -> None:
    check_newest_day(days(candidates=1)[-3:], JAN_1)


def test_the_median_is_of_the_trailing_days() -> None:
    busy_long_ago = [USUAL.model_copy(update={"day": -day, "candidates": 10**6}) for day in range(20, 10, -1)]
    quiet = [USUAL.model_copy(update={"day": day, "candidates": 100}) for day in range(7)]
    newest = USUAL.model_copy(update={"day": 7, "candidates": 90})
    check_newest_day([*busy_long_ago, *quiet, newest], JAN_1)


def test_figures_of_days() -> None:
    candidates = pl.DataFrame(
        {
            "day": [0, 0, 1, 1, 1, 1],
            "user_id": [1, 2, 1, 1, 3, 4],
            "label": [1, 0, 1, 1, 1, 0],
            "item_first_day": [0, -1, 0, 1, 1, 0],
            "user_first_day": [0, -3, 0, 0, 1, 1],
        }
    )
    first, second = day_figures(candidates)
    assert (first.candidates, first.label_rate, first.new_items, first.known_users) == (2, 0.5, 0.5, 0.5)
    assert (second.candidates, second.label_rate, second.new_items) == (4, 0.75, 0.5)
    assert second.known_users == pytest.approx(1 / 3)


def half_of_the_newest_day(config: DataConfig) -> list[object]:
    """The generated source without the candidates of most users on its last day."""
    rejects = Rejects()
    rows = pl.concat(pl.DataFrame(batch) for batch in SOURCES["generated"].read(config, rejects))
    last = rows.filter("candidate_only")["event_time_us"].max() // 86_400_000_000  # type: ignore[operator]
    lost = (
        (pl.col("event_time_us") // 86_400_000_000 == last)
        & pl.col("candidate_only")
        & (pl.col("user_id") > 20)
    )
    return rows.filter(~lost).to_arrow(compat_level=pl.CompatLevel.oldest()).to_batches()


def test_a_half_empty_last_day_stops_preparing_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = GeneratedConfig(users=60, items=64, events_per_user=24, days=6)
    config = DataConfig(source="generated", buckets=2, generated=size)
    batches = half_of_the_newest_day(config)
    monkeypatch.setattr(Source, "read", lambda self, config, rejects: iter(batches))
    with pytest.raises(
        DataValidationError, match=r"day 5 \(\d{4}-\d{2}-\d{2}\), .*168 candidates, usually 480"
    ):
        prepare_dataset(config, tmp_path / "data", WindowConfig())
    assert list(tmp_path.iterdir()) == []
    assert isinstance(SOURCES["generated"].describe(config), SourceInfo)
