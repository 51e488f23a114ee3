"""Reading a topic: what retention deleted, many partitions at once, what a group's display shows, forks."""

import multiprocessing
import os
from contextlib import closing

import pytest
from kafka import KafkaAdminClient, KafkaProducer, TopicPartition
from kafka_topics import addresses, new_topic, plain_url, read_all

from infra.kafka import Kafka
from infra.processes import wait_until
from vista.delivery import kafka_log
from vista.delivery.log import open_log

WAIT_S = 120.0
MB = 2**20


def test_what_retention_deleted_is_told_by_the_bounds(kafka: Kafka) -> None:
    topic = new_topic()
    with closing(open_log(plain_url(kafka, topic), 2)) as log:
        log.append(1, [b"a", b"b", b"c", b"d"])
        assert log.read(1, 0, 1) == [(0, b"a")]
        with closing(KafkaAdminClient(bootstrap_servers=addresses(kafka))) as admin:
            admin.delete_records({TopicPartition(topic, 1): 3})
        assert wait_until(lambda: log.bounds(1) == (3, 4), WAIT_S)
        assert log.read(1, 0, 10) == [(3, b"d")]
        assert log.read(1, 3, 10) == [(3, b"d")]
        assert log.bounds(0) == (0, 0)


def test_a_message_without_a_value_is_passed_over(kafka: Kafka) -> None:
    topic = new_topic()
    with closing(open_log(plain_url(kafka, topic), 1)) as log:
        log.append(0, [b"a"])
        with closing(KafkaProducer(bootstrap_servers=addresses(kafka))) as producer:
            producer.send(topic, None, b"some key", partition=0).get(WAIT_S)
        assert log.read(0, 1, 10) == [], "nothing is left before the end"
        assert log.bounds(0) == (0, 2)
        log.append(0, [b"b"])
        assert log.read(0, 0, 10) == [(0, b"a"), (2, b"b")]


def test_a_worker_that_steps_over_many_partitions_keeps_little_in_memory(kafka: Kafka) -> None:
    """Each partition has 6 MB to give; a reader that takes a little of each may hold 2 of them at most."""
    partitions, records = 32, [b"%2d" % number + os.urandom(MB // 16) for number in range(96)]
    with closing(open_log(plain_url(kafka, new_topic()), partitions)) as log:
        for partition in range(partitions):
            log.append(partition, records)
        before = resident_bytes()
        offsets = dict.fromkeys(range(partitions), 0)
        for _ in range(3):
            for partition, offset in offsets.items():
                found = log.read(partition, offset, MB // 4)
                assert [data for _, data in found] == records[offset : offset + len(found)]
                offsets[partition] += len(found)
        # 64 MB, and what the allocator and the client's buffers add
        assert resident_bytes() - before < partitions * 2 * MB + 64 * MB
        assert [data for _, data in read_all(log, 7)] == records


def test_a_group_shows_from_where_its_worker_read_last(kafka: Kafka, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka_log, "COMMIT_S", 0.1)
    topic, assigned = new_topic(), set[int]()
    with (
        closing(open_log(plain_url(kafka, topic), 2)) as log,
        closing(KafkaAdminClient(bootstrap_servers=addresses(kafka))) as admin,
    ):
        log.append(1, [b"a", b"b", b"c"])
        with closing(log.subscribe("east", assigned.update, assigned.difference_update)) as subscription:

            def is_in() -> bool:
                subscription.poll()
                return assigned == {0, 1}

            def shown() -> dict[int, int]:
                found = admin.list_group_offsets({f"{topic}.east": None})[f"{topic}.east"]
                return {source.partition: kept.offset for source, kept in found.items()}

            assert wait_until(is_in, WAIT_S)
            assert shown() == {}
            log.read(1, 2, 10)
            assert wait_until(lambda: shown() == {1: 2}, WAIT_S)
        assert assigned == set()


def test_a_process_that_was_forked_connects_itself(kafka: Kafka) -> None:
    fork = multiprocessing.get_context("fork")
    with closing(open_log(plain_url(kafka, new_topic()), 1)) as log:
        assert log.append(0, [b"parent"]) == 1
        assert log.read(0, 0, 10) == [(0, b"parent")]

        def append_and_read() -> None:
            end = log.append(0, [b"child"])
            assert log.read(0, end - 1, 10) == [(end - 1, b"child")]

        child = fork.Process(target=append_and_read)
        child.start()
        child.join(WAIT_S)
        assert child.exitcode == 0
        assert log.append(0, [b"parent again"]) == 3
        assert [data for _, data in read_all(log, 0)] == [b"parent", b"child", b"parent again"]


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
