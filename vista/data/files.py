"""Where the tables of a prepared data set are, how they are checked and how their columns are read."""

from collections.abc import Sequence
from pathlib import Path

import google_crc32c
import numpy as np
import polars as pl

from vista.data.schema import Events
from vista.runs import reading

SOURCE_DATE = "source_date"
"""YYYYMMDD under which the source's files list a row, where they do: public splits are defined by it."""

PREPARE_AGAIN = (
    "delete the folder of the prepared data and, of a run, stages/prepare.json; the same command, or "
    "`make run RESUME=1`, prepares it again"
)

CHUNK_BYTES = 1 << 22


def bucket_file(directory: Path, kind: str, bucket: int) -> Path:
    """`directory`/`kind`/bucket-00017.parquet; kinds are events, examples, candidates."""
    return directory / kind / f"bucket-{bucket:05d}.parquet"


def read_prepared(path: Path, columns: Sequence[str] | None = None) -> pl.DataFrame:
    """A table of a prepared data set. Raises `StageError` if it is missing or damaged."""
    with reading(path, PREPARE_AGAIN, pl.exceptions.PolarsError):
        return pl.read_parquet(path, columns=None if columns is None else list(columns))


def checksum(path: Path) -> str:
    """CRC-32C of a file, 8 hexadecimal digits: against damage, not against attackers."""
    crc = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            crc = google_crc32c.extend(crc, chunk)
    return f"{crc:08x}"


def check_unchanged(path: Path, expected: str | None, remedy: str) -> None:
    """Raises `StageError` if a file is not the one that was written."""
    with reading(path, remedy):
        found = checksum(path)
        if found != expected:
            raise ValueError(f"its checksum is {found}, that of the file that was written {expected}")


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
