"""The first pass over a source: rows split by bucket, in arrival order, without holding them all.

A chunk is a file of about CHUNK_ROWS rows, sorted by bucket; a bucket is the concatenation of its slices of
all chunks, which are memory-mapped. So the number of open files does not depend on the number of buckets.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vista.data.schema import buckets_of

CHUNK_ROWS = 1 << 19


def chunks_of(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Batches put together to tables of CHUNK_ROWS rows or more. At least one batch; it may be empty."""
    waiting: list[pa.RecordBatch] = []
    given = False
    for batch in batches:
        waiting.append(batch)
        if sum(one.num_rows for one in waiting) >= CHUNK_ROWS:
            yield pa.Table.from_batches(waiting)
            waiting, given = [], True
    if waiting or not given:
        yield pa.Table.from_batches(waiting)


class Partition:
    """Chunks in a directory and where each bucket's rows are in them."""

    def __init__(self, directory: Path, buckets: int) -> None:
        directory.mkdir()
        self._directory = directory
        self._buckets = buckets
        self._chunks: list[Path] = []
        self._starts: list[NDArray[np.int64]] = []  # per chunk: [buckets + 1]

    def add(self, chunk: pa.Table) -> None:
        """Write one chunk."""
        bucket_N = buckets_of(chunk["user_id"].to_numpy(), self._buckets).astype(np.uint16)
        order_N = np.argsort(bucket_N, kind="stable")  # by counting: linear in 16 bits
        self._starts.append(np.append(0, np.cumsum(np.bincount(bucket_N, minlength=self._buckets))))
        self._chunks.append(self._directory / f"chunk-{len(self._chunks):05d}.arrow")
        with pa.OSFile(str(self._chunks[-1]), "wb") as file, pa.ipc.new_file(file, chunk.schema) as writer:
            for whole in chunk.combine_chunks().to_batches():  # one; none if there are no rows
                writer.write_batch(whole.take(pa.array(order_N)))

    def bucket(self, bucket: int) -> pa.Table:
        """The rows of one bucket in arrival order."""
        parts = []
        for path, start in zip(self._chunks, self._starts, strict=True):
            with pa.memory_map(str(path)) as file:
                table = pa.ipc.open_file(file).read_all()
            parts.append(table.slice(start[bucket], start[bucket + 1] - start[bucket]))
        return pa.concat_tables(parts)
