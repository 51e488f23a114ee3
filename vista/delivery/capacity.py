"""What a deployment's summaries take: bytes in the table, in the log and in the regions' stores, and over how
many files, partitions, brokers and nodes they are spread.

Record sizes are measured, with the codec itself, on Gaussian summaries; a trained model's are about as long.
What servers add is stated here and held against real ones by the tests. Sizes in the terminal are decimal.

Shape suffixes: B users, S seeds, D width.
"""

import math
from typing import Literal

import numpy as np
from pydantic import Field

from vista.config import Frozen
from vista.errors import InputError
from vista.summary.codec import codec_of, encode_summaries

SAMPLE_NUMBERS = 2**22
SAMPLE_USERS = 128

TABLE_ROW_BYTES = 4 * 8 + 4
"""Of a row of the table beside the record: four numbers, and the record's length."""

UPDATED_EPOCHS = 2
"""A streamed update goes out under every live epoch: the current one, and during a rollout the next."""

LOG_RECORD_BYTES = 48
"""Of a record of the log beside its value: key, lengths and deltas, its share of a batch's header and of the
index."""

STORE_INDEX_BYTES = 120
"""Of a summary's entry in its bucket's index of users."""

FILL = 0.7
"""Share of a node's memory or a broker's disk that may be used: a store forks to save itself, memory gets
fragmented, and what one machine holds must fit on the others when it is gone."""

BUCKETS_PER_NODE = 16
"""At least so many, since a bucket lies on one node: then none holds much more than the others."""

MIN_BUCKETS, MAX_BUCKETS = 32, 65_536

PARTITIONS_PER_BROKER = 4_000
"""Copies of partitions that one broker should lead or follow at most."""

CLUSTER_NODES = 1_000
"""Redis Cluster is made for at most so many."""


class CapacityConfig(Frozen):
    """A deployment whose sizes are asked for."""

    users: int = Field(ge=1, le=10**12, description="users with a summary")
    seeds: int = Field(128, ge=1, le=4_096, description="summary vectors per user")
    width: int = Field(256, ge=8, le=4_096, description="numbers of a vector")
    codec: Literal["bf16", "int8"] = Field("int8", description="bf16, int8")
    regions: int = Field(3, ge=1, description="each with a store of its own")
    store_copies: int = Field(2, ge=1, description="of a region's keys: its primaries and their replicas")
    replication: int = Field(3, ge=1, description="copies of the table's files and of the log's partitions")
    epochs_kept: int = Field(3, ge=1, description="in the stores: previous, current, next")
    log_epochs: int = Field(8, ge=1, description="in the log: of a week, which it keeps, and the newest")
    updates_per_week: int = Field(
        7,
        ge=0,
        description="streamed updates of a user in a week; the log keeps each, under every live epoch",
    )
    table_epochs: int = Field(30, ge=1, description="in the table, for the days that training looks back")
    buckets: int | None = Field(None, ge=1, le=65_536, description="empty: as many as the stores need")
    node_memory_gib: int = Field(256, ge=1, description="memory of one node of a store")
    broker_disk_gib: int = Field(8_192, ge=1, description="disk of one broker of the log")


class Holding(Frozen):
    """The table, the log, or one region's store: what holds summaries.

    `record_bytes` are of one record, of which each copy has `records` per user: one an epoch, in the log also
    the updates. A piece is one bucket's: an epoch's file of the table, a partition of the log, a bucket's
    keys in a store, in one copy. `machines` are brokers, or nodes with their replicas; None for files.
    """

    record_bytes: float
    records: int
    copies: int
    total_bytes: int
    pieces: int
    piece_bytes: int
    machines: int | None


class Capacity(Frozen):
    """`store` is one region's; `total_bytes` are of the table, the log and all regions' stores."""

    config: CapacityConfig
    record_bytes: float
    table: Holding
    log: Holding
    store: Holding
    total_bytes: int

    def text(self) -> str:
        """As a table for people."""
        config = self.config
        lines = [
            f"{config.users:,} users, {config.seeds} x {config.width} {config.codec}: "
            f"{self.record_bytes:,.0f} bytes a record",
            "",
            *_aligned(
                ("", "a record", "per user", "copies", "total", ""),
                _row("table", self.table, f"{self.table.pieces:,} files of {{}} an epoch"),
                _row(
                    "log", self.log, f"{self.log.pieces:,} partitions of {{}}, {self.log.machines:,} brokers"
                ),
                _row(
                    "store",
                    self.store,
                    f"{self.store.pieces:,} buckets of {{}}, {self.store.machines:,} nodes",
                ),
            ),
            "",
            f"The store is one region's; {config.regions} regions, the table and the log take "
            f"{size_text(self.total_bytes)}.",
            f"Of nodes with {config.node_memory_gib} GiB and brokers with {config.broker_disk_gib:,} GiB "
            f"{FILL:.0%} is used.",
        ]
        if (self.store.machines or 0) > CLUSTER_NODES:
            lines.append(
                f"Redis Cluster is made for {CLUSTER_NODES:,} nodes: take larger ones, fewer seeds or epochs."
            )
        return "\n".join(lines)


