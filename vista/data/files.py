"""Where the tables of a prepared data set are, and how their columns are read."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl

from vista.data.schema import Events
from vista.errors import StageError

SOURCE_DATE = "source_date"
"""YYYYMMDD under which the source's files list a row, where they do: public splits are defined by it."""


def bucket_file(directory: Path, kind: str, bucket: int) -> Path:
    """`directory`/`kind`/bucket-00017.parquet; kinds are events, examples, candidates."""
    return directory / kind / f"bucket-{bucket:05d}.parquet"


def read_prepared(path: Path, columns: Sequence[str] | None = None) -> pl.DataFrame:
    """A table of a prepared data set. Raises `StageError` if it is missing or damaged; polars' own
    `ColumnNotFoundError` for a column that it lacks."""
    try:
        return pl.read_parquet(path, columns=None if columns is None else list(columns))
    except pl.exceptions.ColumnNotFoundError:
        raise
    except (OSError, pl.exceptions.PolarsError) as error:
        why = str(error).splitlines()[0]
        raise StageError(
            f"{path} cannot be read ({why}): restore the prepared data, or start a new run"
        ) from error


def events_of(rows: pl.DataFrame, tasks: tuple[str, ...]) -> Events:
    """Sorted rows as columns."""
    return Events(
        user_id_N=rows["user_id"].to_numpy(),
        item_row_N=rows["item_row"].to_numpy(),
        category_row_N=rows["category_row"].to_numpy(),
        action_mask_N=rows["action_mask"].to_numpy(),
        value_bucket_N=rows["value_bucket"].to_numpy(),
        event_time_us_N=rows["event_time_us"].to_numpy(),
        seq_N=rows["seq"].to_numpy(),
        labels_NT=np.stack([rows[f"label_{task}"].to_numpy() for task in tasks], axis=1),
    )
