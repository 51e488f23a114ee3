"""The first pass over a source: rows split by bucket, in arrival order, without holding them all.

A run is a file of about RUN_ROWS rows, sorted by bucket; a bucket is the concatenation of its slices of all
runs, which are memory-mapped. So the number of open files does not depend on the number of buckets.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vista.data.schema import buckets_of

RUN_ROWS = 1 << 19


def runs_of(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Batches put together to tables of RUN_ROWS rows or more. At least one batch, though it may be empty."""
    waiting: list[pa.RecordBatch] = []
    given = False
    for batch in batches:
        waiting.append(batch)
        if sum(one.num_rows for one in waiting) >= RUN_ROWS:
            yield pa.Table.from_batches(waiting)
            waiting, given = [], True
    if waiting or not given:
        yield pa.Table.from_batches(waiting)


class Partition:
    """Runs in a directory and where each bucket's rows are in them."""

    def __init__(self, directory: Path, buckets: int) -> None:
        directory.mkdir()
        self._directory = directory
        self._buckets = buckets
        self._runs: list[Path] = []
        self._starts: list[NDArray[np.int64]] = []  # per run: [buckets + 1]

    def add(self, run: pa.Table) -> None:
        """Write one run."""
        bucket_N = buckets_of(run["user_id"].to_numpy(), self._buckets).astype(np.uint16)
        order_N = np.argsort(bucket_N, kind="stable")  # by counting: linear in 16 bits
        self._starts.append(np.append(0, np.cumsum(np.bincount(bucket_N, minlength=self._buckets))))
        self._runs.append(self._directory / f"run-{len(self._runs):05d}.arrow")
        with pa.OSFile(str(self._runs[-1]), "wb") as file, pa.ipc.new_file(file, run.schema) as writer:
            for whole in run.combine_chunks().to_batches():  # one; none if there are no rows
                writer.write_batch(whole.take(pa.array(order_N)))

    def bucket(self, bucket: int) -> pa.Table:
        """The rows of one bucket in arrival order."""
        parts = []
        for run, start in zip(self._runs, self._starts, strict=True):
            with pa.memory_map(str(run)) as file:
                table = pa.ipc.open_file(file).read_all()
            parts.append(table.slice(start[bucket], start[bucket + 1] - start[bucket]))
        return pa.concat_tables(parts)
