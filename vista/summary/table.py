"""The table route: one Parquet file per bucket and its manifest, below an attempt's directory.

<attempt>/bucket-00017.parquet  user_id, seq, event_time_us, value (the record's bytes), inputs_digest (what
                                the value was made from: vista.summary.unchanged); sorted by user_id;
                                of summaries that follow every event also state (vista.summary.state)
<attempt>/_bucket-00017.json    the manifest, written last: a shard with a manifest is whole. Hive and others
                                read every file but those whose names begin with _ or a dot
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import ValidationError

from vista.config import Frozen
from vista.data.schema import buckets_of
from vista.errors import EpochError
from vista.summary.files import Digesting, digest, files_at, mapped, names_in, read, written
from vista.summary.record import keys_digest

TABLE_SCHEMA = pa.schema(
    [
        pa.field("user_id", pa.int64(), nullable=False),
        pa.field("seq", pa.int64(), nullable=False),
        pa.field("event_time_us", pa.int64(), nullable=False),
        pa.field("value", pa.binary(), nullable=False),
    ]
)
DIGEST_FIELD = pa.field("inputs_digest", pa.int64(), nullable=False)
STATE_FIELD = pa.field("state", pa.binary(), nullable=False)
ROW_GROUP_ROWS = 1_024


class Work(Frozen):
    """How the records of a shard were come by. Rows are what the model reads of a user: events and seeds."""

    recomputed: int = 0
    republished: int = 0  # users whose record of an earlier epoch was copied
    recomputed_rows: int = 0
    republished_rows: int = 0
    model_cpu_s: float = 0.0  # spent on the recomputed rows

    @classmethod
    def total(cls, parts: Iterable["Work"]) -> "Work":
        """The work of several shards, or of several parts of one."""
        every = list(parts)
        return cls(**{name: sum(getattr(one, name) for one in every) for name in cls.model_fields})

    @property
    def saved_cpu_s(self) -> float | None:
        """What the model would have spent on the republished rows; None if it had none to be timed by."""
        if not self.recomputed_rows:
            return None
        return self.model_cpu_s / self.recomputed_rows * self.republished_rows


NO_WORK = Work()


class Shard(Frozen):
    """One bucket's manifest."""

    bucket: int
    rows: int
    keys_digest: str  # of the user ids
    content_digest: str  # SHA-256 over the records in order of user id
    file_digest: str  # SHA-256 of the Parquet file
    value_bytes: int
    min_user_id: int | None
    max_user_id: int | None
    work: Work = NO_WORK
    copied_from: tuple[int, ...] = ()  # epochs of the space whose records may be among these


class AttemptSummary(Frozen):
    """A whole attempt: `digest` covers every record; `shards` are in order of bucket."""

    rows: int
    digest: str
    value_bytes: int
    shards: tuple[Shard, ...]

    @property
    def copied_from(self) -> tuple[int, ...]:
        """Epochs whose records may be among these, by number."""
        return tuple(sorted({epoch for shard in self.shards for epoch in shard.copied_from}))


@dataclass(frozen=True, slots=True)
class ShardRows:
    """Some rows of a shard, in order of user id. B users; a shard need not hold digests of its inputs."""

    user_id_B: NDArray[np.int64]
    seq_B: NDArray[np.int64]
    event_time_us_B: NDArray[np.int64]
    records: list[bytes]
    inputs_digest_B: NDArray[np.int64] | None = None


def write_shard(
    directory: Path | str,
    bucket: int,
    users: NDArray[np.int64],
    seqs: NDArray[np.int64],
    event_times: NDArray[np.int64],
    records: Sequence[bytes],
    states: Sequence[bytes] | None = None,
    *,
    inputs_digests: NDArray[np.int64] | None = None,
    work: Work = NO_WORK,
    copied_from: Sequence[int] = (),
) -> Shard:
    """Write one bucket, whole or not at all; the same rows in any order give the same bytes. `inputs_digests`
    and `states` become one more column each.

    Raises `EpochError` for a user that is there twice, `BackendError`.
    """
    order = np.argsort(users, kind="stable")
    users, sorted_records = users[order], [records[row] for row in order.tolist()]
    twice = users[1:][users[1:] == users[:-1]]
    if len(twice):
        raise EpochError(f"user {int(twice[0])} is twice in bucket {bucket}: a shard holds each user once")
    table = pa.table(
        [users, seqs[order], event_times[order], pa.array(sorted_records, pa.binary())], TABLE_SCHEMA
    )
    if inputs_digests is not None:
        table = table.append_column(DIGEST_FIELD, [inputs_digests[order]])
    if states is not None:
        table = table.append_column(STATE_FIELD, [[states[row] for row in order.tolist()]])
    file_digest = _write_parquet(directory, bucket, table)
    content = hashlib.sha256()
    for record in sorted_records:
        content.update(record)
    shard = Shard(
        bucket=bucket,
        rows=len(users),
        keys_digest=keys_digest(users.tolist()),
        content_digest=content.hexdigest(),
        file_digest=file_digest,
        value_bytes=sum(map(len, sorted_records)),
        min_user_id=int(users[0]) if len(users) else None,
        max_user_id=int(users[-1]) if len(users) else None,
        work=work,
        copied_from=tuple(copied_from),
    )
    with written(directory, _manifest(bucket)) as file:
        file.write(shard.model_dump_json(indent=2).encode())
    return shard


