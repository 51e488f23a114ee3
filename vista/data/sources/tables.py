"""Files as polars frames, whatever they are: CSV or Parquet, plain or gzip, one or thousands.

Every frame has the columns that were asked for and LINE. Text stays text; the columns of Parquet files keep
their types. What a library would answer with a traceback is here an `InputError` or a rejected row.
"""

import csv
import difflib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import NDArray

from vista.data.rejects import Rejects
from vista.errors import InputError

LINE = "vista:line"
"""Column with a row's line in its text file (the header is line 1) or its row in its Parquet file, from 1."""

ROWS = 1 << 18
"""About so many rows are handled at once."""

BLOCK_BYTES = 1 << 22
GZIP = b"\x1f\x8b"
"""First bytes of a gzip file."""
SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}


@dataclass(frozen=True, slots=True)
class TableFile:
    """One file of a folder; `name` is relative to the folder and stands in every message."""

    path: Path
    name: str

    @property
    def is_parquet(self) -> bool:
        return self.path.suffix == ".parquet"


def folder_of(path: str) -> Path:
    """The data folder. Raises `InputError` if none was named or it does not exist."""
    folder = Path(path)
    if not path:
        raise InputError("no data folder was given: name it with --data-dir")
    if not folder.is_dir():
        wrong = "is a file: name the folder that holds it" if folder.exists() else "does not exist: check it"
        raise InputError(f"data folder {path!r} {wrong} (--data-dir)")
    return folder


def what_is_there(folder: Path) -> str:
    """The names of some files of a folder, for a message that says that others are missing."""
    names = sorted(path.name for path in folder.iterdir())
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "") or "nothing"


def files_in(folder: Path, *patterns: str) -> list[TableFile]:
    """Files that match any of the glob patterns, sorted by name; hidden files and folders are left out."""
    found = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    names = sorted((path.relative_to(folder).as_posix(), path) for path in found)
    return [TableFile(path, name) for name, path in names if not any(p[0] == "." for p in name.split("/"))]


def closest(name: str, names: Sequence[str]) -> str:
    """A hint for a mistyped name: the nearest ones that exist, and all of them (at most 30).

    >>> closest("itm_id", ["user_id", "item_id"])
    "Did you mean 'item_id'? There are: user_id, item_id"
    """
    near = difflib.get_close_matches(name, names, n=2, cutoff=0.5)
    there = ", ".join(names[:30]) + (f" and {len(names) - 30} more" if len(names) > 30 else "")
    question = f"Did you mean {' or '.join(map(repr, near))}? " if near else ""
    return f"{question}There are: {there}"


def columns_of(file: TableFile, separator: str = ",") -> list[str]:
    """Names of a file's columns.

    Raises `InputError` if the file is empty, not what its name says, or has a column twice.
    """
    names = _parquet(file).schema_arrow.names if file.is_parquet else _header(file, separator)
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        raise InputError(f"{file.name}: column {twice[0]!r} is there twice: rename one of them")
    return list(names)


def read_table(
    file: TableFile,
    columns: Sequence[str],
    rejects: Rejects,
    *,
    separator: str = ",",
    header: Sequence[str] | None = None,
) -> Iterator[pl.DataFrame]:
    """The rows of one file in frames of about ROWS rows, in order, with LINE; adds them to `rejects.rows`.

    `header` names all columns of a text file whose first line does not. Rows with too few or too many
    fields, or that are not UTF-8, are rejected. Raises `InputError` for a column that is not there and for a
    file that cannot be read at all.
    """
    there = header or columns_of(file, separator)
    for column in columns:
        if column not in there:
            raise InputError(missing_column(file, column, there, separator))
    if file.is_parquet:
        yield from _read_parquet(file, columns, rejects)
    else:
        layout = _Layout(file, there, list(columns), separator, lines_before=0 if header else 1)
        yield from _gathered(_read_text(layout, rejects))


def whole_text(file: TableFile, encoding: str) -> str:
    """A small text file. Raises `InputError` if it is not whole or not in that encoding."""
    try:
        with closing(_Text(file)) as text:
            return text.all().decode(encoding)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file.name} cannot be read ({_first_line(error)}): get it again") from error


def missing_column(file: TableFile, column: str, there: Sequence[str], separator: str) -> str:
    """What to say about a column that a file has not got."""
    message = f"{file.name} has no column {column!r}. {closest(column, there)}"
    if file.is_parquet or len(there) > 1:
        return message
    for other, name in SEPARATORS.items():
        if other != separator and other in there[0]:
            message += (
                f". Its columns look separated by a {name}: write `separator: {other!r}` in the mapping"
            )
            break
    return message