def capacity(config: CapacityConfig) -> Capacity:
    """The sizes of a deployment. Raises `InputError` for buckets that no node can hold."""
    sizes = sample_bytes(config)
    record_bytes = float(np.mean(sizes))
    buckets = config.buckets or _buckets(config, sizes)
    table = _holding(config, record_bytes + TABLE_ROW_BYTES, buckets, config.table_epochs, config.replication)
    logged = config.log_epochs + UPDATED_EPOCHS * config.updates_per_week
    log = _holding(config, record_bytes + LOG_RECORD_BYTES, buckets, logged, config.replication)
    stored_bytes = float(np.mean([store_bytes(size, config.users, buckets) for size in sizes]))
    store = _holding(config, stored_bytes, buckets, config.epochs_kept, config.store_copies)
    return Capacity(
        config=config,
        record_bytes=record_bytes,
        table=table.model_copy(update={"piece_bytes": table.piece_bytes // config.table_epochs}),
        log=log.model_copy(update={"machines": _brokers(config, log)}),
        store=store.model_copy(update={"machines": _nodes(config, store)}),
        total_bytes=table.total_bytes + log.total_bytes + config.regions * store.total_bytes,
    )


def sample_bytes(config: CapacityConfig) -> list[int]:
    """The lengths of the records of some users with Gaussian summaries."""
    users = max(4, min(SAMPLE_USERS, SAMPLE_NUMBERS // (config.seeds * config.width)))
    summary_BSD = np.random.default_rng(0).normal(size=(users, config.seeds, config.width))
    number_B = np.arange(users)
    records = encode_summaries(
        summary_BSD.astype(np.float32),
        space_id=0,
        epoch=1,
        as_of_us=0,
        user_id_B=number_B,
        seq_B=number_B,
        event_time_us_B=number_B,
        codec=codec_of(config.codec),
        zstd=True,
    )
    return [len(record) for record in records]


def store_bytes(record_bytes: int, users: int, buckets: int) -> float:
    """Memory that Redis 7 takes for one summary: value, key, their entry, the index of the bucket's users."""
    key_bytes = len(f"s:{0:016x}:999:{{{buckets - 1}}}:{users}")
    value, key = size_class(_string_bytes(record_bytes)), size_class(_string_bytes(key_bytes))
    return value + 16 + key + 48 + 12 + STORE_INDEX_BYTES  # 16 an object, 48 an entry, 12 its hash table


def size_class(wanted_bytes: int) -> int:
    """What jemalloc gives out for so many bytes: multiples of 16 up to 128, then four sizes per doubling.

    >>> [size_class(wanted) for wanted in (1, 129, 30_806, 32_768, 32_769)]
    [16, 160, 32768, 32768, 40960]
    """
    step = max(16, 1 << max(0, (wanted_bytes - 1).bit_length() - 3))
    return math.ceil(wanted_bytes / step) * step


def size_text(size: float) -> str:
    """A number of bytes with three digits or four.

    >>> size_text(30_990), size_text(3.2e14), size_text(999)
    ('31.0 kB', '320 TB', '999 B')
    """
    for unit in ("B", "kB", "MB", "GB", "TB", "PB"):
        if size < 1_000 or unit == "PB":
            break
        size /= 1_000
    return f"{size:.1f} {unit}" if size < 100 and unit != "B" else f"{size:,.0f} {unit}"


def _holding(config: CapacityConfig, record_bytes: float, buckets: int, records: int, copies: int) -> Holding:
    held_bytes = config.users * record_bytes * records
    return Holding(
        record_bytes=record_bytes,
        records=records,
        copies=copies,
        total_bytes=round(held_bytes * copies),
        pieces=buckets,
        piece_bytes=round(held_bytes / buckets),
        machines=None,
    )


def _buckets(config: CapacityConfig, sizes: list[int]) -> int:
    """The power of two that gives every node enough buckets to be filled evenly."""
    user_bytes = float(np.mean([store_bytes(size, config.users, MAX_BUCKETS) for size in sizes]))
    nodes = config.users * user_bytes * config.epochs_kept / _usable_bytes(config.node_memory_gib)
    wanted = 1 << math.ceil(math.log2(max(MIN_BUCKETS, nodes * BUCKETS_PER_NODE)))
    return min(MAX_BUCKETS, wanted)


def _nodes(config: CapacityConfig, store: Holding) -> int:
    per_node = _usable_bytes(config.node_memory_gib) // store.piece_bytes
    if not per_node:
        raise InputError(
            f"a bucket of {size_text(store.piece_bytes)} does not fit a node of {config.node_memory_gib} GiB "
            f"that is filled to {FILL:.0%}: take larger nodes, or more buckets (at most {MAX_BUCKETS:,})"
        )
    return math.ceil(store.pieces / per_node) * store.copies


def _brokers(config: CapacityConfig, log: Holding) -> int:
    by_disk = math.ceil(log.total_bytes / _usable_bytes(config.broker_disk_gib))
    by_partitions = math.ceil(log.pieces * log.copies / PARTITIONS_PER_BROKER)
    return max(by_disk, by_partitions, log.copies)


def _usable_bytes(gib: int) -> int:
    return int(FILL * gib * 2**30)


def _string_bytes(length: int) -> int:
    """A string of Redis: its header, which grows with its length, itself and a zero byte."""
    header = 1 if length < 2**5 else 3 if length < 2**8 else 5 if length < 2**16 else 9
    return header + length + 1


def _aligned(*rows: tuple[str, ...]) -> list[str]:
    """Names to the left, numbers to the right, remarks as they are."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:-1], widths[1:-1]), row[-1]]).rstrip()
        for row in rows
    ]


def _row(name: str, held: Holding, needs: str) -> tuple[str, str, str, str, str, str]:
    return (
        name,
        size_text(held.record_bytes),
        f"{held.records:,}",
        f"{held.copies:,}",
        size_text(held.total_bytes),
        needs.format(size_text(held.piece_bytes)),
    )
