"""Cutting one bucket: its rows -> events, examples and candidates files."""

from dataclasses import dataclass, replace

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from vista.config import DataConfig
from vista.data.examples import Cuts, cut_examples
from vista.data.features import Asked, ItemsPast, UsersPast, dense_features
from vista.data.files import SOURCE_DATE, events_of
from vista.data.learn import Learned, rows_of_column
from vista.data.negatives import Positives, sample_negatives
from vista.data.schema import EVENT_SCHEMA, Events
from vista.data.sources import SourceInfo


@dataclass(frozen=True, slots=True)
class Columns:
    """A source, and the names of the columns that it leads to, in order."""

    source: SourceInfo
    tasks: tuple[str, ...]
    context: tuple[str, ...]
    dense: tuple[str, ...]
    truth: tuple[str, ...]

    def labels(self) -> list[str]:
        return [f"label_{task}" for task in self.tasks]


def sorted_rows(table: pa.Table) -> pl.DataFrame:
    """One bucket's rows in arrival order -> with `seq` and `candidate_only`, sorted by (user, time, seq).

    A row that is a candidate only comes before the events of its time.
    """
    rows = pl.DataFrame(table)
    if "candidate_only" not in rows.columns:
        rows = rows.with_columns(pl.lit(False).alias("candidate_only"))
    rows = _numbered(rows.sort("user_id", maintain_order=True))
    user_N, time_N = rows["user_id"].to_numpy(), rows["event_time_us"].to_numpy()
    only_N = rows["candidate_only"].to_numpy()
    falls_N = (time_N[1:] < time_N[:-1]) | ((time_N[1:] == time_N[:-1]) & only_N[1:] & ~only_N[:-1])
    if not (falls_N & (user_N[1:] == user_N[:-1])).any():  # as most logs are written
        return rows
    return rows.sort(
        ["user_id", "event_time_us", "candidate_only", "seq"],
        descending=[False, False, True, False],
        maintain_order=True,
    )


def _numbered(rows: pl.DataFrame) -> pl.DataFrame:
    """Rows by user in arrival order, with `seq`: the number of the user's events before, for an event."""
    user_N, event_N = rows["user_id"].to_numpy(), ~rows["candidate_only"].to_numpy()
    first_U = np.flatnonzero(np.append(True, user_N[1:] != user_N[:-1])[: len(user_N)])
    arrived_N = np.cumsum(event_N)
    before_U = (arrived_N - event_N)[first_U]
    rows_U = np.diff(np.append(first_U, len(user_N)))
    return rows.with_columns(seq=arrived_N - 1 - np.repeat(before_U, rows_U))


def with_rows(rows: pl.DataFrame, learned: Learned) -> pl.DataFrame:
    """Sorted rows with item_row, category_row and value_bucket."""
    value_N = rows["value"].cast(pl.Float32).fill_null(np.nan).to_numpy()
    return rows.with_columns(
        item_row=learned.items.rows_of(rows["item_id"].to_numpy()),
        category_row=rows_of_column(learned.categories, rows["category_id"]),
        value_bucket=learned.value_buckets(value_N),
    )


def events_table(rows: pl.DataFrame, columns: Columns) -> pl.DataFrame:
    """EVENT_SCHEMA, rows of the dictionaries, labels; without the rows that are candidates only."""
    kept = [*EVENT_SCHEMA.names, "item_row", "category_row", "value_bucket", *columns.labels()]
    return rows.filter(~pl.col("candidate_only")).select(kept)


def cut_bucket(
    rows: pl.DataFrame, items: ItemsPast, learned: Learned, data: DataConfig, columns: Columns
) -> tuple[pl.DataFrame, pl.DataFrame, int]:
    """The examples and the candidates of a bucket's rows, as they are written, and how many rows with a label
    `_of_known_items` leaves out.

    Positions of histories count the bucket's events: its rows without those that are candidates only.
    """
    all_cuts = cut_examples(events_of(rows, columns.tasks), learned.days, data)
    cuts = _of_known_items(all_cuts, rows, learned) if columns.source.negatives_per_positive else all_cuts
    only_N = rows["candidate_only"].to_numpy()
    before_N = np.append(0, np.cumsum(~only_N))  # events before each row
    spots = _Spots(
        user_start_E=before_N[cuts.user_start_E],
        cut_E=before_N[cuts.cut_position_E],
        cut_us_E=cuts.cut_us_E,
        position_C=before_N[cuts.position_C],
        example_C=cuts.example_C,
    )
    candidates = rows[cuts.position_C].select(
        "user_id", "item_id", "item_row", "category_row", "event_time_us", *columns.labels(),
        *columns.context, *columns.truth, *({SOURCE_DATE} & set(rows.columns)),
        pl.col("candidate_only").alias("sampled"),
    )  # fmt: skip
    candidates = candidates.with_columns(
        day=cuts.day_E[spots.example_C].astype(np.int32), cut_us=cuts.cut_us_E[spots.example_C]
    )
    events = events_of(rows.filter(~pl.col("candidate_only")), columns.tasks)
    if columns.source.negatives_per_positive:
        candidates, spots = _with_negatives(candidates, spots, events, learned, data, columns)
    candidates = _with_features(
        candidates, spots, UsersPast(events, len(columns.source.actions), items), items, columns
    )
    left_out = len(all_cuts.position_C) - len(cuts.position_C)
    return _examples(rows, cuts, spots, learned), candidates, left_out


