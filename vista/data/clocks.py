"""Clocks: what `event_time_us` means when real times would not give days."""

import polars as pl

from vista.data.schema import DAY_US

VIRTUAL_START_US = 10_957 * DAY_US
"""2000-01-01 00:00 UTC."""
VIRTUAL_DAYS = 30


def user_fraction(rows: pl.DataFrame) -> pl.DataFrame:
    """`rows` with `event_time_us` := the event's rank within its user / the user's number of events, over 30
    virtual days from 2000-01-01.

    A user's order is by (event_time_us, row order). A row that is `candidate_only` (if there are such rows)
    gets the time of the event that follows it; after the last one, the end of the 30 days. Rows keep their
    order, and applying it twice changes nothing. For sources where users live within one sitting (66% of
    MovieLens-1M's users within 24 h).
    """
    only = pl.col("candidate_only") if "candidate_only" in rows.columns else pl.lit(False)
    ordered = (
        rows.select("user_id", "event_time_us", only.alias("only"), row=pl.int_range(pl.len()))
        .sort("user_id", "event_time_us", "only", "row", descending=[False, False, True, False])
        .with_columns(event=(~pl.col("only")).cast(pl.Int64))
    )
    before = pl.col("event").cum_sum().over("user_id") - pl.col("event")
    events = pl.col("event").sum().over("user_id").clip(1)
    virtual_us = VIRTUAL_START_US + before * (VIRTUAL_DAYS * DAY_US) // events
    times = ordered.select("row", virtual_us.alias("event_time_us")).sort("row")
    return rows.with_columns(times["event_time_us"])
