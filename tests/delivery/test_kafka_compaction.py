"""A topic that was compacted still tells a wiped region everything."""

from collections import Counter
from contextlib import closing
from pathlib import Path

from delivery_samples import BUCKETS, SPACES, content_digest, record, tombstone, users_of
from kafka import KafkaAdminClient
from kafka.admin import ConfigResource
from kafka_topics import addresses, alter, new_topic, plain_url, read_all

from infra.kafka import Kafka
from infra.processes import wait_until
from vista.delivery.control import barrier, release_record, retirement
from vista.delivery.interfaces import BucketState, Log, Release
from vista.delivery.log import open_log
from vista.delivery.store import open_store
from vista.delivery.worker import Worker

COMPACTED_S = 120.0  # 1 s on two idle cores
SPACE = SPACES[0]
BUCKET = 1
FILLER = b"filler"
EPOCHS = [(SPACE, 2), (SPACE, 3)]


def test_a_region_that_was_wiped_heals_from_a_compacted_topic(kafka: Kafka, tmp_path: Path) -> None:
    """Compaction keeps what comes last, not what is newest: the key must not put two summaries together."""
    topic = new_topic()
    users = users_of(BUCKET, 4)
    first, second = (
        Release(id=name, space=SPACE, epoch=epoch, foundation="f", downstream="d")
        for name, epoch in (("r-1", 2), ("r-2", 3))
    )
    old = [record(user, 0, epoch=1) for user in users]
    sent = [
        *old, barrier(SPACE, 1), retirement(SPACE, 1),
        *(record(user, 7, epoch=2) for user in users),  # streamed, before the backfill is through
        *(record(user, 3, epoch=2) for user in users),
        record(users[0], 7, epoch=2, variant=1), record(users[0], 7, epoch=2),  # two bytes of one seq
        tombstone(users[3], 9, epoch=2), record(users[3], 8, epoch=2),
        b"no record", barrier(SPACE, 2), release_record(first),
        *(record(user, 3, epoch=3) for user in users), barrier(SPACE, 3), release_record(second),
        retirement(SPACE, 0), *old, release_record(first),  # late, and repeated
    ]  # fmt: skip
    with closing(open_log(plain_url(kafka, topic), BUCKETS)) as log:
        log.append(BUCKET, sent)
        log.append(BUCKET, sent[len(old) :])  # a producer that was replaced repeats what it had sent
        untouched = replayed(log, tmp_path / "untouched.db")
        compact(kafka, topic, log)
        left = Counter(data for _, data in read_all(log, BUCKET) if data != FILLER)
        assert left == dict.fromkeys(sent, 1), "repeats are gone, and nothing else"
        wiped = replayed(log, tmp_path / "wiped.db")
    assert wiped == untouched
    state, digest = wiped
    assert state.release == first
    assert state.floors == {SPACE: 2}
    assert len(digest) == 64


def replayed(log: Log, path: Path) -> tuple[BucketState, str]:
    """What a store that was empty holds after reading the log to its end."""
    with closing(open_store(f"sqlite:///{path}", BUCKETS)) as store:
        worker = Worker("east", log, store)
        worker.assign([BUCKET])
        while worker.step():
            pass
        state = store.state(BUCKET)
        seen = content_digest(store, users_of(BUCKET, 4), EPOCHS)
    return BucketState(0, state.release, state.floors, state.epochs, 0), seen


def compact(kafka: Kafka, topic: str, log: Log) -> None:
    """Make the broker close the topic's segment and compact it now; returns when a repeat is gone."""
    with closing(KafkaAdminClient(bootstrap_servers=addresses(kafka))) as admin:
        admin.alter_configs([ConfigResource("BROKER", "1", {"log.cleaner.backoff.ms": "100"})])
    alter(kafka, topic, segment_ms="1", min_cleanable_dirty_ratio="0.0", max_compaction_lag_ms="1")

    def is_compacted() -> bool:
        log.append(BUCKET, [FILLER])  # the segment that is written to is never compacted
        return [data for _, data in read_all(log, BUCKET)].count(b"no record") == 1

    assert wait_until(is_compacted, COMPACTED_S, every_s=0.3)
