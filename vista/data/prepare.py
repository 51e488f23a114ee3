"""Events -> a prepared data set: rows by bucket, dictionaries, examples, features; whole or not at all.

Two passes: split the source's rows by bucket (partition.py) while collecting what all of them say together
(learn.py); then sort each bucket, cut its examples and write it (bucket.py). Only what item features need is
held for all buckets at once.
"""

import logging
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from vista.config import DataConfig, Frozen, WindowConfig
from vista.data.ahead import ahead
from vista.data.bucket import Columns, cut_bucket, events_table, sorted_rows, with_rows
from vista.data.dataset import DatasetFile
from vista.data.digest import digest, row_sums
from vista.data.features import ItemsPast, dense_names
from vista.data.files import bucket_file, checksum
from vista.data.learn import Learned, Seen, date_of, learn
from vista.data.partition import Partition, chunks_of
from vista.data.rejects import Rejects
from vista.data.schema import DAY_US, DatasetInfo, Windows
from vista.data.sources import SOURCES, SourceInfo
from vista.data.sources.generated import oracle_auc
from vista.data.until import Until
from vista.data.validate import DayFigures, check_newest_day, day_figures
from vista.errors import InputError, RejectedDataError
from vista.runs import write_sealed

log = logging.getLogger(__name__)

REJECTS_FILE = "rejects.jsonl"

BUCKETS_AT_ONCE = 2
"""Limits memory, not cores: polars uses all of them within a bucket."""

BATCHES_AHEAD = 2
"""Read while the batches before them are split."""

LOG_EVERY_S = 5.0

Result = TypeVar("Result")


class PrepareReport(Frozen):
    """What was prepared, how its days are used, what each day looks like, and how long each pass took: `read`
    the source, `learn` what all rows say, `cut` and write the buckets."""

    dataset: DatasetInfo
    windows: Windows
    days: tuple[DayFigures, ...]
    seconds: dict[str, float]


def prepare_dataset(
    data: DataConfig, path: Path, windows: WindowConfig, value_edges: tuple[float, ...] | None = None
) -> PrepareReport:
    """Read, validate and write a data set; `path` is replaced when the new one is complete.

    Edges of value buckets are fitted if none are given.

    Raises `InputError` or `RejectedDataError` for input that cannot be used and `DataValidationError` if the
    newest day is not like the others; `path` is then as it was, and the rejected rows lie beside it.
    """
    rejects = path.parent / REJECTS_FILE
    rejects.unlink(missing_ok=True)
    with _whole_or_nothing(path) as unfinished:
        try:
            return _Preparation(data, windows, unfinished, value_edges).run()
        except RejectedDataError as error:
            (unfinished / REJECTS_FILE).replace(rejects)
            raise RejectedDataError(f"{error}\nEvery one, with its reason, is in {rejects}") from error


