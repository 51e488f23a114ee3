"""`events`: a user's own files, CSV or Parquet, whose columns a mapping explains (vista.data.mapping).

This is how real users start, so every message names the file, the line or key, and what to write instead.
"""

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl
import pyarrow as pa

from vista.config import DataConfig
from vista.data.mapping import POSITIVE, IdName, Mapping, StringIds, load_mapping
from vista.data.rejects import Rejects
from vista.data.schema import NO_LABEL, ContextColumn
from vista.data.sources import SourceInfo
from vista.data.sources.rows import (
    Check,
    Seen,
    bit_mask,
    epoch_us,
    event_batch,
    finished,
    id_check,
    iso8601_us,
    quoted,
    time_check,
    usable,
    whole_number,
)
from vista.data.sources.tables import (
    TableFile,
    columns_of,
    files_in,
    folder_of,
    missing_column,
    read_table,
    what_is_there,
)
from vista.errors import InputError

log = logging.getLogger(__name__)

PATTERNS = ("*.csv", "*.csv.gz", "*.parquet")
TASK = "label"
ONLY_POSITIVES = (
    ", or, if your files hold only what users chose, write `negatives_per_positive: 4` to have so many items "
    "drawn for each"
)


def describe(config: DataConfig) -> SourceInfo:
    return info_of(load_mapping(folder_of(config.path))[0])


def info_of(mapping: Mapping) -> SourceInfo:
    """Bits, context and task of a mapping."""
    return SourceInfo(
        actions=(POSITIVE, *mapping.actions),
        context=tuple(
            ContextColumn(name=name, cardinality=1 + (values if isinstance(values, int) else len(values)))
            for name, values in mapping.context.items()
        ),
        tasks=(TASK,),
        negatives_per_positive=mapping.negatives_per_positive,
    )


def read(config: DataConfig, rejects: Rejects) -> Iterator[pa.RecordBatch]:
    """All files by name, without rows that equal an earlier one in every mapped column. Dictionaries of text
    ids are written beside the rejects file (`ids-user.parquet`, ...)."""
    folder = folder_of(config.path)
    mapping, name = load_mapping(folder)
    return read_mapped(folder, mapping, name, config, rejects)


def read_mapped(
    folder: Path, mapping: Mapping, name: str, config: DataConfig, rejects: Rejects
) -> Iterator[pa.RecordBatch]:
    """As `read`, with a mapping that need not be in a file; `name` stands for it in messages.

    Raises `InputError` before it reads any row if there are no files or a mapped column is not in one.
    """
    files = data_files(folder, mapping)
    for file in files:
        there = columns_of(file, mapping.separator)
        for column, key in mapping.columns().items():
            if column not in there:
                raise InputError(f"{name}: {key}: {missing_column(file, column, there, mapping.separator)}")
    named = (mapping.user, mapping.item, mapping.time)
    if len(set(named)) < 3:
        raise InputError(f"{name}: user, item and time are {', '.join(named)}: name three columns")
    return _read(_Reader(mapping, rejects), files, name, config)


def _read(
    reader: "_Reader", files: list[TableFile], name: str, config: DataConfig
) -> Iterator[pa.RecordBatch]:
    yield from finished(reader.batches(files), config.path, reader.rejects, config.max_reject_fraction)
    reader.labels.check(name, reader.mapping)
    for column, listed in reader.listed.items():
        listed.check(name, column)
    for ids in reader.ids.values():
        ids.save()


def data_files(folder: Path, mapping: Mapping) -> list[TableFile]:
    """Raises `InputError` if there are none."""
    patterns = (mapping.files,) if mapping.files else PATTERNS
    files = files_in(folder, *patterns)
    if not files:
        raise InputError(
            f"{folder} holds no file that matches {' or '.join(patterns)}, but {what_is_there(folder)}: put "
            "the event files there, or name them with `files:` in the mapping"
        )
    return files


