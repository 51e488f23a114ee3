"""What `python -m vista capacity` says of a record in a store and in a log, against Redis and Kafka."""

import uuid
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from infra.kafka import Kafka
from infra.redis import Redis, running_redis
from vista.data.schema import bucket_of
from vista.delivery.capacity import LOG_RECORD_BYTES, store_bytes
from vista.delivery.log import open_log
from vista.delivery.store import open_store
from vista.summary.codec import codec_of, encode_summaries
from vista.summary.record import space_id

BUCKETS = 4
BATCH_RECORDS = 200

SIZES = [
    (4_000, 8, 32, "int8"),
    (4_000, 16, 64, "int8"),
    (2_000, 128, 256, "int8"),
    (1_000, 128, 256, "bf16"),
]


def records_of(users: int, seeds: int, width: int, codec: str) -> list[bytes]:
    """The records of Gaussian summaries, by user."""
    user_id_B = np.arange(users)
    summary_BSD = np.random.default_rng(0).normal(size=(users, seeds, width)).astype(np.float32)
    return encode_summaries(
        summary_BSD, space_id=space_id("s"), epoch=1, as_of_us=10, user_id_B=user_id_B, seq_B=user_id_B,
        event_time_us_B=0 * user_id_B, codec=codec_of(codec), zstd=True,
    )  # fmt: skip


def by_bucket(records: Sequence[bytes]) -> list[list[bytes]]:
    found: list[list[bytes]] = [[] for _ in range(BUCKETS)]
    for user, record in enumerate(records):
        found[bucket_of(user, BUCKETS)].append(record)
    return found


@pytest.fixture(scope="module")
def redis(servers_place: Path) -> Iterator[Redis]:
    with running_redis(servers_place / "capacity") as servers:
        yield servers


def used_bytes(redis: Redis) -> int:
    (node,) = redis.nodes
    return int(node.fields("INFO", "memory")["used_memory"])


@pytest.mark.parametrize(("users", "seeds", "width", "codec"), SIZES)
def test_memory_of_a_store(redis: Redis, users: int, seeds: int, width: int, codec: str) -> None:
    """Within 64 bytes a record: two hash tables have 8 to 16 bytes of a key each, 24 while they grow, and
    Redis' buffers of this connection come and go."""
    records = records_of(users, seeds, width, codec)
    redis.wipe()
    with closing(open_store(redis.url, BUCKETS)) as store:
        for bucket in range(BUCKETS):
            assert store.state(bucket).offset == 0
        before = used_bytes(redis)
        for bucket, mine in enumerate(by_bucket(records)):
            for first in range(0, len(mine), BATCH_RECORDS):
                batch = mine[first : first + BATCH_RECORDS]
                assert store.apply(bucket, first, first + len(batch), batch).written == len(batch)
        found = used_bytes(redis) - before
    said = sum(store_bytes(len(record), users, BUCKETS) for record in records)
    assert said / users == pytest.approx(found / users, abs=64)


@pytest.mark.parametrize(("users", "seeds", "width", "codec"), SIZES)
def test_bytes_of_a_log(
    kafka: Kafka, servers_place: Path, users: int, seeds: int, width: int, codec: str
) -> None:
    """Beside a record lie its key of 32 bytes, some ten of lengths, and a share of the batch's head, which is
    small beside many short records. The index is small beside any, but for its length that is set apart."""
    records = records_of(users, seeds, width, codec)
    topic = f"capacity-{uuid.uuid4().hex}"
    with closing(open_log(f"kafka://127.0.0.1:{kafka.brokers[0].port}/{topic}", BUCKETS)) as log:
        for bucket, mine in enumerate(by_bucket(records)):
            log.append(bucket, mine)
    found = sum(file.stat().st_size for file in servers_place.rglob(f"{topic}-*/*.log"))
    assert 32 + 8 < (found - sum(map(len, records))) / users <= LOG_RECORD_BYTES
