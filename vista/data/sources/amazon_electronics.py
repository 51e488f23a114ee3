"""AmazonElectronics_x1 (reczoo/Datasets): `train.csv` and `test.csv`, ready-made examples without times.

A row is (label, user, item, its category, the user's earlier items and their categories); for each position
of a user's list there is one positive and one sampled negative. Here the list becomes events again: position
p happens p days after 2000-01-01, a positive is the event at its position, a negative a candidate there that
belongs to no history. So every row's history is what its `item_history` says.
"""

from collections.abc import Iterator

import polars as pl
import pyarrow as pa

from vista.config import DataConfig
from vista.data.clocks import VIRTUAL_START_US
from vista.data.rejects import Rejects
from vista.data.schema import DAY_US, NO_LABEL
from vista.data.sources import SourceInfo
from vista.data.sources.rows import (
    Check,
    Seen,
    event_batch,
    finished,
    id_check,
    quoted,
    usable,
    whole_number,
)
from vista.data.sources.tables import LINE, TableFile, files_in, folder_of, read_table
from vista.errors import InputError

COLUMNS = ("label", "user_id", "item_id", "cate_id", "item_history", "cate_history")
LISTED = ("user_id", "item_id", "category_id", "position")
INFO = SourceInfo(actions=("review",), context=(), tasks=("label",))


def describe(config: DataConfig) -> SourceInfo:
    return INFO


def read(config: DataConfig, rejects: Rejects) -> Iterator[pa.RecordBatch]:
    """All users' lists, then all rows as candidates; holds all rows at once."""
    folder = folder_of(config.path)
    files = files_in(folder, *(f"{part}.csv{end}" for part in ("train", "test") for end in ("", ".gz")))
    if not files:
        raise InputError(
            f"no train.csv or test.csv in {config.path!r}: get AmazonElectronics_x1 from "
            "https://github.com/reczoo/Datasets and name its folder with DATA_DIR= (--data-dir)"
        )
    return finished(_batches(files, rejects), config.path, rejects, config.max_reject_fraction)


def _batches(files: list[TableFile], rejects: Rejects) -> Iterator[pa.RecordBatch]:
    seen = Seen()
    parts = [
        seen.without_copies(_checked(frame, file, rejects), (*LISTED[:3], "label_label", "history"), rejects)
        for file in files
        for frame in read_table(file, COLUMNS, rejects)
    ]
    if not any(part.height for part in parts):
        return  # `finished` says why
    candidates = _consistent(pl.concat(parts), rejects)
    events = pl.concat([_listed(candidates), candidates.select(*LISTED, "label_label")])
    yield event_batch(
        events.sort("user_id", "position", "label_label", maintain_order=True).with_columns(
            (VIRTUAL_START_US + pl.col("position") * DAY_US).alias("event_time_us"),
            pl.lit(1).alias("action_mask"),
            (pl.col("label_label") == 0).alias("candidate_only"),
        ),
        INFO,
    )


def _checked(frame: pl.DataFrame, file: TableFile, rejects: Rejects) -> pl.DataFrame:
    parsed = frame.with_columns(
        whole_number(frame["label"]).alias("label_label"),
        whole_number(frame["user_id"]).alias("user"),
        whole_number(frame["item_id"]).alias("item"),
        whole_number(frame["cate_id"]).alias("category"),
        _ids("item_history").alias("items"),
        _ids("cate_history").alias("categories"),
    )
    same_length = pl.col("items").list.len() == pl.col("categories").list.len()
    checks = [
        Check(
            ~pl.col("label_label").is_between(0, 1), pl.format("label {} is neither 0 nor 1", quoted("label"))
        ),
        id_check("user_id", "user_id", pl.col("user")),
        id_check("item_id", "item_id", pl.col("item")),
        id_check("cate_id", "cate_id", pl.col("category")),
        Check(~same_length, pl.lit("item_history and cate_history differ in length")),
        Check(
            (pl.col("items").list.min() < 0).fill_null(False),
            pl.format("item_history {} holds something else than ids", quoted("item_history")),
        ),
    ]
    good = usable(parsed, checks, file.name, rejects)
    return good.select(
        LINE, pl.lit(file.name).alias("file"), "label_label", pl.col("user").alias("user_id"),
        pl.col("item").alias("item_id"), pl.col("category").alias("category_id"), "items", "categories",
        pl.col("item_history").fill_null("").alias("history"),
        pl.col("items").list.len().cast(pl.Int64).alias("position"),
    )  # fmt: skip


def _ids(name: str) -> pl.Expr:
    return pl.col(name).fill_null("").str.split("^").list.eval(
        pl.element().filter(pl.element() != "").cast(pl.Int64, strict=False).fill_null(-1)
    )  # fmt: skip


def _consistent(rows: pl.DataFrame, rejects: Rejects) -> pl.DataFrame:
    """Rows that tell the same story of a user; the others are rejected. A history is the beginning of the
    user's longest one, and a positive is the item that the longest one has at its position."""
    longest = pl.col("items").sort_by("position", maintain_order=True).last().over("user_id")
    history = pl.col("history").sort_by("position", maintain_order=True).last().over("user_id")
    told = rows.with_columns(
        ((pl.col("history") == "") | (history + "^").str.starts_with(pl.col("history") + "^")).alias(
            "begins"
        ),
        longest.list.get(pl.col("position"), null_on_oob=True).fill_null(pl.col("item_id")).alias("listed"),
    )
    checks = [
        Check(~pl.col("begins"), pl.lit("item_history is not the beginning of the user's longest one")),
        Check(
            (pl.col("label_label") == 1) & (pl.col("listed") != pl.col("item_id")),
            pl.format("item {} is not what the user's longest item_history holds there", pl.col("item_id")),
        ),
    ]
    parts = told.partition_by("file", as_dict=True, maintain_order=True)
    return pl.concat(usable(part, checks, str(file), rejects) for (file,), part in parts.items())


def _listed(rows: pl.DataFrame) -> pl.DataFrame:
    """History-only events: positions of the users' longest lists for which there is no positive row."""
    longest = rows.sort("position", maintain_order=True).unique("user_id", keep="last", maintain_order=True)
    lists = longest.filter(pl.col("position") > 0).select(
        "user_id",
        pl.col("items").alias("item_id"),
        pl.col("categories").alias("category_id"),
        pl.int_ranges(0, "position").alias("position"),
    )
    positives = rows.filter(pl.col("label_label") == 1)
    return (
        lists.explode("item_id", "category_id", "position")
        .join(positives, on=["user_id", "position"], how="anti", maintain_order="left")
        .select(*LISTED, pl.lit(NO_LABEL, pl.Int64).alias("label_label"))
    )