def _of_known_items(cuts: Cuts, rows: pl.DataFrame, learned: Learned) -> Cuts:
    """`cuts` without candidates of items that nobody had before the cut: a negative is always of a known one,
    so that "new" would mean "chosen". They stay events of the histories."""
    known_C = (
        rows["item_row"].to_numpy()[cuts.position_C]
        <= learned.items.known_before(cuts.cut_us_E)[cuts.example_C]
    )
    number_E = np.bincount(cuts.example_C[known_C], minlength=len(cuts.day_E)).astype(np.int64)
    kept_E = number_E > 0
    return Cuts(
        user_start_E=cuts.user_start_E[kept_E],
        cut_position_E=cuts.cut_position_E[kept_E],
        cut_us_E=cuts.cut_us_E[kept_E],
        day_E=cuts.day_E[kept_E],
        num_candidates_E=number_E[kept_E],
        position_C=cuts.position_C[known_C],
    )


@dataclass(frozen=True, slots=True)
class _Spots:
    """Where examples and candidates are among the bucket's events."""

    user_start_E: NDArray[np.int64]
    cut_E: NDArray[np.int64]
    cut_us_E: NDArray[np.int64]
    position_C: NDArray[np.int64]
    example_C: NDArray[np.int64]


def _with_features(
    candidates: pl.DataFrame, spots: _Spots, users: UsersPast, items: ItemsPast, columns: Columns
) -> pl.DataFrame:
    asked = Asked(
        user_start_E=spots.user_start_E,
        cut_position_E=spots.cut_E,
        cut_us_E=spots.cut_us_E,
        example_C=spots.example_C,
        item_row_C=candidates["item_row"].to_numpy(),
        category_row_C=candidates["category_row"].to_numpy(),
    )
    dense_CF = dense_features(users, items, asked)
    return candidates.with_columns(
        history_length=(spots.cut_E - spots.user_start_E)[spots.example_C],
        **{f"dense_{name}": dense_CF[:, place] for place, name in enumerate(columns.dense)},
    )


def _examples(rows: pl.DataFrame, cuts: Cuts, spots: _Spots, learned: Learned) -> pl.DataFrame:
    number_E = np.bincount(spots.example_C, minlength=len(cuts.day_E)).astype(np.int64)
    user_E = rows["user_id"].to_numpy()[cuts.user_start_E]
    return pl.DataFrame(
        {
            "user_id": user_E,
            "user_row": learned.users.rows_of(user_E),
            "day": cuts.day_E.astype(np.int32),
            "cut_us": spots.cut_us_E,
            "history_start": spots.user_start_E,
            "history_length": spots.cut_E - spots.user_start_E,
            "candidate_start": np.cumsum(number_E) - number_E,
            "num_candidates": number_E,
        }
    )


def _with_negatives(
    candidates: pl.DataFrame,
    spots: _Spots,
    events: Events,
    learned: Learned,
    data: DataConfig,
    columns: Columns,
) -> tuple[pl.DataFrame, _Spots]:
    """`candidates` with sampled negatives after each positive (label 1 of the first task)."""
    positive_C = np.flatnonzero(candidates[columns.labels()[0]].to_numpy() == 1)
    day_C = candidates["day"].to_numpy()[positive_C]
    positives = Positives(
        position_P=spots.position_C[positive_C],
        cut_position_P=spots.cut_E[spots.example_C[positive_C]],
        known_items_P=learned.items.known_before(candidates["cut_us"].to_numpy()[positive_C]),
        split_P=np.searchsorted([learned.windows.k, learned.windows.n], day_C, side="right"),
    )
    source, item_row = sample_negatives(
        events,
        positives,
        items=len(learned.items.id_R),
        per_positive=columns.source.negatives_per_positive,
        seed=data.seed,
    )
    of_candidate = positive_C[source]
    negatives = candidates[of_candidate].with_columns(
        item_id=learned.items.id_R[item_row - 1],
        item_row=item_row.astype(np.int32),
        category_row=learned.item_category_R[item_row - 1],
        sampled=pl.lit(True),
        **{label: pl.lit(0, pl.UInt8) for label in columns.labels()},
    )
    order = np.argsort(np.append(np.arange(candidates.height), of_candidate), kind="stable")
    moved = np.append(np.arange(candidates.height), of_candidate)[order]
    moved_spots = replace(spots, position_C=spots.position_C[moved], example_C=spots.example_C[moved])
    return pl.concat([candidates, negatives])[order], moved_spots
