"""What all buckets together say: row order, dictionaries, the calendar, edges of value buckets.

A rows file is one bucket's source rows with `seq` filled in, sorted by (user, time, seq); a row that is a
candidate only comes before the events of its time.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from vista.config import DataConfig, WindowConfig
from vista.data.dictionary import Dictionary
from vista.data.schema import DAY_US, NO_LABEL, Days, Windows
from vista.errors import InputError

MIN_DAYS = 3
"""Train the foundation, train downstream, test: one day each."""


def sorted_rows(table: pa.Table) -> pl.DataFrame:
    """One bucket's rows in arrival order -> sorted rows with `seq` and `candidate_only`."""
    rows = pl.DataFrame(table)
    if "candidate_only" not in rows.columns:
        rows = rows.with_columns(pl.lit(False).alias("candidate_only"))
    event = (~pl.col("candidate_only")).cast(pl.Int64)
    rows = rows.with_columns((event.cum_sum().over("user_id") - 1).alias("seq"))
    return rows.sort(
        ["user_id", "event_time_us", "candidate_only", "seq"],
        descending=[False, False, True, False],
        maintain_order=True,
    )


@dataclass(frozen=True, slots=True)
class Seen:
    """Collected bucket by bucket: first times of ids, times of candidates, values by time."""

    users: list[pl.DataFrame] = field(default_factory=list)  # id, first_seen_us
    items: list[pl.DataFrame] = field(default_factory=list)  # id, category_id, first_seen_us
    categories: list[pl.DataFrame] = field(default_factory=list)  # id, first_seen_us
    candidate_days: list[pl.DataFrame] = field(default_factory=list)  # local_day, label: number of candidates
    values: list[pl.DataFrame] = field(default_factory=list)  # event_time_us, value

    def add(self, rows: pl.DataFrame, label: str, day_offset_s: int) -> None:
        """Take in one bucket's sorted rows; `label` is the first task's column."""
        time = pl.col("event_time_us")
        first = time.min().alias("first_seen_us")
        self.users.append(rows.group_by(pl.col("user_id").alias("id")).agg(first))
        self.items.append(
            rows.filter(time == time.min().over("item_id"))
            .group_by(pl.col("item_id").alias("id"))
            .agg(first, pl.col("category_id").min())
        )
        self.categories.append(rows.group_by(pl.col("category_id").alias("id")).agg(first))
        local_day = ((time + day_offset_s * 1_000_000) // DAY_US).alias("local_day")
        self.candidate_days.append(
            rows.filter(pl.col(label) != NO_LABEL)
            .group_by(local_day, pl.col(label).alias("label"))
            .agg(pl.len().alias("candidates"))
        )
        self.values.append(
            rows.select("event_time_us", "value").drop_nulls().filter(pl.col("value").is_finite())
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
    seen: Seen, data: DataConfig, windows: WindowConfig, value_edges: tuple[float, ...] | None = None
) -> Learned:
    """`value_edges` are fitted if they are not given. Raises `InputError` without candidates, on fewer than
    MIN_DAYS days or with a constant label."""
    users, categories = Dictionary.build(seen.users), Dictionary.build(seen.categories)
    items = Dictionary.build(seen.items)
    days, split = _calendar(pl.concat(seen.candidate_days), data, windows)
    first = (
        pl.concat(seen.items)
        .sort("first_seen_us", "category_id", nulls_last=True)
        .group_by("id", maintain_order=True)
        .agg(pl.col("category_id").first())
    )
    item_category_R = np.zeros(len(items.id_R), np.int32)
    item_category_R[items.rows_of(first["id"].to_numpy()) - 1] = rows_of_column(
        categories, first["category_id"]
    )
    edges = (
        _value_edges(seen.values, days.start_us(split.k), data.value_buckets)
        if value_edges is None
        else np.array(value_edges, np.float32)
    )
    return Learned(users, items, categories, item_category_R, days, split, edges)


def rows_of_column(dictionary: Dictionary, ids: pl.Series) -> NDArray[np.int32]:
    """Rows of ids that may be null: the unseen row for null."""
    known = ids.is_not_null().to_numpy()
    return np.where(known, dictionary.rows_of(ids.fill_null(0).to_numpy()), 0).astype(np.int32)


def windows_of(last_day: int, windows: WindowConfig) -> Windows:
    """k = max(1, round(fraction * n)), and below n."""
    k = max(1, round(windows.foundation_fraction * last_day))
    return Windows(first_day=0, k=min(k, last_day - 1), n=last_day)


def _calendar(candidates: pl.DataFrame, data: DataConfig, windows: WindowConfig) -> tuple[Days, Windows]:
    if not candidates.height:
        raise InputError(f"source {data.source!r} gave no row with a label: there is nothing to learn from")
    first, last = int(candidates["local_day"].min()), int(candidates["local_day"].max())  # type: ignore[arg-type]
    if candidates["local_day"].n_unique() < MIN_DAYS:
        raise InputError(
            f"labels on {candidates['local_day'].n_unique()} days; at least {MIN_DAYS} are needed (train, "
            "retrain, test): give more days, or use clock user_fraction if users live within one sitting"
        )
    labels = candidates["label"].unique().to_list()
    if len(labels) == 1 and not data.negatives_per_positive:
        raise InputError(
            f"label {data.tasks[0]!r} is {labels[0]} in every row: nothing can be learned from it; mend its "
            "mapping, or set negatives_per_positive for a source of positives only"
        )
    days = Days(first * DAY_US - data.day_offset_s * 1_000_000)
    return days, windows_of(last - first, windows)


def _value_edges(values: Sequence[pl.DataFrame], end_us: int, buckets: int) -> NDArray[np.float32]:
    """Inner quantiles of the values before `end_us`; equal ones once."""
    value = pl.concat(values).filter(pl.col("event_time_us") < end_us)["value"].to_numpy()
    if not len(value) or buckets == 1:
        return np.empty(0, np.float32)
    inner = np.linspace(0.0, 1.0, buckets + 1)[1:-1]
    return np.unique(np.quantile(value, inner, method="lower")).astype(np.float32)


def rows_file(directory: Path, bucket: int, state: str) -> Path:
    """A bucket's rows between passes; `state` is sorted, or mapped once they have dictionary rows."""
    return directory / f"{state}-{bucket:05d}.arrow"
