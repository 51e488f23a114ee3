"""A model's scores of its test rows with their users and labels, as one Parquet file: what another model is
compared with later, by whoever finds it in MLflow.

N rows, in the order of their candidate ids.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vista.runs import reading

COLUMNS = {"user_id": pl.Int64, "label": pl.Boolean, "score": pl.Float32}


@dataclass(frozen=True, slots=True)
class ScoredRows:
    """Rows and one model's probabilities of them."""

    users_N: NDArray[np.int64]
    labels_N: NDArray[np.bool_]
    scores_N: NDArray[np.float32]

    @property
    def digest(self) -> str:
        """Of the rows, whatever their scores: equal digests may be compared row by row."""
        text = self.users_N.astype("<i8").tobytes() + self.labels_N.astype("u1").tobytes()
        return hashlib.sha256(text).hexdigest()[:16]

    def write(self, path: Path) -> Path:
        """Write the file; the path, again."""
        columns = (self.users_N, self.labels_N, self.scores_N)
        pl.DataFrame(dict(zip(COLUMNS, columns, strict=True)), schema=COLUMNS).write_parquet(path)
        return path

    @classmethod
    def read(cls, path: Path, remedy: str) -> "ScoredRows":
        """Raises `StageError` if the file is missing, damaged or another one."""
        with reading(path, remedy, pl.exceptions.PolarsError):
            rows = pl.read_parquet(path)
            if dict(rows.schema) != COLUMNS:
                raise ValueError(f"its columns are {dict(rows.schema)}, not {COLUMNS}")
        return cls(*(rows[name].to_numpy() for name in COLUMNS))