def _parquet(file: TableFile) -> pyarrow.parquet.ParquetFile:
    try:
        return pyarrow.parquet.ParquetFile(file.path)
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"{file.name} is not a Parquet file ({_first_line(error)}): write it again"
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:200]


@dataclass(frozen=True, slots=True)
class _Layout:
    """How a text file is read: all its columns, and those that are wanted."""

    file: TableFile
    there: Sequence[str]
    columns: list[str]
    separator: str
    lines_before: int  # the header


class _Text:
    """The bytes of a text file, counting lines. pyarrow's CSV reader reads from it."""

    def __init__(self, file: TableFile) -> None:
        self._name = file.name
        self._stream = pa.input_stream(
            str(file.path), compression="gzip" if file.path.suffix == ".gz" else None
        )
        self._ahead = b""
        self.closed = False
        self.lines = 0
        self.ends_in_line = False

    def first_line(self) -> bytes:
        """The line that names the columns, taken off the stream."""
        while b"\n" not in self._ahead and len(self._ahead) < BLOCK_BYTES:
            more = self._stream.read(BLOCK_BYTES)
            if not more:
                break
            self._ahead += more
        line, _, self._ahead = self._ahead.partition(b"\n")
        return line

    def all(self) -> bytes:
        """What is left."""
        data: bytes = self._stream.read()
        return data

    def more(self) -> bool:
        """Whether anything is left."""
        self._ahead = self._ahead or self._stream.read(BLOCK_BYTES)
        return bool(self._ahead)

    def read(self, size: int) -> bytes:
        data: bytes = self._ahead[:size] or self._stream.read(size)
        self._ahead = self._ahead[size:]
        if data:
            self.lines += data.count(b"\n")
            self.ends_in_line = not data.endswith(b"\n")
        return data

    def close(self) -> None:
        self._stream.close()
        self.closed = True


def _header(file: TableFile, separator: str) -> list[str]:
    try:
        with closing(_Text(file)) as text:
            first = text.first_line()
    except OSError as error:
        raise InputError(
            f"{file.name} cannot be read ({_first_line(error)}): is it whole, and is it a gzip file?"
        ) from error
    if not first.strip():
        raise InputError(
            f"{file.name} is empty: its first line must name the columns. Remove or write it again"
        )
    try:
        names = first.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        remedy = f"name it {file.name}.gz, it looks like gzip" if first[:2] == GZIP else "save it as UTF-8"
        raise InputError(f"{file.name} is not UTF-8 text (byte {error.start} of line 1): {remedy}") from error
    if "\0" in names:
        raise InputError(f"{file.name} is not UTF-8 text (zero bytes in line 1): save it as UTF-8")
    try:
        return next(csv.reader([names.rstrip("\r")], delimiter=separator))
    except csv.Error as error:
        raise InputError(
            f"{file.name}: line 1 does not name columns ({error}): do its lines end with a line feed?"
        ) from error


def _read_parquet(file: TableFile, columns: Sequence[str], rejects: Rejects) -> Iterator[pl.DataFrame]:
    row = 1
    try:
        for batch in _parquet(file).iter_batches(batch_size=ROWS, columns=list(columns)):
            frame = _plain(file, pl.DataFrame(pa.Table.from_batches([batch])))
            rejects.rows += frame.height
            yield frame.with_columns(pl.int_range(row, row + frame.height, dtype=pl.Int64).alias(LINE))
            row += frame.height
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{file.name} cannot be read from row {row:,} on ({_first_line(error)})") from error


def _plain(file: TableFile, frame: pl.DataFrame) -> pl.DataFrame:
    """Dictionary-encoded columns as text. Raises `InputError` for columns that hold no plain values."""
    for name, kind in frame.schema.items():
        if kind.is_nested() or kind in (pl.Binary, pl.Object, pl.Duration, pl.Time):
            raise InputError(
                f"{file.name}: column {name!r} holds {kind}: only numbers, text, booleans and timestamps can "
                "be used; write it in another type"
            )
    return frame.with_columns(pl.col(pl.Categorical, pl.Enum).cast(pl.String))


