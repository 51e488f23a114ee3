"""Reading a prepared data set: examples of some days, histories as of a time, what a model must know."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Self, TypeVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vista.config import DataConfig, Frozen
from vista.data.batches import gather, history_rows, pack
from vista.data.dictionary import Dictionary
from vista.data.files import (
    PREPARE_AGAIN,
    SOURCE_DATE,
    bucket_file,
    check_unchanged,
    events_of,
    read_prepared,
)
from vista.data.schema import (
    Candidates,
    ContextColumn,
    DatasetInfo,
    Days,
    Events,
    Examples,
    FeatureSpec,
    HistoryBatch,
    Windows,
)
from vista.errors import InputError
from vista.runs import read_sealed

Kind = TypeVar("Kind", bound=np.generic)


class DatasetFile(Frozen):
    """dataset.json: what the tables cannot say themselves. `value_edges` are the fitted value buckets,
    `checksums` those of every table by its name in the data set."""

    info: DatasetInfo
    data: DataConfig
    windows: Windows
    origin_us: int
    actions: tuple[str, ...]
    context: tuple[ContextColumn, ...]
    dense: tuple[str, ...]
    value_edges: tuple[float, ...]
    checksums: dict[str, str]


class Dataset:
    """A directory that `prepare_dataset` wrote. Tables are read when first needed and then shared; the first
    time a file is read, it is checked to be the one that was written."""

    def __init__(self, path: Path, file: DatasetFile) -> None:
        self.path = path
        self.file = file
        self.info = file.info
        self.buckets = file.data.buckets
        self.days = Days(file.origin_us)
        self._checked: set[Path] = set()

    @classmethod
    def open(cls, path: Path) -> Self:
        """Raises `InputError` if there is no complete data set at `path`, `StageError` for a damaged one."""
        file = path / "dataset.json"
        if not file.exists():
            raise InputError(f"no prepared data set at {path}: run the stage prepare first")
        return cls(path, read_sealed(DatasetFile, file, PREPARE_AGAIN))

    def day_start_us(self, day: int) -> int:
        """First microsecond of a day in the source's zone."""
        return self.days.start_us(day)

    @cached_property
    def newest_event_us(self) -> int:
        """The clock of a run: the time of its newest event, so that ages mean something on old data."""
        columns = (self._read("events", bucket, ["event_time_us"]) for bucket in range(self.buckets))
        return max(int(column.to_numpy().max()) for column in columns if len(column))

    def split(self) -> Windows:
        """How a first refresh uses the days."""
        return self.file.windows

    @cached_property
    def users(self) -> Dictionary:
        return Dictionary.of(self._table(self.path / "users.parquet"))

    @cached_property
    def items(self) -> Dictionary:
        return Dictionary.of(self._table(self.path / "items.parquet"))

    @cached_property
    def categories(self) -> Dictionary:
        return Dictionary.of(self._table(self.path / "categories.parquet"))

    def texts(self, name: str) -> pl.Series | None:
        """Texts of user, item or category ids in the order of their numbers, None if ids are numbers."""
        path = self.path / f"ids-{name}.parquet"
        return self._table(path)["text"] if path.name in self.file.checksums else None

    @cached_property
    def item_category_R(self) -> NDArray[np.int32]:
        """Category row by item row, 0 for the unseen item."""
        known = self._table(self.path / "items.parquet", ["category_row"])
        return np.append(np.zeros(1, np.int32), known["category_row"].to_numpy())

    def spec(self, trained_until_us: int) -> FeatureSpec:
        """What a model trained on events before `trained_until_us` knows: counts of ids first seen before."""
        return FeatureSpec(
            num_items=1 + int(self.items.known_before(trained_until_us)),
            num_users=1 + int(self.users.known_before(trained_until_us)),
            num_categories=1 + int(self.categories.known_before(trained_until_us)),
            num_value_buckets=1 + self.file.data.value_buckets,
            actions=self.file.actions,
            context=self.file.context,
            dense=self.file.dense,
            tasks=self.info.tasks,
        )

    def _table(self, path: Path, columns: Sequence[str] | None = None) -> pl.DataFrame:
        """Raises `StageError` if the table is not the one that was written."""
        if path not in self._checked:
            expected = self.file.checksums.get(path.relative_to(self.path).as_posix())
            check_unchanged(path, expected, PREPARE_AGAIN)
            self._checked.add(path)
        return read_prepared(path, columns)

    def _read(self, kind: str, bucket: int, columns: Sequence[str] | None = None) -> pl.DataFrame:
        return self._table(bucket_file(self.path, kind, bucket), columns)

    @cached_property
    def candidates(self) -> Candidates:
        """All candidates; the position here is the `candidate_id`."""
        frame = pl.concat([self._read("candidates", bucket) for bucket in range(self.buckets)])
        frame = frame.sort("user_id", maintain_order=True)
        return Candidates(
            user_id_C=frame["user_id"].to_numpy(),
            item_row_C=frame["item_row"].to_numpy(),
            category_row_C=frame["category_row"].to_numpy(),
            event_time_us_C=frame["event_time_us"].to_numpy(),
            day_C=frame["day"].to_numpy(),
            history_length_C=frame["history_length"].to_numpy(),
            labels_CT=_matrix(frame, [f"label_{task}" for task in self.info.tasks], np.float32),
            context_CK=_matrix(frame, [f"context_{column.name}" for column in self.file.context], np.int32),
            dense_CF=_matrix(frame, [f"dense_{name}" for name in self.file.dense], np.float32),
        )

    @cached_property
    def source_date_C(self) -> NDArray[np.int32]:
        """YYYYMMDD under which the source lists each candidate. Raises `InputError` if it names no dates."""
        if SOURCE_DATE not in self._read("candidates", 0).columns:
            raise InputError(f"the source {self.file.data.source} has no dates of public splits")
        parts = [self._read("candidates", bucket, ["user_id", SOURCE_DATE]) for bucket in range(self.buckets)]
        return pl.concat(parts).sort("user_id", maintain_order=True)[SOURCE_DATE].to_numpy()

    @cached_property
    def events(self) -> Events:
        """All events, one bucket after the other."""
        return self._events_of(pl.concat([self._read("events", bucket) for bucket in range(self.buckets)]))

    def _events_of(self, frame: pl.DataFrame) -> Events:
        return events_of(frame, self.info.tasks)

    @cached_property
    def _all_examples(self) -> Examples:
        """Every example, ordered by (user_id, cut): the same order whatever the number of buckets."""
        frames, before = [], 0
        for bucket in range(self.buckets):
            frame = self._read("examples", bucket)
            frames.append(frame.with_columns(pl.col("history_start") + before))
            before += self._read("events", bucket, ["user_id"]).height
        frame = pl.concat(frames).sort("user_id", maintain_order=True)
        number_E = frame["num_candidates"].to_numpy()
        return Examples(
            user_id_E=frame["user_id"].to_numpy(),
            user_row_E=frame["user_row"].cast(pl.Int64).to_numpy(),
            day_E=frame["day"].to_numpy(),
            cut_us_E=frame["cut_us"].to_numpy(),
            history_start_E=frame["history_start"].to_numpy(),
            history_length_E=frame["history_length"].to_numpy(),
            candidate_start_E=np.cumsum(number_E) - number_E,
            num_candidates_E=number_E,
            events=self.events,
            candidates=self.candidates,
        )

    def examples(self, first_day: int, end_day: int) -> Examples:
        """The examples whose candidates lie on the days first_day .. end_day - 1."""
        every = self._all_examples
        return every.where((every.day_E >= first_day) & (every.day_E < end_day))

    def histories(self, as_of_us: int, bucket: int, max_uih: int, max_tokens: int) -> Iterator[HistoryBatch]:
        """Every user of one bucket's events, by id, with the newest `max_uih` events before `as_of_us`.

        A batch holds up to `max_tokens` events, or one user. Users without an event before `as_of_us` come
        too.
        """
        events = self._events_of(self._read("events", bucket))
        examples = _users_as_of(events, self.users, as_of_us, self._no_candidates())
        length_E = np.minimum(examples.history_length_E, max_uih)
        first = pack(length_E, np.zeros_like(length_E), max_tokens, 1)
        newest_seq_N = _running_maximum(events)
        whole_until_E = _whole_until(events, examples.history_start_E, as_of_us)
        for low, high in pairwise(first):
            chosen_B = np.arange(low, high)
            newest_B = (examples.history_start_E + examples.history_length_E - 1)[low:high]
            some_B = examples.history_length_E[low:high] > 0
            yield HistoryBatch(
                batch=gather(examples, chosen_B, max_uih),
                seq_B=np.where(some_B, newest_seq_N[newest_B], -1),
                event_time_us_B=np.where(some_B, events.event_time_us_N[newest_B], -1),
                seq_L=events.seq_N[history_rows(examples, chosen_B, max_uih)[0]],
                whole_until_B=whole_until_E[low:high],
            )

    def _no_candidates(self) -> Candidates:
        """An empty candidate table with this data set's columns."""
        return Candidates(
            user_id_C=np.empty(0, np.int64),
            item_row_C=np.empty(0, np.int32),
            category_row_C=np.empty(0, np.int32),
            event_time_us_C=np.empty(0, np.int64),
            day_C=np.empty(0, np.int32),
            history_length_C=np.empty(0, np.int64),
            labels_CT=np.empty((0, len(self.info.tasks)), np.float32),
            context_CK=np.empty((0, len(self.file.context)), np.int32),
            dense_CF=np.empty((0, len(self.file.dense)), np.float32),
        )


