"""`describe-events`: a first mapping for a folder of files, and what the source would make of them."""

import json
import re
from collections.abc import Iterator
from itertools import chain, count
from pathlib import Path

import polars as pl
import pyarrow as pa
import yaml

from vista.config import DataConfig, WindowConfig
from vista.data.learn import windows_over
from vista.data.mapping import POSITIVE, Expression, Mapping, load_mapping, mapping_files, parse_mapping
from vista.data.rejects import Rejects
from vista.data.schema import DAY_US
from vista.data.sources.rows import UNITS_PER_SECOND, epoch_us, iso8601_us, whole_number
from vista.data.sources.tables import (
    LINE,
    SEPARATORS,
    TableFile,
    columns_of,
    files_in,
    folder_of,
    read_table,
    what_is_there,
)
from vista.data.sources.user_events import PATTERNS, read_mapped
from vista.errors import InputError

CHANGE_ME = "CHANGE_ME"
SAMPLE_ROWS = 10_000
FEW_VALUES = 12
NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?")
"""Not 01: as a number it would be 1."""

NAMES = {
    "user": ("user_id", "userid", "user", "uid", "customer_id", "customer", "visitor_id", "member_id"),
    "item": (
        "item_id", "itemid", "item", "iid", "product_id", "product", "sku", "video_id", "movie_id", "movieid",
        "article_id", "content_id", "song_id", "track_id", "listing_id", "asin",
    ),
    "time": ("timestamp", "time", "ts", "event_time", "time_ms", "datetime", "created_at", "date"),
    "label": ("label", "clicked", "is_click", "click", "purchased", "converted", "liked", "is_like"),
    "value": ("rating", "value", "price", "amount", "duration", "watch_time", "play_time_ms", "dwell_time"),
    "category": ("category_id", "category", "cate_id", "genre", "department"),
    "event": ("event_type", "event", "action", "event_name", "type", "behavior", "behavior_type"),
}  # fmt: skip
"""Usual names of columns, the most telling first; compared without case."""
YES_WORDS = ("yes", "y", "t", "on", "ok")
WANTED_EVENTS = ("purchase", "buy", "order", "transaction", "conversion", "click", "like")


NEGATIVES = 4
NO_LABEL_FOUND = (
    "# No column says what was shown in vain: every row counts as an item that its user chose, and for each\n"
    "# row others are drawn. If there is such a column, write `label: ` and what it must be instead.\n"
)
CAUTION = (
    "# context, if there is any: columns that are known when an item is shown, not what happened then:\n"
    "# context:\n#   device: [phone, tablet]\n"
)


def describe_events(folder: str) -> str:
    """A text that can be saved as events.yaml: a drafted mapping, or a comment that names the one that is
    there; then, as comments, what reading the whole folder with it gives.

    Raises `InputError` if there are no files or they cannot be read at all.
    """
    path = folder_of(folder)
    if mapping_files(path):
        mapping, name = load_mapping(path)
        head = f"# The mapping in {name} stands as it is.\n"
    else:
        name = "this draft"
        head = draft(path)
        mapping = parse_mapping(head.encode(), name)
    return head + "".join(f"# {line}\n" for line in _trial(path, mapping, name))


def draft(folder: Path) -> str:
    """The text of a mapping, guessed from names and the first rows of the first file."""
    files = files_in(folder, *PATTERNS)
    if not files:
        raise InputError(
            f"{folder} holds no .csv, .csv.gz or .parquet file, but {what_is_there(folder)}: put the event "
            "files there"
        )
    separator = _separator(files[0])
    columns = columns_of(files[0], separator)
    rejects = Rejects()
    rows = next(read_table(files[0], columns, rejects, separator=separator), pl.DataFrame())
    if rows.is_empty() and rejects.first:
        raise InputError(f"no row of {files[0].name} can be read: {rejects.first[0]}")
    if rows.is_empty():
        raise InputError(f"{files[0].name} holds no rows, only names of columns: put events into it")
    return _Draft(rows.drop(LINE).head(SAMPLE_ROWS), separator).text(files[0].name)


def _separator(file: TableFile) -> str:
    """The separator that comes most often in the header."""
    if file.is_parquet:
        return ","
    header = columns_of(file, "\x1f")[0]
    return max(SEPARATORS, key=header.count)


