"""Bad rows: kept in a file with the reason and the line, counted, and too many of them refused."""

from pathlib import Path

import polars as pl

from vista.errors import RejectedDataError

SHOWN = 5
"""Reasons in the message of a refusal."""


class Rejects:
    """Collects what a source cannot use. `path` is the rejects file (JSON lines: file, line, reason), written
    from the first bad row on; None counts only.

    `rows` counts the rows that were read: good, bad and duplicate; `rejected` the bad ones; `duplicates` the
    exact copies of an earlier row, which are dropped but are not rejects.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.rows = 0
        self.rejected = 0
        self.duplicates = 0
        self.first: list[str] = []

    def reject(self, line: int, file: str, reason: str) -> None:
        """Keep one bad row; `line` is the line of a text file (header = 1) or the row of a Parquet file."""
        self.reject_many(pl.Series([line]), file, pl.Series([reason]))

    def reject_many(self, lines: pl.Series, file: str, reasons: pl.Series) -> None:
        """Keep many bad rows of one file; `lines` integers, `reasons` strings, of the same length."""
        if lines.is_empty():
            return
        frame = pl.DataFrame({"line": lines.cast(pl.Int64), "reason": reasons.cast(pl.String)})
        self.first += [
            f"{file}, line {line}: {reason}" for line, reason in frame.head(SHOWN - len(self.first)).rows()
        ]
        if self.path is not None:
            with self.path.open("ab" if self.rejected else "wb") as kept:
                frame.select(pl.lit(file).alias("file"), "line", "reason").write_ndjson(kept)
        self.rejected += frame.height

    def check(self, total_rows: int, max_fraction: float) -> None:
        """Raise `RejectedDataError` with the first five reasons if more than `max_fraction` of `total_rows`
        (all rows that were read, the bad ones too) is bad."""
        if self.rejected <= max_fraction * total_rows:
            return
        raise RejectedDataError(
            f"{self.rejected:,} of {total_rows:,} rows cannot be used, more than the {max_fraction:.2%} that "
            "may be left out. Mend the rows or how they are mapped. The first reasons:\n  "
            + "\n  ".join(self.first)
        )