def whole_shard(directory: Path | str, bucket: int) -> Shard | None:
    """The manifest of a shard that an earlier run of this attempt has finished, or None: restarts skip it."""
    content = read(directory, _manifest(bucket))
    if not content:  # HDFS shows a file whose writer was killed, empty
        return None
    try:
        return Shard.model_validate_json(content)
    except ValidationError as error:
        raise EpochError(
            f"{directory}/{_manifest(bucket)} is no manifest ({error}): delete the attempt and export again"
        ) from error


def shards_of(directory: Path | str, buckets: int) -> tuple[Shard, ...]:
    """The manifests of an attempt, in order of bucket. Raises `EpochError` if one is missing."""
    shards = tuple(whole_shard(directory, bucket) for bucket in range(buckets))
    missing = [bucket for bucket, shard in enumerate(shards) if shard is None]
    if missing:
        raise EpochError(
            f"{directory} lacks {len(missing)} of {buckets} shards (first: bucket {missing[0]}): "
            "run the export again, it continues where it stopped; if the epoch is published already, restore "
            "its files or start a new run"
        )
    return tuple(shard for shard in shards if shard is not None)


def verify_attempt(directory: Path | str, buckets: int) -> AttemptSummary:
    """Check that every shard is there exactly once, has its manifest's bytes and only its bucket's users.

    Raises `EpochError`.
    """
    shards = shards_of(directory, buckets)
    known = {_parquet(bucket) for bucket in range(buckets)}
    unknown = [name for name in names_in(directory) if name.endswith(".parquet") and name not in known]
    if unknown:
        raise EpochError(f"{directory}/{unknown[0]} is none of the {buckets} buckets: was the count changed?")
    for shard in shards:
        _verify_shard(directory, shard, buckets)
    return AttemptSummary(
        rows=sum(shard.rows for shard in shards),
        digest=hashlib.sha256("".join(shard.content_digest for shard in shards).encode()).hexdigest(),
        value_bytes=sum(shard.value_bytes for shard in shards),
        shards=shards,
    )


def read_bucket(
    location: Path | str, bucket: int, column: Literal["value", "state"] = "value"
) -> Iterator[ShardRows]:
    """The rows of one bucket, a row group at a time, in order of user id, with the records or the states as
    `records`. Raises `EpochError`."""
    path = f"{location}/{_parquet(bucket)}"
    try:
        with _opened(location, bucket) as file:
            if column not in file.schema_arrow.names:
                raise EpochError(
                    f"{path} holds no {column}: the recipe's summaries do not follow every event"
                )
            digests = [name for name in file.schema_arrow.names if name == DIGEST_FIELD.name]
            numbers = ["user_id", "seq", "event_time_us", *digests]
            for batch in file.iter_batches(batch_size=ROW_GROUP_ROWS, columns=[*numbers, column]):
                users, seqs, times, *digest = (batch.column(name).to_numpy() for name in numbers)
                yield ShardRows(users, seqs, times, batch.column(column).to_pylist(), *digest)
    except (OSError, pa.ArrowException) as error:
        raise EpochError(f"{path} cannot be read ({error}): was the epoch deleted?") from error


def _verify_shard(directory: Path | str, shard: Shard, buckets: int) -> None:
    path = f"{directory}/{_parquet(shard.bucket)}"
    if digest(directory, _parquet(shard.bucket)) != shard.file_digest:
        raise EpochError(f"{path} is not the file of its manifest: delete both and export again")
    with mapped(directory), _opened(directory, shard.bucket) as file:
        users = file.read(columns=["user_id"]).column(0).to_numpy()
    bucket_B = buckets_of(users, buckets)
    if (bucket_B != shard.bucket).any():
        row = int(np.argmax(bucket_B != shard.bucket))
        raise EpochError(
            f"user {users[row]} in {path} belongs to bucket {bucket_B[row]} of {buckets}: "
            "the export used another bucket count"
        )
    if len(users) != shard.rows or keys_digest(users.tolist()) != shard.keys_digest:
        raise EpochError(f"{path} holds {len(users)} users, its manifest {shard.rows}: export again")


def _write_parquet(directory: Path | str, bucket: int, table: pa.Table) -> str:
    """Write a shard's rows; the SHA-256 of the file. Hive unpacks a dictionary page in quadratic time."""
    with written(directory, _parquet(bucket)) as file:
        digesting = Digesting(file)
        pq.write_table(
            table, digesting, row_group_size=ROW_GROUP_ROWS, compression="none", use_dictionary=False
        )
    return digesting.sha256.hexdigest()


@contextmanager
def _opened(location: Path | str, bucket: int) -> Iterator[pq.ParquetFile]:
    files, path = files_at(location)
    with (
        files.open_input_file(f"{path}/{_parquet(bucket)}") as source,
        pq.ParquetFile(source) as file,
    ):
        yield file


def _parquet(bucket: int) -> str:
    return f"bucket-{bucket:05d}.parquet"


def _manifest(bucket: int) -> str:
    return f"_bucket-{bucket:05d}.json"
