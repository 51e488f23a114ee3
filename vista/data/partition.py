"""The first pass over a source: rows split by bucket, in arrival order, without holding them all.

A run file holds up to RUN_ROWS rows, sorted by bucket; a bucket is the concatenation of its slices of all run
files, which are memory-mapped. So the number of open files does not depend on the number of buckets.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vista.data.schema import buckets_of

RUN_ROWS = 1_000_000


@dataclass(frozen=True, slots=True)
class Partitioned:
    """Run files and where each bucket's rows are in them."""

    runs: tuple[Path, ...]
    starts: tuple[NDArray[np.int64], ...]  # per run: [buckets + 1]

    def bucket(self, bucket: int) -> pa.Table:
        """The rows of one bucket in arrival order."""
        parts = []
        for run, start in zip(self.runs, self.starts, strict=True):
            with pa.memory_map(str(run)) as file:
                table = pa.ipc.open_file(file).read_all()
            parts.append(table.slice(start[bucket], start[bucket + 1] - start[bucket]))
        return pa.concat_tables(parts)


def partition(batches: Iterable[pa.RecordBatch], buckets: int, directory: Path) -> Partitioned:
    """Write the run files of `batches` to `directory`. At least one batch, though it may be empty."""
    directory.mkdir()
    runs: list[Path] = []
    starts: list[NDArray[np.int64]] = []
    waiting: list[pa.RecordBatch] = []
    rows = 0

    def flush() -> None:
        nonlocal rows
        table = pa.Table.from_batches(waiting)
        bucket_N = buckets_of(table["user_id"].to_numpy(), buckets)
        order = np.argsort(bucket_N, kind="stable")
        starts.append(np.searchsorted(bucket_N[order], np.arange(buckets + 1)))
        runs.append(directory / f"run-{len(runs):05d}.arrow")
        with pa.OSFile(str(runs[-1]), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table.take(order).combine_chunks())
        waiting.clear()
        rows = 0

    for batch in batches:
        waiting.append(batch)
        rows += batch.num_rows
        if rows >= RUN_ROWS:
            flush()
    if waiting or not runs:
        flush()
    return Partitioned(tuple(runs), tuple(starts))
