"""Events -> a prepared data set: rows by bucket, dictionaries, examples, features; whole or not at all.

Three passes: split the source's rows by bucket (partition.py), sort each bucket and learn what all of them
say together (learn.py), cut each bucket's examples (bucket.py). Only what item features need is held for all
buckets at once.
"""

import logging
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from vista.config import DataConfig, Frozen, WindowConfig
from vista.data.bucket import Columns, cut_bucket, with_rows, write_events
from vista.data.dataset import DatasetFile
from vista.data.digest import digest, row_sums
from vista.data.features import ItemsPast, dense_names
from vista.data.files import bucket_file
from vista.data.learn import Learned, Seen, learn, rows_file, sorted_rows
from vista.data.partition import partition
from vista.data.rejects import Rejects
from vista.data.schema import DatasetInfo, Windows
from vista.data.sources import SOURCES, SourceInfo
from vista.data.sources.generated import oracle_auc
from vista.data.validate import DayFigures, check_newest_day, day_figures
from vista.errors import InputError, RejectedDataError
from vista.runs import write_whole

log = logging.getLogger(__name__)

REJECTS_FILE = "rejects.jsonl"

BUCKETS_AT_ONCE = 2
"""Limits memory, not cores: polars uses all of them within a bucket."""

LOG_EVERY_S = 5.0

Result = TypeVar("Result")


class PrepareReport(Frozen):
    """What was prepared, how its days are used, and what each day looks like."""

    dataset: DatasetInfo
    windows: Windows
    days: tuple[DayFigures, ...]


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
    one process at a time prepares a path."""
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


def _clear(path: Path) -> None:
    for left in path.parent.glob(f".{path.name}.*"):
        shutil.rmtree(left)


@dataclass(frozen=True, slots=True)
class _Cut:
    """What is kept in memory of one bucket after its files are written."""

    sums: NDArray[np.uint64]  # [3, 3] row sums of events, candidates, examples
    candidates: pl.DataFrame  # what validation looks at


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

    def run(self) -> PrepareReport:
        if unknown := set(self.data.tasks) - set(self.source.tasks):
            raise InputError(
                f"tasks {', '.join(sorted(unknown))}: source {self.data.source!r} has "
                f"{', '.join(self.source.tasks)}"
            )
        for name in ("scratch", "events", "examples", "candidates"):
            (self.path / name).mkdir()
        seen, truth = self._read()
        learned = learn(seen, self.data, self.windows, self.value_edges)
        columns = Columns(
            tasks=self.data.tasks,
            context=tuple(f"context_{column.name}" for column in self.source.context),
            dense=dense_names(self.data.tasks, self.source.actions),
            truth=truth,
            actions=len(self.source.actions),
        )
        report = self._write(learned, columns)
        check_newest_day(report.days)
        shutil.rmtree(self.scratch)
        return report

    def _read(self) -> tuple[Seen, tuple[str, ...]]:
        """Every bucket's rows, sorted, to the scratch directory."""
        log.info("reading source %s", self.data.source)
        batches: Iterator[pa.RecordBatch] = SOURCES[self.data.source].read(self.data, self.rejects)
        parts = partition(batches, self.data.buckets, self.scratch / "runs")
        seen = Seen()

        def sort(bucket: int) -> tuple[str, ...]:
            rows = sorted_rows(parts.bucket(bucket))
            rows.write_ipc(rows_file(self.scratch, bucket, "sorted"))
            seen.add(rows, f"label_{self.data.tasks[0]}", self.data.day_offset_s)
            return tuple(name for name in rows.columns if name == "true_probability")

        truth = self._over_buckets("sorting", sort)[0]
        log.info("read %d rows, %d rejected", self.rejects.rows, self.rejects.rejected)
        return seen, truth

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

    def _write(self, learned: Learned, columns: Columns) -> PrepareReport:
        items_past = self._write_events(learned, columns)

        def cut(bucket: int) -> _Cut:
            rows = pl.read_ipc(rows_file(self.scratch, bucket, "mapped"))
            examples, candidates = cut_bucket(rows, items_past, learned, self.data, columns)
            examples.write_parquet(bucket_file(self.path, "examples", bucket), compression="lz4")
            candidates.write_parquet(bucket_file(self.path, "candidates", bucket), compression="lz4")
            events = rows.filter(~pl.col("candidate_only")).drop("candidate_only")
            placed = examples.drop("history_start", "candidate_start")
            sums = np.stack([row_sums(frame) for frame in (events, candidates, placed)])
            return _Cut(sums, _day_columns(candidates, learned, columns))

        parts = self._over_buckets("cutting examples", cut)
        sums = np.stack([part.sums for part in parts]).sum(axis=0, dtype=np.uint64)
        log.info("cut %d examples, %d candidates", sums[2][0], sums[1][0])
        return self._finish(learned, columns, sums, pl.concat([part.candidates for part in parts]))

    def _write_events(self, learned: Learned, columns: Columns) -> ItemsPast:
        learned.users.write(self.path / "users.parquet")
        learned.items.write(self.path / "items.parquet", category_row=learned.item_category_R)
        learned.categories.write(self.path / "categories.parquet")
        kept = ["item_row", "event_time_us", *columns.labels()]

        def write(bucket: int) -> pl.DataFrame:
            file = rows_file(self.scratch, bucket, "sorted")
            rows = with_rows(pl.read_ipc(file), learned)
            write_events(rows, bucket_file(self.path, "events", bucket), columns)
            rows.write_ipc(rows_file(self.scratch, bucket, "mapped"))
            file.unlink()
            return rows.filter(~pl.col("candidate_only")).select(kept)

        events = pl.concat(self._over_buckets("writing events", write))
        labels_NT = np.stack([events[label].to_numpy() for label in columns.labels()], axis=1)
        return ItemsPast(events["item_row"].to_numpy(), events["event_time_us"].to_numpy(), labels_NT)

    def _finish(
        self, learned: Learned, columns: Columns, sums: NDArray[np.uint64], candidates: pl.DataFrame
    ) -> PrepareReport:
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
        )
        write_whole(self.path / "dataset.json", file.model_dump_json(indent=2))
        return PrepareReport(dataset=info, windows=learned.windows, days=day_figures(candidates))


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
