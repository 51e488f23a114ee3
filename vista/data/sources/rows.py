"""What every reader of files does with its rows: check them, drop copies, hand them on."""

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from vista.data.rejects import Rejects
from vista.data.schema import EVENT_SCHEMA
from vista.data.sources import SourceInfo
from vista.data.sources.tables import LINE
from vista.errors import InputError

log = logging.getLogger(__name__)

PROGRESS_S = 5
FIRST_TIME_US = 315_532_800_000_000
"""1980-01-01: an older time is in another unit, or missing."""
END_TIME_US = 4_102_444_800_000_000
"""2100-01-01."""
UNITS_PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000}
OPTIONAL = (
    pa.field("candidate_only", pa.bool_(), nullable=False),
    pa.field("source_date", pa.int32(), nullable=False),
)
ISO8601 = ("%Y-%m-%dT%H:%M:%S%.f%:z", "%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%dT%H:%M", "%Y-%m-%d")


@dataclass(frozen=True, slots=True)
class Check:
    """A row is bad where `bad` is true or null; `reason` is only computed for bad rows."""

    bad: pl.Expr
    reason: pl.Expr


def usable(frame: pl.DataFrame, checks: Sequence[Check], file: str, rejects: Rejects) -> pl.DataFrame:
    """The rows that pass all checks; the others are rejected with the first reason that holds."""
    bads = [check.bad.fill_null(True) for check in checks]
    mask = frame.select(pl.any_horizontal(bads).alias("bad")).to_series()
    if not mask.any():
        return frame
    reason = pl.coalesce([pl.when(bad).then(check.reason) for bad, check in zip(bads, checks, strict=True)])
    bad_rows = frame.filter(mask).select(LINE, reason.alias("reason"))
    rejects.reject_many(bad_rows[LINE], file, bad_rows["reason"])
    return frame.filter(~mask)


def whole_number(values: pl.Series) -> pl.Series:
    """Values as int64: integers, and floats or text of them without a fraction; null for anything else."""
    if values.dtype.is_integer():
        return values.cast(pl.Int64, strict=False)
    exact = values.cast(pl.Int64, strict=False) if values.dtype == pl.String else values.clear(len(values))
    if exact.null_count() == values.null_count():
        return exact.cast(pl.Int64)
    number = values.cast(pl.Float64, strict=False)
    exact_below = 2**24 if values.dtype == pl.Float32 else 2**53  # beyond it neighbours have become one
    whole = _where((number == number.floor()) & (number.abs() < exact_below), number)
    return exact.cast(pl.Int64).fill_null(whole.cast(pl.Int64))