@contextmanager
def _whole_or_nothing(path: Path) -> Iterator[Path]:
    """A directory beside `path` that takes its place at the end. What a killed attempt has left is removed:
    one process at a time prepares a path. Of a refused one not even the folders above it are left."""
    made = [folder for folder in path.parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    _clear(path)
    unfinished = path.parent / f".{path.name}.{uuid.uuid4().hex}"
    unfinished.mkdir()
    try:
        yield unfinished
        if path.exists():
            path.rename(path.parent / f".{path.name}.{uuid.uuid4().hex}")
        unfinished.rename(path)
    finally:
        _clear(path)
        for folder in made:  # the lowest first
            if not any(folder.iterdir()):
                folder.rmdir()


def _clear(path: Path) -> None:
    for left in path.parent.glob(f".{path.name}.*"):
        shutil.rmtree(left)


@dataclass(frozen=True, slots=True)
class _Written:
    """What is kept in memory of one bucket after its files are written."""

    sums: NDArray[np.uint64]  # [3, 3] row sums of events, candidates, examples
    candidates: pl.DataFrame  # what validation looks at
    left_out: int  # rows of items that were new at their cut, where negatives are sampled


class _Preparation:
    """One run of `prepare_dataset` in an unfinished directory."""

    def __init__(
        self, data: DataConfig, windows: WindowConfig, path: Path, value_edges: tuple[float, ...] | None
    ) -> None:
        self.data = data
        self.windows = windows
        self.value_edges = value_edges
        self.path = path
        self.scratch = path / "scratch"
        self.source: SourceInfo = SOURCES[data.source].describe(data)
        self.rejects = Rejects(path / REJECTS_FILE)
        self.seconds: dict[str, float] = {}

    def run(self) -> PrepareReport:
        if unknown := set(self.data.tasks) - set(self.source.tasks):
            raise InputError(
                f"tasks {', '.join(sorted(unknown))}: source {self.data.source!r} has "
                f"{', '.join(self.source.tasks)}"
            )
        for name in ("events", "examples", "candidates"):
            (self.path / name).mkdir()
        columns = Columns(
            source=self.source,
            tasks=self.data.tasks,
            context=tuple(f"context_{column.name}" for column in self.source.context),
            dense=dense_names(self.data.tasks, self.source.actions),
            truth=("true_probability",) if self.data.source == "generated" else (),
        )
        parts, learned, items = self._read_and_learn(columns)
        with self._pass("cut"):
            info, days = self._write(parts, learned, items, columns)
        shutil.rmtree(self.scratch)
        if not info.candidates:
            raise InputError(
                f"every one of the {info.items:,} items was new when it was chosen, so that none can be "
                "foretold: give events of more days, or map an item that comes again"
            )
        if all(day.label_rate == 1.0 for day in days):
            raise InputError(
                f"no negative could be drawn for {info.candidates:,} positives: there are only "
                f"{info.items:,} items, and every user has all known by then; give events of more items"
            )
        first_day = (learned.days.origin_us + self.data.day_offset_s * 1_000_000) // DAY_US
        check_newest_day(days, date_of(first_day))
        log.info("passes in seconds: %s", self.seconds)
        return PrepareReport(dataset=info, windows=learned.windows, days=days, seconds=self.seconds)

    @contextmanager
    def _pass(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - started, 3)

    def _read_and_learn(self, columns: Columns) -> tuple[Partition, Learned, ItemsPast]:
        with self._pass("read"):
            parts, seen = self._read()
        with self._pass("learn"):
            learned = learn(seen, self.data, self.source, self.windows, self.value_edges)
            return parts, learned, _items_past(seen.events(), learned, columns)

    def _read(self) -> tuple[Partition, Seen]:
        """Every row of the source, by bucket in the scratch directory."""
        log.info("reading source %s", self.data.source)
        parts = Partition(self.scratch, self.data.buckets)
        seen = Seen(self.data.tasks, self.data.day_offset_s)
        batches: Iterator[pa.RecordBatch] = SOURCES[self.data.source].read(self.data, self.rejects)
        cut = Until.of(self.data)
        with closing(ahead(batches, BATCHES_AHEAD)) as ready:
            for every in chunks_of(ready):
                chunk = cut.rows_of(every)
                seen.add(pl.DataFrame(chunk))
                parts.add(chunk)
        cut.check()
        log.info("read %d rows, %d rejected", self.rejects.rows, self.rejects.rejected)
        return parts, seen

    def _over_buckets(self, doing: str, function: Callable[[int], Result]) -> list[Result]:
        """Results in bucket order, some buckets at a time."""
        results: list[Result] = []
        said_at = time.monotonic()
        with ThreadPoolExecutor(BUCKETS_AT_ONCE) as pool:
            for result in pool.map(function, range(self.data.buckets)):
                results.append(result)
                if time.monotonic() - said_at > LOG_EVERY_S:
                    log.info("%s: bucket %d of %d", doing, len(results), self.data.buckets)
                    said_at = time.monotonic()
        return results

    def _write(
        self, parts: Partition, learned: Learned, items: ItemsPast, columns: Columns
    ) -> tuple[DatasetInfo, tuple[DayFigures, ...]]:
        learned.users.write(self.path / "users.parquet")
        learned.items.write(self.path / "items.parquet", category_row=learned.item_category_R)
        learned.categories.write(self.path / "categories.parquet")

        def write(bucket: int) -> _Written:
            rows = with_rows(sorted_rows(parts.bucket(bucket)), learned)
            events = events_table(rows, columns)
            examples, candidates, left_out = cut_bucket(rows, items, learned, self.data, columns)
            for kind, table in (("events", events), ("examples", examples), ("candidates", candidates)):
                table.write_parquet(bucket_file(self.path, kind, bucket), compression="lz4", statistics=False)
            placed = examples.drop("history_start", "candidate_start")
            sums = np.stack([row_sums(table) for table in (events, candidates, placed)])
            return _Written(sums, _day_columns(candidates, learned, columns), left_out)

        written = self._over_buckets("cutting examples", write)
        sums = np.stack([one.sums for one in written]).sum(axis=0, dtype=np.uint64)
        log.info("cut %d examples, %d candidates", sums[2][0], sums[1][0])
        if columns.source.negatives_per_positive:
            left_out = sum(one.left_out for one in written)
            log.info("%d rows are no candidates but history only: nobody had their item before", left_out)
        candidates = pl.concat([one.candidates for one in written])
        return self._finish(learned, columns, sums, candidates), day_figures(candidates)

    def _finish(
        self, learned: Learned, columns: Columns, sums: NDArray[np.uint64], candidates: pl.DataFrame
    ) -> DatasetInfo:
        names = (*columns.labels(), *columns.context, *columns.dense, self.data.history_cut)
        test = candidates.filter(pl.col("day") == learned.windows.n)
        info = DatasetInfo(
            name=self.data.source,
            digest=digest(sums, names),
            clock=self.data.clock,
            first_day=0,
            last_day=learned.windows.n,
            rows=int(sums[0][0]),
            users=len(learned.users.id_R),
            items=len(learned.items.id_R),
            candidates=int(sums[1][0]),
            rejects=self.rejects.rejected,
            duplicates=self.rejects.duplicates,
            tasks=self.data.tasks,
            oracle_auc=oracle_auc(test["label"], test["true_probability"]) if columns.truth else None,
        )
        file = DatasetFile(
            info=info,
            data=self.data,
            windows=learned.windows,
            origin_us=learned.days.origin_us,
            actions=self.source.actions,
            context=self.source.context,
            dense=columns.dense,
            value_edges=tuple(learned.value_edges.tolist()),
            checksums={
                table.relative_to(self.path).as_posix(): checksum(table)
                for table in sorted(self.path.rglob("*.parquet"))
            },
        )
        write_sealed(self.path / "dataset.json", file.model_dump(mode="json"))
        return info


def _items_past(events: pl.DataFrame, learned: Learned, columns: Columns) -> ItemsPast:
    item_row_N = learned.items.rows_of(events["item_id"].to_numpy())
    labels_NT = np.stack([events[label].to_numpy() for label in columns.labels()], axis=1)
    return ItemsPast(item_row_N, events["event_time_us"].to_numpy(), labels_NT, len(learned.items.id_R))


def _day_columns(candidates: pl.DataFrame, learned: Learned, columns: Columns) -> pl.DataFrame:
    """What validation looks at, per candidate."""
    items, users = learned.items, learned.users
    item_row, user_row = candidates["item_row"].to_numpy(), users.rows_of(candidates["user_id"].to_numpy())
    return candidates.select(
        "day", "user_id", pl.col(columns.labels()[0]).alias("label"), *columns.truth
    ).with_columns(
        item_first_day=learned.days.of(items.first_seen_us_R[item_row - 1]),
        user_first_day=learned.days.of(users.first_seen_us_R[user_row - 1]),
    )