def _matrix(frame: pl.DataFrame, names: list[str], kind: type[Kind]) -> NDArray[Kind]:
    columns = [frame[name].to_numpy().astype(kind) for name in names]
    return np.stack(columns, axis=1) if columns else np.empty((frame.height, 0), kind)


def _users_as_of(events: Events, users: Dictionary, as_of_us: int, none: Candidates) -> Examples:
    """One example without candidates per user of a bucket: the events before `as_of_us`."""
    start_U = np.flatnonzero(events.user_starts() == np.arange(len(events.user_id_N)))
    user_id_U = events.user_id_N[start_U]
    past_N = np.append(0, np.cumsum(events.event_time_us_N < as_of_us))
    end_U = np.append(start_U[1:], len(events.user_id_N))
    zeros_U = np.zeros(len(start_U), np.int64)
    return Examples(
        user_id_E=user_id_U,
        user_row_E=users.rows_of(user_id_U).astype(np.int64),
        day_E=zeros_U.astype(np.int32),
        cut_us_E=np.full(len(start_U), as_of_us),
        history_start_E=start_U,
        history_length_E=past_N[end_U] - past_N[start_U],
        candidate_start_E=zeros_U,
        num_candidates_E=zeros_U,
        events=events,
        candidates=none,
    )


def _whole_until(events: Events, start_U: NDArray[np.int64], as_of_us: int) -> NDArray[np.int64]:
    """[U] the first arrival number of an event at or after `as_of_us`, else that of the next to come."""
    number_U = np.diff(np.append(start_U, len(events.seq_N)))
    late_N = np.where(events.event_time_us_N < as_of_us, len(events.seq_N), events.seq_N)
    return np.minimum(number_U, np.minimum.reduceat(late_N, start_U)) if len(start_U) else number_U


def _running_maximum(events: Events) -> NDArray[np.int64]:
    """[N] the largest arrival number of the user's events up to each one."""
    # a user's start, shifted into the high part, restarts the running maximum
    shift = int(events.seq_N.max(initial=0)) + 1
    base_N = events.user_starts() * shift
    running: NDArray[np.int64] = np.maximum.accumulate(base_N + events.seq_N) - base_N
    return running