@dataclass(slots=True)
class _Labels:
    """How often each label came, and values of its column to show if that was only one."""

    counts: dict[int, int] = field(default_factory=dict)
    values: list[str] = field(default_factory=list)

    def add(self, labels: pl.Series, values: pl.Series | None) -> None:
        for label, count in labels.value_counts().rows():
            self.counts[label] = self.counts.get(label, 0) + count
        if not self.values and values is not None:
            self.values = [str(value) for value in values.unique(maintain_order=True).head(5)]

    def check(self, name: str, mapping: Mapping) -> None:
        """Raises `InputError` for a label that is the same in every row, unless that is 1 and negatives are
        sampled."""
        there = {label: count for label, count in self.counts.items() if label != NO_LABEL}
        if len(there) > 1 or (mapping.negatives_per_positive and 1 in there):
            return
        if not there:
            raise InputError(
                f"{name}: candidates: {mapping.candidates!r} holds in no row: nothing has a label"
            )
        ((label, count),) = there.items()
        raise InputError(
            f"{name}: label: {mapping.label!r} is {label} in all {count:,} rows: there is nothing to learn. "
            f"Its column holds {', '.join(map(repr, self.values))}: map a label that is 1 in some rows and 0 "
            "in others" + (ONLY_POSITIVES if label == 1 else "")
        )


@dataclass(slots=True)
class _Listed:
    """Codes of a column's listed values that some row holds (0: another), and its commonest other values."""

    values: tuple[str, ...]
    found: set[int] = field(default_factory=set)
    others: Counter[str] = field(default_factory=Counter)

    def add(self, codes: pl.Series, column: pl.Series) -> None:
        self.found.update(codes.unique())
        text = column.filter(codes == 0).cast(pl.String, strict=False).alias("text").drop_nulls()
        counts = text.value_counts().sort("count", "text", descending=[True, False])
        self.others.update(dict(counts.head(5).rows()))

    def check(self, name: str, column: str) -> None:
        """Warns of values that no row holds; raises `InputError` if no row holds any."""
        absent = [value for code, value in enumerate(self.values, start=1) if code not in self.found]
        if not absent:
            return
        more = f" and {len(absent) - 5} more" if len(absent) > 5 else ""
        there = ", ".join(repr(value) for value, _ in self.others.most_common(5))
        message = f"{name}: context: {column}: no row holds {' or '.join(map(repr, absent[:5]))}{more}."
        if len(absent) == len(self.values):
            raise InputError(
                f"{message} The column holds {there or 'nothing'}: list its values as they are there, or "
                "leave it out"
            )
        if there:
            message += f" The column holds, not listed, {there}: list values as they are there"
        log.warning("%s", message)


USER, ITEM, CATEGORY, TIME, VALUE, LABEL, CANDIDATE = (
    f"vista:{name}" for name in ("user", "item", "category", "time", "value", "label", "candidate")
)
"""Parsed columns, beside those of the file."""


