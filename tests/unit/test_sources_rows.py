"""Checks, copies and clocks, which all readers of files share."""

from datetime import UTC, date, datetime, timedelta, timezone

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vista.data.clocks import VIRTUAL_DAYS, VIRTUAL_START_US, user_fraction
from vista.data.rejects import Rejects
from vista.data.schema import DAY_US
from vista.data.sources.rows import Seen, epoch_us, iso8601_us, time_check, usable, whole_number
from vista.data.sources.tables import LINE


def test_whole_numbers_never_round() -> None:
    texts = ["1", "2.0", "2.5", "x", None, "9007199254740993", "-3", "", "1e3", "99999999999999999999"]
    expected = [1, 2, None, None, None, 9007199254740993, -3, None, 1000, None]
    assert whole_number(pl.Series(texts)).to_list() == expected
    assert whole_number(pl.Series([1.0, 2.5, None, float("nan")])).to_list() == [1, None, None, None]
    assert whole_number(pl.Series([2**64 - 1], dtype=pl.UInt64)).to_list() == [None]


def test_times_of_another_unit_never_wrap_into_a_plausible_year() -> None:
    moments = pl.Series(["1650000000", "1650000000.25", "1650000000000", "1650000000000000", "12", "x", None])
    assert epoch_us(moments, "s").to_list() == [1_650_000_000_000_000, 1_650_000_000_250_000, *[None] * 5]
    assert epoch_us(moments, "ms").to_list() == [None, None, 1_650_000_000_000_000, *[None] * 4]
    overflowing = pl.Series([2**64 // 10**6 + 1_650_000_000, 2**63 - 1])
    assert epoch_us(overflowing, "s").to_list() == [None, None]


def test_iso8601_with_and_without_zone() -> None:
    texts = [
        "2024-05-01T12:30:00Z",
        "2024-05-01 14:30:00.5+02:00",
        "2024-05-01 12:30",
        "2024-05-01",
        "May 1",
        None,
    ]
    expected = [datetime(2024, 5, 1, 12, 30), datetime(2024, 5, 1, 12, 30, 0, 500_000),
                datetime(2024, 5, 1, 12, 30), datetime(2024, 5, 1), None, None]  # fmt: skip
    assert iso8601_us(pl.Series(texts)).cast(pl.Datetime("us")).to_list() == expected


def test_timestamp_columns_are_utc_whatever_their_zone() -> None:
    noon = datetime(2024, 5, 1, 12, tzinfo=UTC)
    tokyo = pl.Series([noon.astimezone(timezone(timedelta(hours=9)))]).dt.convert_time_zone("Asia/Tokyo")
    assert iso8601_us(tokyo).to_list() == [int(noon.timestamp() * 1e6)]
    assert iso8601_us(pl.Series([date(1970, 1, 2)])).to_list() == [DAY_US]


@pytest.mark.parametrize(
    ("unit", "value", "reason"),
    [
        (
            "s",
            "1650000000000",
            "time '1650000000000' in unit s is the year 54256: it looks like time_unit: ms",
        ),
        ("ms", "1650000000", "time '1650000000' in unit ms is the year 1970: it looks like time_unit: s"),
        ("iso8601", "1650000000", "time '1650000000' is not in unit iso8601: it looks like time_unit: s"),
        ("s", "12", "time '12' is not a time between 1980 and 2100 in unit s"),
        ("s", "soon", "time 'soon' is not a time between 1980 and 2100 in unit s"),
        ("s", None, "time is empty"),
    ],
)
def test_reasons_name_the_likely_unit(unit: str, value: str | None, reason: str) -> None:
    frame = pl.DataFrame({"t": [value], LINE: [7]}, schema_overrides={"t": pl.String})
    time_us = iso8601_us(frame["t"]) if unit == "iso8601" else epoch_us(frame["t"], unit)
    rejects = Rejects()
    left = usable(
        frame.with_columns(time_us.alias("us")), [time_check("t", pl.col("us"), unit)], "a.csv", rejects
    )
    assert left.is_empty()
    assert rejects.first == [f"a.csv, line 7: {reason}"]


@given(st.lists(st.lists(st.tuples(st.integers(0, 3), st.sampled_from("ab")), max_size=30), max_size=8))
def test_copies_are_dropped_as_unique_does(chunks: list[list[tuple[int, str]]]) -> None:
    seen, rejects = Seen(), Rejects()
    schema = {"n": pl.Int64, "t": pl.String}
    frames = [pl.DataFrame(chunk, schema=schema, orient="row") for chunk in chunks]
    kept = [seen.without_copies(frame, ["n", "t"], rejects) for frame in frames]
    everything = pl.concat([*frames, pl.DataFrame(schema=schema)])
    expected = everything.unique(keep="first", maintain_order=True)
    assert pl.concat([*kept, pl.DataFrame(schema=schema)]).equals(expected)
    assert rejects.duplicates == everything.height - expected.height


def test_copies_far_apart_are_found() -> None:
    seen, rejects = Seen(), Rejects()
    for start in range(0, 100_000, 10_000):
        frame = pl.DataFrame({"n": range(start, start + 10_000)})
        assert seen.without_copies(frame, ["n"], rejects).height == 10_000
    again = pl.DataFrame({"n": range(5, 100_005, 1_000)})
    assert seen.without_copies(again, ["n"], rejects).is_empty()
    assert rejects.duplicates == 100


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), min_size=1, max_size=60))
def test_user_fraction_keeps_every_users_order(rows: list[tuple[int, int]]) -> None:
    events = pl.DataFrame(rows, schema=["user_id", "event_time_us"], orient="row").with_row_index("row")
    moved = user_fraction(events)
    assert moved["row"].equals(events["row"])
    assert user_fraction(moved).equals(moved)
    times = moved["event_time_us"]
    assert times.is_between(VIRTUAL_START_US, VIRTUAL_START_US + VIRTUAL_DAYS * DAY_US, closed="left").all()
    for user in events["user_id"].unique():
        before = events.filter(pl.col("user_id") == user).sort("event_time_us", "row")["row"]
        after = moved.filter(pl.col("user_id") == user).sort("event_time_us")
        assert after["row"].equals(before)
        steps = [
            VIRTUAL_START_US + rank * VIRTUAL_DAYS * DAY_US // after.height for rank in range(after.height)
        ]
        assert after["event_time_us"].to_list() == steps


def test_user_fraction_leaves_sampled_candidates_with_their_event() -> None:
    rows = [
        (1, 10, False),
        (1, 20, True),
        (1, 20, True),
        (1, 20, False),
        (2, 5, False),
        (1, 30, True),
        (3, 1, True),
    ]
    events = pl.DataFrame(rows, schema=["user_id", "event_time_us", "candidate_only"], orient="row")
    half = VIRTUAL_DAYS * DAY_US // 2
    times = user_fraction(events)["event_time_us"] - VIRTUAL_START_US
    assert times.to_list() == [0, half, half, half, 0, 2 * half, 0]
    assert user_fraction(user_fraction(events)).equals(user_fraction(events))
