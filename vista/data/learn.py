"""What all rows together say, whatever their order: dictionaries, the calendar, edges of value buckets."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vista.config import DataConfig, WindowConfig
from vista.data.dictionary import Dictionary
from vista.data.schema import DAY_US, NO_LABEL, Days, Windows
from vista.data.sources import SourceInfo
from vista.errors import InputError

MIN_DAYS = 3
"""Train the foundation, train downstream, test: one day each."""

MIN_FOUNDATION = 0.1
"""Share of the candidates that the foundation's training days must hold."""


class Seen:
    """Collected while the source is read: first times of ids, numbers of candidates, the items' past."""

    def __init__(self, tasks: Sequence[str], day_offset_s: int) -> None:
        self._labels = [f"label_{task}" for task in tasks]
        self._day_offset_us = day_offset_s * 1_000_000
        self.users = pl.DataFrame(schema={"id": pl.Int64, "first_seen_us": pl.Int64})
        self.items = self.users.with_columns(category_id=pl.lit(None, pl.Int64))
        self.categories = self.users
        self._candidates: list[pl.DataFrame] = []
        self._events: list[pl.DataFrame] = []

    def add(self, rows: pl.DataFrame) -> None:
        """Take in some rows of the source."""
        time = pl.col("event_time_us")
        self.users = _first_seen([self.users, rows.select(id="user_id", first_seen_us=time)])
        self.categories = _first_seen([self.categories, rows.select(id="category_id", first_seen_us=time)])
        items = rows.select(pl.col("item_id").alias("id"), time.alias("first_seen_us"), "category_id")
        self.items = _first_of_items(pl.concat([self.items, items]))
        label = self._labels[0]
        local_day = ((time + self._day_offset_us) // DAY_US).alias("local_day")
        self._candidates.append(
            rows.filter(pl.col(label) != NO_LABEL)
            .group_by(local_day, pl.col(label).alias("label"))
            .agg(pl.len().alias("candidates"))
        )
        events = rows.filter(~pl.col("candidate_only")) if "candidate_only" in rows.columns else rows
        self._events.append(events.select("item_id", time, "value", *self._labels))

    def candidates(self) -> pl.DataFrame:
        """local_day, label, number of candidates."""
        return pl.concat(self._candidates)

    def events(self) -> pl.DataFrame:
        """item_id, event_time_us, value and labels of every event, in the order of arrival."""
        return pl.concat(self._events)


def _first_seen(parts: Sequence[pl.DataFrame]) -> pl.DataFrame:
    return pl.concat(parts).drop_nulls("id").group_by("id").agg(pl.col("first_seen_us").min())


def _first_of_items(rows: pl.DataFrame) -> pl.DataFrame:
    """The first time of each item, and the smallest category that it had then."""
    first = pl.col("first_seen_us")
    pairs = rows.group_by("id", "category_id").agg(first.min())
    return (
        pairs.filter(first == first.min().over("id"))
        .group_by("id")
        .agg(first.min(), pl.col("category_id").min())
    )


@dataclass(frozen=True, slots=True)
class Learned:
    """Fixed before any example is cut. Value edges are fitted on the foundation's training days only."""

    users: Dictionary
    items: Dictionary
    categories: Dictionary
    item_category_R: NDArray[np.int32]
    days: Days
    windows: Windows
    value_edges: NDArray[np.float32]

    def value_buckets(self, value_N: NDArray[np.float32]) -> NDArray[np.int32]:
        """1 + number of edges at or below the value; 0 for no value."""
        bucket_N = 1 + np.searchsorted(self.value_edges, value_N, side="right")
        return np.where(np.isfinite(value_N), bucket_N, 0).astype(np.int32)


def learn(
    seen: Seen,
    data: DataConfig,
    source: SourceInfo,
    windows: WindowConfig,
    value_edges: tuple[float, ...] | None = None,
) -> Learned:
    """`value_edges` are fitted if they are not given. Raises `InputError` without candidates, with days that
    `windows_over` refuses or a constant label (a source that samples negatives may have positives only)."""
    users, items = Dictionary.build(seen.users), Dictionary.build(seen.items)
    categories = Dictionary.build(seen.categories)
    days, split = _calendar(seen.candidates(), data, source, windows)
    category = seen.items.sort("first_seen_us", "id")["category_id"]  # in the order of the rows
    edges = (
        _value_edges(seen.events(), days.start_us(split.k), data.value_buckets)
        if value_edges is None
        else np.array(value_edges, np.float32)
    )
    return Learned(
        users=users,
        items=items,
        categories=categories,
        item_category_R=rows_of_column(categories, category),
        days=days,
        windows=split,
        value_edges=edges,
    )


def rows_of_column(dictionary: Dictionary, ids: pl.Series) -> NDArray[np.int32]:
    """Rows of ids that may be null: the unseen row for null."""
    known = ids.is_not_null().to_numpy()
    return np.where(known, dictionary.rows_of(ids.fill_null(0).to_numpy()), 0).astype(np.int32)


def windows_of(last_day: int, windows: WindowConfig) -> Windows:
    """k = max(1, round(fraction * n)), and below n."""
    k = max(1, round(windows.foundation_fraction * last_day))
    return Windows(first_day=0, k=min(k, last_day - 1), n=last_day)


def _calendar(
    candidates: pl.DataFrame, data: DataConfig, source: SourceInfo, windows: WindowConfig
) -> tuple[Days, Windows]:
    if not candidates.height:
        raise InputError(f"source {data.source!r} gave no row with a label: there is nothing to learn from")
    first_day, split = windows_over(candidates, windows)
    labels = candidates["label"].unique().to_list()
    if len(labels) == 1 and not (labels[0] == 1 and source.negatives_per_positive):
        raise InputError(
            f"label {data.tasks[0]!r} is {labels[0]} in every row: nothing can be learned from it; give rows "
            "with another label too"
        )
    return Days(first_day * DAY_US - data.day_offset_s * 1_000_000), split


def windows_over(candidates: pl.DataFrame, windows: WindowConfig) -> tuple[int, Windows]:
    """The first local day, and how the days are used, from local_day and candidates (their number).

    Raises `InputError` on fewer than MIN_DAYS days, and if the foundation's days hold less than
    MIN_FOUNDATION: a few rows of a wrong clock, years before the others, would be all that it learns from.
    """
    per_day = candidates.group_by("local_day").agg(pl.col("candidates").sum()).sort("local_day")
    if per_day.height < MIN_DAYS:
        raise InputError(
            f"labels on {per_day.height} days; at least {MIN_DAYS} are needed (train, retrain, test): give "
            "events of more days"
        )
    day_D = per_day["local_day"].to_list()
    first, last = day_D[0], day_D[-1]
    split = windows_of(last - first, windows)
    rows = int(per_day["candidates"].sum())
    learned_from = per_day.filter(pl.col("local_day") < first + split.k)["candidates"].sum()
    if learned_from < MIN_FOUNDATION * rows:
        raise InputError(
            f"the foundation would train on {date_of(first)} .. {date_of(first + split.k - 1)}, which hold "
            f"{learned_from:,} of {rows:,} rows with a label (at least {MIN_FOUNDATION:.0%} are needed): "
            f"{per_day['candidates'][0]:,} on {date_of(first)}, the next on {date_of(day_D[1])}, the last on "
            f"{date_of(last)}. Are the first times right? Leave the rows of those days out"
        )
    return first, split


def date_of(local_day: int) -> date:
    """The date of a number of days since 1970-01-01.

    >>> date_of(10_957).isoformat()
    '2000-01-01'
    """
    return datetime.fromtimestamp(local_day * DAY_US // 1_000_000, UTC).date()


def _value_edges(events: pl.DataFrame, end_us: int, buckets: int) -> NDArray[np.float32]:
    """Inner quantiles of the values before `end_us`; equal ones once."""
    known = pl.col("value").is_finite() & (pl.col("event_time_us") < end_us)
    value = events.filter(known)["value"].to_numpy()
    if not len(value) or buckets == 1:
        return np.empty(0, np.float32)
    inner = np.linspace(0.0, 1.0, buckets + 1)[1:-1]
    return np.unique(np.quantile(value, inner, method="lower")).astype(np.float32)