class _Reader:
    """One reading of a folder."""

    def __init__(self, mapping: Mapping, rejects: Rejects) -> None:
        self.mapping = mapping
        self.rejects = rejects
        self.info = info_of(mapping)
        self.expressions = mapping.expressions()
        self.labels = _Labels()
        self.listed = {
            column: _Listed(values)
            for column, values in mapping.context.items()
            if not isinstance(values, int)
        }
        beside = rejects.path.parent if rejects.path is not None else None
        self.ids: dict[IdName, StringIds] = {
            name: StringIds(beside / f"ids-{name}.parquet" if beside else None) for name in mapping.string_ids
        }

    def batches(self, files: list[TableFile]) -> Iterator[pa.RecordBatch]:
        seen = Seen()
        columns = list(self.mapping.columns())
        for file in files:
            for frame in read_table(file, columns, self.rejects, separator=self.mapping.separator):
                good = usable(self._parsed(frame), self._checks(), file.name, self.rejects)
                rows = seen.without_copies(good, columns, self.rejects)
                label = self.expressions.get("label")
                self.labels.add(rows.get_column(LABEL), rows.get_column(label.column) if label else None)
                events = self._events(rows)
                for column, listed in self.listed.items():
                    listed.add(events[f"context_{column}"], rows[column])
                yield event_batch(events, self.info)

    def _parsed(self, frame: pl.DataFrame) -> pl.DataFrame:
        mapping = self.mapping
        label, candidate = self.expressions.get("label"), self.expressions.get("candidates")
        return frame.with_columns(
            self._id(frame[mapping.user], "user").alias(USER),
            self._id(frame[mapping.item], "item").alias(ITEM),
            _time_us(frame[mapping.time], mapping.time_unit).alias(TIME),
            (label.truth(frame.schema) if label else pl.lit(1)).cast(pl.Int16).alias(LABEL),
            (candidate.truth(frame.schema) == 1 if candidate else pl.lit(True)).alias(CANDIDATE),
            *(
                expression.truth(frame.schema).alias(f"vista:{key}")
                for key, expression in self.expressions.items()
                if key.startswith("actions")
            ),
            *([pl.col(mapping.value).cast(pl.Float32, strict=False).alias(VALUE)] if mapping.value else []),
            *([self._id(frame[mapping.category], "category").alias(CATEGORY)] if mapping.category else []),
        ).with_columns(pl.when(CANDIDATE).then(LABEL).otherwise(NO_LABEL).alias(LABEL))

    def _id(self, values: pl.Series, name: IdName) -> pl.Series:
        return values.cast(pl.String, strict=False) if name in self.ids else whole_number(values)

    def _checks(self) -> list[Check]:
        """In the order of the keys; the first one that a row fails is its reason."""
        mapping = self.mapping
        checks = [self._id_check("user", mapping.user, USER), self._id_check("item", mapping.item, ITEM)]
        checks.append(time_check(mapping.time, pl.col(TIME), mapping.time_unit))
        for key, expression in self.expressions.items():
            parsed = {"label": LABEL, "candidates": CANDIDATE}.get(key, f"vista:{key}")
            wrong = pl.format(
                f"{key}: {expression.column} {{}} is not {expression.wants}", quoted(expression.column)
            )
            empty = pl.col(expression.column).is_null()
            reason = pl.when(empty).then(pl.lit(f"{key}: {expression.column} is empty")).otherwise(wrong)
            may_be_empty = empty if key.startswith("actions") else pl.lit(False)
            checks.append(Check(pl.col(parsed).is_null() & ~may_be_empty, reason))
        if mapping.value:
            is_number = pl.col(VALUE).is_not_null() | pl.col(mapping.value).is_null()
            checks.append(Check(~is_number, pl.format("value {} is not a number", quoted(mapping.value))))
        if mapping.category:
            check = self._id_check("category", mapping.category, CATEGORY)
            checks.append(
                Check(check.bad.fill_null(True) & pl.col(mapping.category).is_not_null(), check.reason)
            )
        return checks

    def _id_check(self, name: IdName, raw: str, parsed: str) -> Check:
        if name in self.ids:
            return Check(pl.col(parsed).is_null(), pl.lit(f"{name} is empty"))
        return id_check(name, raw, pl.col(parsed), f": if these ids are text, write string_ids: [{name}]")

    def _events(self, rows: pl.DataFrame) -> pl.DataFrame:
        ids: dict[str, pl.Series] = {}
        for name, parsed in (("user", USER), ("item", ITEM), ("category", CATEGORY)):
            if parsed in rows.columns:
                values = rows[parsed]
                ids[f"{name}_id"] = self.ids[name].rows(values) if name in self.ids else values
        actions = [pl.col(f"vista:actions: {name}").fill_null(0) == 1 for name in self.mapping.actions]
        value = [pl.col(VALUE).fill_nan(None).alias("value")] if self.mapping.value else []
        return rows.select(
            pl.col(TIME).alias("event_time_us"),
            pl.col(LABEL).alias(f"label_{TASK}"),
            bit_mask([pl.col(LABEL) == 1, *actions]).alias("action_mask"),
            *value,
            *(_context(name, values, rows.schema[name]) for name, values in self.mapping.context.items()),
            **ids,
        )


def _time_us(values: pl.Series, unit: str) -> pl.Series:
    if unit == "iso8601":
        return iso8601_us(values)
    if values.dtype.is_temporal():
        raise InputError(
            f"time: column {values.name!r} holds timestamps, not numbers: write time_unit: iso8601"
        )
    return epoch_us(values, unit)


def _context(name: str, values: tuple[str, ...] | int, kind: pl.DataType) -> pl.Expr:
    """1 + the place of the value; 0 for any other."""
    if isinstance(values, int):
        number = pl.col(name).cast(pl.Float64, strict=False)
        known = number.is_between(0, values - 1) & (number == number.floor())
        code = pl.when(known).then(number + 1).otherwise(0)
    else:
        text = pl.col(name).cast(pl.String, strict=False)
        if kind.is_float():  # 1.0 is 1, in the file and in the mapping
            text, values = text.str.strip_suffix(".0"), tuple(value.removesuffix(".0") for value in values)
        codes = {value: place for place, value in enumerate(values, start=1)}
        code = text.replace_strict(codes, default=0, return_dtype=pl.Int32)
    return code.fill_null(0).cast(pl.Int32).alias(f"context_{name}")