class _Draft:
    """One guess. `rows` are the first rows with all columns."""

    def __init__(self, rows: pl.DataFrame, separator: str) -> None:
        self.rows = rows
        self.separator = separator
        self.user = self._named("user") or CHANGE_ME
        self.item = self._named("item") or CHANGE_ME
        self.time = self._named("time") or self._timestamps() or CHANGE_ME
        self.event = self._named("event")
        self.value = self._named("value")
        self.category = self._named("category")

    def text(self, file: str) -> str:
        lines = {
            "user": _scalar(self.user),
            "item": _scalar(self.item),
            "time": _scalar(self.time),
            "time_unit": self._time_unit(),
            "label": _scalar(self._label()),
            "negatives_per_positive": "" if self._label() else str(NEGATIVES),
            "actions": "".join(
                f"\n  {_scalar(name)}: {_scalar(text)}" for name, text in self._actions().items()
            ),
            "value": _scalar(self.value or ""),
            "category": _scalar(self.category or ""),
            "string_ids": self._string_ids(),
            "separator": json.dumps(self.separator) if self.separator != "," else "",
        }
        head = f"# Drafted from {file}, whose columns are {', '.join(self.rows.columns)}. Check every line.\n"
        if not self._label():
            head += NO_LABEL_FOUND
        body = "".join(f"{key}: {value}\n" for key, value in lines.items() if value)
        return head + body.replace(": \n", ":\n") + CAUTION

    def _named(self, key: str) -> str | None:
        return next(iter(self._all_named(key)), None)

    def _all_named(self, key: str) -> list[str]:
        """Columns with a usual name of `key`, the most telling first; `User ID` counts as user_id."""
        plain = {re.sub(r"\W+", "_", column.lower()): column for column in self.rows.columns}
        return [plain[name] for name in NAMES[key] if name in plain]

    def _timestamps(self) -> str | None:
        """A column that holds timestamps, whatever its name."""
        columns = (column for column in self.rows.iter_columns() if not column.dtype.is_numeric())
        return next((column.name for column in columns if iso8601_us(column).is_not_null().mean() == 1), None)

    def _flags(self) -> list[str]:
        """Columns that hold 0 and 1, true and false, and nothing else."""
        taken = (self.user, self.item, self.time, self.category)
        free = [column for column in self.rows.columns if column not in taken]
        return [
            column
            for column in free
            if self.rows.select(Expression(column).truth(self.rows.schema)).to_series().is_not_null().all()
        ]

    def _label(self) -> str:
        """The likeliest label; "" if there is none or each is 1 in every row: positives only."""
        likely = [self._of_named(column) for column in self._all_named("label")]
        if self.event is not None:
            values = self._values(self.event)
            likely += [self._is(self.event, value) for value in WANTED_EVENTS if value in values][:1]
        if self.value is not None and "rating" in self.value.lower():
            likely.append(f"{_column(self.value)} >= 4")
        likely = likely or [_column(flag) for flag in self._flags()[:1]]
        return next((text for text in likely if text == CHANGE_ME or not self._is_constant_1(text)), "")

    def _of_named(self, column: str) -> str:
        """The expression of a column whose name says that it is a label."""
        if self.rows.select(Expression(column).truth(self.rows.schema)).to_series().is_not_null().any():
            return _column(column)
        yes = [value for value in self._values(column) if value.lower() in YES_WORDS]
        return self._is(column, yes[0]) if yes else CHANGE_ME

    def _is_constant_1(self, text: str) -> bool:
        truth = self.rows.select(Expression.parse(text).truth(self.rows.schema)).to_series()
        return bool((truth == 1).fill_null(False).all())

    def _actions(self) -> dict[str, str]:
        """Words that differ from each other and from POSITIVE, whatever the columns and values are."""
        said = [(name, _column(name)) for name in self._flags()]
        if self.event is not None:
            values = [value for value in self._values(self.event) if "'" not in value]
            said += [(value, self._is(self.event, value)) for value in values]
        label = self._label()
        actions: dict[str, str] = {}
        for value, text in said:
            if text != label:
                actions[_new_word(value, {POSITIVE, *actions})] = text
        return actions

    def _is(self, column: str, value: str) -> str:
        """The expression that is true where a column has a value."""
        numbers = all(map(NUMBER.fullmatch, self._values(column)))
        return f"{_column(column)} == {value}" if numbers else f"{_column(column)} == '{value}'"

    def _values(self, column: str) -> list[str]:
        """Values of a column that has few of them, sorted; else nothing. A whole float is written as 1."""
        values = self.rows[column]
        if values.dtype.is_float():
            values = values.filter(values.is_finite()).cast(pl.String).str.strip_suffix(".0")
        unique = values.cast(pl.String, strict=False).drop_nulls().unique()
        return unique.sort().to_list() if len(unique) <= FEW_VALUES else []

    def _time_unit(self) -> str:
        if self.time == CHANGE_ME:
            return "s"
        times = self.rows[self.time]
        fits = {"iso8601": len(times) - iso8601_us(times).null_count()}
        if not times.dtype.is_temporal():
            fits |= {unit: len(times) - epoch_us(times, unit).null_count() for unit in UNITS_PER_SECOND}
        return max(fits, key=lambda unit: fits[unit])

    def _string_ids(self) -> str:
        pairs = (("user", self.user), ("item", self.item), ("category", self.category))
        text = [name for name, column in pairs if column in self.rows.columns and self._is_text(column)]
        return f"[{', '.join(text)}]" if text else ""

    def _is_text(self, column: str) -> bool:
        values = self.rows[column].drop_nulls()
        return whole_number(values).null_count() > len(values) // 10