def epoch_us(values: pl.Series, unit: str) -> pl.Series:
    """Times as int64 microseconds; null for what is not a time between 1980 and 2100 in that unit."""
    to_us = 1_000_000 // UNITS_PER_SECOND[unit]
    whole = whole_number(values)
    time_us = _where(whole.is_between(FIRST_TIME_US // to_us, END_TIME_US // to_us), whole) * to_us
    if time_us.null_count() == values.null_count():
        return time_us
    number = (values.cast(pl.Float64, strict=False) * to_us).round()
    return time_us.fill_null(_where(number.is_between(FIRST_TIME_US, END_TIME_US), number).cast(pl.Int64))


def iso8601_us(values: pl.Series) -> pl.Series:
    """Timestamps, or text such as 2024-05-01T12:30:00Z, 2024-05-01 12:30, 2024-05-01, as int64 microseconds;
    UTC where no zone is given; null for anything else."""
    if values.dtype in (pl.Date, pl.Datetime):
        return values.cast(pl.Datetime("us"), strict=False).cast(pl.Int64)
    text = (
        values.cast(pl.String, strict=False).str.replace(" ", "T", literal=True).str.replace("Z$", "+00:00")
    )
    time_us = pl.Series(values.name, [None], dtype=pl.Int64).new_from_index(0, len(values))
    for form in ISO8601:
        if time_us.null_count() == values.null_count():
            break
        zone = "UTC" if form.endswith("%:z") else None
        parsed = text.str.to_datetime(form, time_unit="us", time_zone=zone, strict=False)
        time_us = time_us.fill_null(parsed.cast(pl.Int64))
    return time_us


def _where(condition: pl.Series, values: pl.Series) -> pl.Series:
    """Values, null where the condition does not hold."""
    return values.zip_with(condition.fill_null(False), values.clear(len(values)))


def quoted(column: str) -> pl.Expr:
    """The value in a message, at most 40 characters of it."""
    text = pl.col(column).cast(pl.String, strict=False).str.slice(0, 40)
    return pl.format("'{}'", text.fill_null(""))


def id_check(name: str, raw: str, parsed: pl.Expr, remedy: str = "") -> Check:
    """Ids are whole numbers >= 0."""
    text = pl.col(raw).cast(pl.String, strict=False)
    surrounded = text.str.strip_chars().str.contains(r"^\d+$") & (text != text.str.strip_chars())
    reason = (
        pl.when(pl.col(raw).is_null())
        .then(pl.lit(f"{name} is empty"))
        .when(parsed.is_null() & surrounded)
        .then(pl.format(f"{name} {{}} has blanks around it: remove them", quoted(raw)))
        .when(parsed.is_null())
        .then(pl.format(f"{name} {{}} is not a whole number{remedy}", quoted(raw)))
        .otherwise(pl.format(f"{name} {{}} is negative: ids start at 0", quoted(raw)))
    )
    return Check(parsed < 0, reason)


def time_check(raw: str, time_us: pl.Expr, unit: str) -> Check:
    """Times are between 1980 and 2100; the reason names the unit in which the number would be, if any."""
    number = pl.col(raw).cast(pl.Float64, strict=False)
    year = (1970 + number / UNITS_PER_SECOND.get(unit, 1) / 31_556_952).floor().cast(pl.Int64, strict=False)
    reading = (
        pl.format("time {} in unit {} is the year {}", quoted(raw), pl.lit(unit), year)
        if unit in UNITS_PER_SECOND
        else pl.format("time {} is not in unit {}", quoted(raw), pl.lit(unit))
    )
    reasons = [pl.when(pl.col(raw).is_null()).then(pl.lit("time is empty"))]
    for other, per_second in UNITS_PER_SECOND.items():
        fits = (number * (1_000_000 / per_second)).is_between(FIRST_TIME_US, END_TIME_US)
        if other != unit:
            reasons.append(
                pl.when(fits).then(pl.format("{}: it looks like time_unit: {}", reading, pl.lit(other)))
            )
    wrong = pl.format("time {} is not a time between 1980 and 2100 in unit {}", quoted(raw), pl.lit(unit))
    if unit == "iso8601":
        wrong = pl.format("{}: write it as 2024-05-01T12:30:00Z", wrong)
    else:
        text = pl.col(raw).cast(pl.String, strict=False)
        looks = pl.format("{}: it looks like time_unit: iso8601", wrong)
        reasons.append(pl.when(text.str.contains(r"^\d{4}-\d{2}-\d{2}")).then(looks))
    return Check(~time_us.is_between(FIRST_TIME_US, END_TIME_US, closed="left"), pl.coalesce(*reasons, wrong))


def bit_mask(flags: Sequence[pl.Expr]) -> pl.Expr:
    """`action_mask`: bit i is set where `flags[i]` is true."""
    return pl.sum_horizontal([pl.when(flag).then(1 << bit).otherwise(0) for bit, flag in enumerate(flags)])


class Seen:
    """Which rows have been there before, by 64-bit hashes in sorted runs (8 bytes a row; at 1e8 rows one
    wrong copy in 3,000 runs)."""

    def __init__(self) -> None:
        self._runs: list[NDArray[np.uint64]] = []

    def without_copies(self, frame: pl.DataFrame, columns: Sequence[str], rejects: Rejects) -> pl.DataFrame:
        """The rows without those that equal an earlier one in all of `columns`; counts the copies."""
        keys = frame.select(columns).hash_rows(seed=0)
        ordered = np.sort(keys.to_numpy())
        fresh = pl.repeat(True, len(keys), eager=True)
        if (ordered[1:] == ordered[:-1]).any():
            fresh = keys.is_first_distinct()
            ordered = np.unique(ordered)
        known = [
            run[np.minimum(np.searchsorted(run, ordered), len(run) - 1)] == ordered for run in self._runs
        ]
        old = ordered[np.logical_or.reduce(known)] if known else ordered[:0]
        if len(old):
            fresh &= ~keys.is_in(pl.Series(old).implode())
            ordered = np.setdiff1d(ordered, old, assume_unique=True)
        self._add(ordered)
        rejects.duplicates += int((~fresh).sum())
        return frame.filter(fresh) if len(ordered) < frame.height else frame

    def _add(self, run: NDArray[np.uint64]) -> None:
        if not len(run):
            return
        while self._runs and len(self._runs[-1]) <= 2 * len(run):
            run = np.sort(np.concatenate([self._runs.pop(), run]), kind="stable")
        self._runs.append(run)


def event_batch(frame: pl.DataFrame, info: SourceInfo) -> pa.RecordBatch:
    """A frame with the columns of an event, of `info`'s context and labels (see `vista.data.sources`) as one
    batch; absent value, category_id and surface are null, `seq` is -1."""
    fields = [
        *EVENT_SCHEMA,
        *(pa.field(f"context_{column.name}", pa.int32(), nullable=False) for column in info.context),
        *(pa.field(f"label_{task}", pa.uint8(), nullable=False) for task in info.tasks),
    ]
    fields += [field for field in OPTIONAL if field.name in frame.columns]
    absent = [
        pl.lit(None).alias(name) for name in ("value", "category_id", "surface") if name not in frame.columns
    ]
    schema = pa.schema(fields)
    table = frame.with_columns(pl.lit(-1).alias("seq"), *absent).select(schema.names).to_arrow()
    return pa.RecordBatch.from_arrays(
        [
            column.combine_chunks().cast(field.type)
            for column, field in zip(table.columns, fields, strict=True)
        ],
        schema=schema,
    )


def finished(
    batches: Iterator[pa.RecordBatch], what: str, rejects: Rejects, max_fraction: float
) -> Iterator[pa.RecordBatch]:
    """Passes the batches on; after the last one raises `RejectedDataError` if too many rows were bad and
    `InputError` if there was none. `what` says what was read."""
    rows = 0
    told = time.monotonic()
    for batch in batches:
        if batch.num_rows:
            rows += batch.num_rows
            yield batch
        if time.monotonic() - told > PROGRESS_S:
            told = time.monotonic()
            log.info(
                "%s: %d rows read, %d bad, %d copies",
                what,
                rejects.rows,
                rejects.rejected,
                rejects.duplicates,
            )
    rejects.check(rejects.rows, max_fraction)
    if not rows:
        raise InputError(f"{what} holds no rows, only the names of columns: is this the right folder?")
