"""A run that reads until a day is the run of a source that ends there."""

from pathlib import Path

import polars as pl
import pytest

from vista.config import DataConfig, GeneratedConfig, WindowConfig
from vista.data.dataset import Dataset
from vista.data.prepare import prepare_dataset
from vista.data.schema import DAY_US
from vista.data.sources.generated import START_US
from vista.errors import InputError

GENERATED = GeneratedConfig(users=60, items=64, events_per_user=24, days=6)
DATA = DataConfig(source="generated", buckets=2, max_uih=16, generated=GENERATED)


def events_of(path: Path, data: DataConfig) -> pl.DataFrame:
    prepare_dataset(data, path, WindowConfig())
    dataset = Dataset.open(path)
    events = dataset.events
    return pl.DataFrame({"user": events.user_id_N, "time": events.event_time_us_N})


def test_only_later_rows_are_missing(tmp_path: Path) -> None:
    every = events_of(tmp_path / "every", DATA)
    until = events_of(tmp_path / "until", DATA.model_copy(update={"until": "2022-01-11"}))
    end_us = START_US + 4 * DAY_US  # day 0 is 2022-01-08
    assert until.equals(every.filter(pl.col("time") < end_us))
    assert 0 < until.height < every.height
    split = Dataset.open(tmp_path / "until").split()
    assert (split.k, split.n) == (2, 3)


def test_the_day_ends_in_the_source_s_zone(tmp_path: Path) -> None:
    east = DATA.model_copy(update={"until": "2022-01-11", "day_offset_s": 8 * 3_600})
    assert int(events_of(tmp_path / "east", east)["time"].max()) < START_US + 4 * DAY_US - 8 * 3_600 * 10**6  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("until", "clock", "message"),
    [
        ("2022-02-30", "event_time", "day is out of range for month: write a date as YYYY-MM-DD"),
        ("2021-01-01", "event_time", "the first event is of 2021-11-09 00:00 UTC: name a later day"),
        ("2022-01-11", "user_fraction", "the clock 'user_fraction' has no dates: leave until out"),
    ],
)
def test_what_cannot_be_read_is_refused(tmp_path: Path, until: str, clock: str, message: str) -> None:
    data = DATA.model_copy(update={"until": until, "clock": clock})
    with pytest.raises(InputError, match=message):
        prepare_dataset(data, tmp_path / "data", WindowConfig())
    assert not (tmp_path / "data").exists()