def _new_word(text: str, taken: set[str]) -> str:
    """Text as one word, with a number if that is taken.

    >>> _new_word("add to cart", {"add_to_cart"})
    'add_to_cart_2'
    """
    word = re.sub(r"\W+", "_", text)
    numbered = (f"{word}_{number}" for number in count(2))
    return next(name for name in chain([word], numbered) if name not in taken)


def _column(name: str) -> str:
    """A column's name in an expression."""
    return name if re.fullmatch(r"[\w.-]+", name) else f"`{name}`"


def _scalar(text: str) -> str:
    """Text in YAML, between quotes where it needs them."""
    plain = re.fullmatch(r"[A-Za-z_][\w.-]*", text) and not isinstance(yaml.safe_load(text), bool | None)
    return text if plain or not text else json.dumps(text, ensure_ascii=False)


def _trial(folder: Path, mapping: Mapping, name: str) -> list[str]:
    """What reading everything with a mapping gives, or the message that it ends with."""
    rejects = Rejects()
    limit = DataConfig(source="events").max_reject_fraction
    config = DataConfig(source="events", path=str(folder), max_reject_fraction=1.0)
    try:
        batches = list(_figures(read_mapped(folder, mapping, name, config, rejects), mapping))
        found = _summary(pl.concat(batches), mapping)
    except InputError as error:
        found = [f"It would be refused: {error}"]
    if rejects.rejected > limit * rejects.rows:
        found = [f"It would be refused: more than {limit:.0%} of the rows would be rejected."]
    counts = (
        f"{rejects.rows:,} rows read, {rejects.rejected:,} rejected, {rejects.duplicates:,} copies dropped."
    )
    reasons = [f"  {reason}" for reason in rejects.first]
    return [counts, *(["The first that are rejected:"] if reasons else []), *reasons, *found]


def _figures(batches: Iterator[pa.RecordBatch], mapping: Mapping) -> Iterator[pl.DataFrame]:
    """Per local day of each batch: first and last time, numbers of rows, candidates and positives, of rows
    that set an action and that hold a known value of a context column."""
    mask = pl.col("action_mask")
    holds = {f"actions: {name}": (mask & (1 << bit)) > 0 for bit, name in enumerate(mapping.actions, start=1)}
    holds |= {f"context: {name}": pl.col(f"context_{name}") > 0 for name in mapping.context}
    time, label = pl.col("event_time_us"), pl.col("label_label")
    for batch in batches:
        yield (
            pl.DataFrame(pa.Table.from_batches([batch]))
            .group_by((time // DAY_US).alias("local_day"))
            .agg(
                time.min().alias("first"),
                time.max().alias("last"),
                pl.len().cast(pl.Int64).alias("rows"),
                (label <= 1).sum().cast(pl.Int64).alias("candidates"),
                (label == 1).sum().cast(pl.Int64).alias("positives"),
                *(is_there.sum().cast(pl.Int64).alias(key) for key, is_there in holds.items()),
            )
        )


def _summary(figures: pl.DataFrame, mapping: Mapping) -> list[str]:
    first, last, candidates, positives = figures.select(
        pl.col("first").min().cast(pl.Datetime("us")),
        pl.col("last").max().cast(pl.Datetime("us")),
        pl.col("candidates").sum(),
        pl.col("positives").sum(),
    ).row(0)
    return [
        f"Times from {first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M} UTC; "
        f"the label is 1 in {positives:,} of {candidates:,} rows ({positives / max(candidates, 1):.1%}).",
        *_said(figures, mapping),
        _verdict(figures.filter(pl.col("candidates") > 0)),
    ]


def _said(figures: pl.DataFrame, mapping: Mapping) -> list[str]:
    """How many rows have each action and each context: 0 is mostly a value that is written otherwise."""
    rows = f"of {figures['rows'].sum():,} rows"
    lines = [
        f"actions: {name} is set in {figures[f'actions: {name}'].sum():,} {rows}." for name in mapping.actions
    ]
    for name, values in mapping.context.items():
        known = f"0 .. {values - 1}" if isinstance(values, int) else "a listed value"
        lines.append(f"context: {name} holds {known} in {figures[f'context: {name}'].sum():,} {rows}.")
    return lines


def _verdict(candidates: pl.DataFrame) -> str:
    try:
        windows_over(candidates, WindowConfig())
    except InputError as error:
        return f"It would be refused: {error}"
    return "It would be accepted."
