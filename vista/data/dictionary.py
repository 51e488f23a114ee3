"""Dictionaries: id -> row, ordered by first appearance, so that what was known at a time is a prefix.

Row 0 is the unseen row. Appending later ids never moves an earlier one: a checkpoint's tables stay valid.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vista.data.schema import places


@dataclass(frozen=True)
class Dictionary:
    """Ids by row - 1, with the time of their first event; first_seen_us never falls."""

    id_R: NDArray[np.int64]
    first_seen_us_R: NDArray[np.int64]

    @classmethod
    def build(cls, first_seen: pl.DataFrame) -> Self:
        """From a frame with an `id` and a `first_seen_us` per row; ids first seen at one time are ordered by
        id."""
        ordered = first_seen.sort("first_seen_us", "id")
        return cls(ordered["id"].to_numpy(), ordered["first_seen_us"].to_numpy())

    @classmethod
    def of(cls, frame: pl.DataFrame) -> Self:
        """From a table that `write` wrote."""
        return cls(frame["id"].to_numpy(), frame["first_seen_us"].to_numpy())

    def write(self, path: Path, **columns: NDArray[np.int32]) -> None:
        """Parquet with row, id, first_seen_us and further columns of a value per row."""
        rows = np.arange(1, len(self.id_R) + 1, dtype=np.int32)
        pl.DataFrame(
            {"row": rows, "id": self.id_R, "first_seen_us": self.first_seen_us_R} | columns
        ).write_parquet(path)

    @cached_property
    def _by_id(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        order_R = np.argsort(self.id_R, kind="stable")
        return self.id_R[order_R], order_R

    def rows_of(self, ids: NDArray[np.int64]) -> NDArray[np.int32]:
        """Rows of `ids`; the unseen row for an id that is not here."""
        sorted_R, order_R = self._by_id
        if not len(sorted_R):
            return np.zeros(len(ids), np.int32)
        place = np.minimum(places(sorted_R, ids), len(sorted_R) - 1)
        return np.where(sorted_R[place] == ids, order_R[place] + 1, 0).astype(np.int32)

    def known_before(self, time_us: NDArray[np.int64] | int) -> NDArray[np.int64]:
        """How many ids were first seen strictly before `time_us`: they are the rows 1 .. that number."""
        return np.asarray(np.searchsorted(self.first_seen_us_R, time_us, side="left"), np.int64)