def _gathered(frames: Iterator[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    """Small frames put together to about ROWS rows; blank lines at the end of the file are left out."""
    kept: list[pl.DataFrame] = []
    for frame in frames:
        if sum(part.height for part in kept) >= ROWS:
            yield pl.concat(kept)
            kept = []
        kept.append(frame)
    if kept:
        last = pl.concat(kept)
        blank = last.select(pl.all_horizontal(pl.exclude(LINE).is_null())).to_series()
        yield last.head(last.height - int(blank.reverse().cum_min().sum()))


def _read_text(layout: _Layout, rejects: Rejects) -> Iterator[pl.DataFrame]:
    file, before = layout.file, layout.lines_before
    ragged: list[pyarrow.csv.InvalidRow] = []  # read, but not yet passed by `row`
    row = 1
    try:
        with closing(_Text(file)) as text:
            if before:
                text.first_line()
            for batch in _csv_batches(text, layout, ragged):
                passed = _ragged_within(ragged, row, batch.num_rows)
                end = row + batch.num_rows + len(passed)
                rows = np.delete(np.arange(row, end), [bad.number - row for bad in passed])
                row = end
                rejects.rows += batch.num_rows
                _reject_ragged(file, passed, before, rejects)
                yield _decoded(file, pl.DataFrame(pa.Table.from_batches([batch])), rows + before, rejects)
            _reject_ragged(file, ragged, before, rejects)
            inside = text.lines + text.ends_in_line - (row - 1 + len(ragged))
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"{file.name} cannot be read from line {row + before:,} on ({_first_line(error)}): "
            "is the file whole, and is every quote closed?"
        ) from error
    if inside:
        raise InputError(
            f"{file.name}: {inside:,} line breaks lie inside quoted fields: close the quotes, remove the "
            "line breaks, or write the file as Parquet"
        )


def _csv_batches(
    text: _Text, layout: _Layout, ragged: list[pyarrow.csv.InvalidRow]
) -> Iterator[pa.RecordBatch]:
    """Batches of binary columns; rows with another number of fields than the header go to `ragged`."""

    def keep(row: pyarrow.csv.InvalidRow) -> str:
        ragged.append(row)
        return "skip"

    if not text.more():
        return
    yield from pyarrow.csv.open_csv(
        text,
        pyarrow.csv.ReadOptions(use_threads=False, block_size=BLOCK_BYTES, column_names=list(layout.there)),
        pyarrow.csv.ParseOptions(
            delimiter=layout.separator, ignore_empty_lines=False, invalid_row_handler=keep
        ),
        pyarrow.csv.ConvertOptions(
            column_types=dict.fromkeys(layout.columns, pa.binary()),
            include_columns=layout.columns,
            strings_can_be_null=True,
            null_values=[""],
        ),
    )


def _ragged_within(
    ragged: list[pyarrow.csv.InvalidRow], line: int, rows: int
) -> list[pyarrow.csv.InvalidRow]:
    """Takes from `ragged` those that lie between or right after `rows` good ones from `line` on."""
    passed: list[pyarrow.csv.InvalidRow] = []
    while ragged and ragged[0].number <= line + rows + len(passed):
        passed.append(ragged.pop(0))
    return passed


def _reject_ragged(
    file: TableFile, ragged: list[pyarrow.csv.InvalidRow], before: int, rejects: Rejects
) -> None:
    rejects.rows += len(ragged)
    for row in ragged:
        reason = f"has {row.actual_columns} fields instead of {row.expected_columns}"
        rejects.reject(row.number + before, file.name, reason)


def _decoded(
    file: TableFile, frame: pl.DataFrame, lines: NDArray[np.int64], rejects: Rejects
) -> pl.DataFrame:
    """Binary columns as text, with LINE; rows that are not UTF-8 are rejected."""
    frame = frame.with_columns(pl.Series(LINE, lines))
    try:
        return frame.with_columns(pl.col(pl.Binary).cast(pl.String))
    except pl.exceptions.ComputeError:
        whole = pl.Series([all(map(_is_utf8, row)) for row in frame.drop(LINE).iter_rows()])
        bad = frame.filter(~whole)[LINE]
        rejects.reject_many(
            bad,
            file.name,
            pl.Series(["is not UTF-8 text: save the file as UTF-8"]).new_from_index(0, len(bad)),
        )
        return frame.filter(whole).with_columns(pl.col(pl.Binary).cast(pl.String))


def _is_utf8(value: bytes | None) -> bool:
    try:
        str(value or b"", "utf-8")
    except UnicodeDecodeError:
        return False
    return True
