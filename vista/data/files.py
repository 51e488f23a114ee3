"""Where the tables of a prepared data set are, and how their columns are read."""

from pathlib import Path

import numpy as np
import polars as pl

from vista.data.schema import Events

SOURCE_DATE = "source_date"
"""YYYYMMDD under which the source's files list a row, where they do: public splits are defined by it."""

SOURCE_DATE = "source_date"
"""YYYYMMDD under which the source's files list a row, where they do: public splits are defined by it."""


def bucket_file(directory: Path, kind: str, bucket: int) -> Path:
    """`directory`/`kind`/bucket-00017.parquet; kinds are events, examples, candidates."""
    return directory / kind / f"bucket-{bucket:05d}.parquet"


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
