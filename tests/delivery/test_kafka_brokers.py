"""Brokers that die or fall silent under load: nothing that was acknowledged is lost, memory is bounded."""

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from kafka_topics import alter, leader, new_topic, plain_url, read_all
from must_hold import Found
from refusals import refused

from infra.kafka import Kafka, metadata, running_kafka
from infra.processes import wait_until
from vista.delivery import kafka_writer
from vista.delivery.interfaces import Log
from vista.delivery.kafka_writer import MAX_IN_FLIGHT_BYTES
from vista.delivery.log import open_log
from vista.errors import BackendError

PARTITIONS = 4
RECORD_BYTES = 8_192
BATCH = 50
WAIT_S = 240.0


@pytest.fixture
def three_brokers(servers_place: Path) -> Iterator[Kafka]:
    with running_kafka(servers_place / "kafka-three", 3) as kafka:
        yield kafka


@pytest.mark.must_hold(5)
def test_no_acknowledged_record_is_lost_with_a_leader(
    three_brokers: Kafka, found: Found, full_size: bool
) -> None:
    """Must hold 5: three brokers, replication 3, min in-sync 2; kill -9 of a leader under load."""
    records, topic = (20_000 if full_size else 2_000), new_topic()
    with closing(open_log(plain_url(three_brokers, topic), PARTITIONS)) as log:
        load = Load(log, records // PARTITIONS)
        with ThreadPoolExecutor(PARTITIONS) as pool:
            running = [pool.submit(load.run, partition) for partition in range(PARTITIONS)]
            assert wait_until(lambda: load.acknowledged > records // 3 or any_failed(running), WAIT_S)
            three_brokers.brokers[leader(three_brokers, topic, 0) - 1].server.kill()
            killed_at = load.acknowledged
            for one in running:
                one.result(WAIT_S)
        assert killed_at < records, "the load went on behind the kill"
        for partition in range(PARTITIONS):
            check(log, partition, load.sent[partition], found)
    found.rounds = 1
    assert (found.lost, found.duplicated, found.mixed) == (0, 0, 0)


def test_a_topic_that_takes_records_of_one_copy_is_refused(three_brokers: Kafka) -> None:
    """A single broker, which the other settings are tried on, allows no other value."""
    topic = new_topic()
    open_log(plain_url(three_brokers, topic), 2).close()
    alter(three_brokers, topic, min_insync_replicas="1")
    with refused(f"topic {topic} has min.insync.replicas 1, wanted is 2: change the topic"):
        open_log(plain_url(three_brokers, topic), 2)


@pytest.mark.must_hold(11)
def test_a_silent_broker_bounds_the_producers_memory(kafka: Kafka, found: Found, full_size: bool) -> None:
    """Must hold 11: the broker is stopped (SIGSTOP) at full rate: memory <= cap + 64 MB, nothing lost."""
    stopped_s = 30.0 if full_size else 8.0
    records = [b"%8d" % number + os.urandom(32_768) for number in range(1_000)]
    times = 20 if full_size else 8
    with closing(open_log(plain_url(kafka, new_topic()), 1)) as log, ThreadPoolExecutor(1) as pool:
        log.append(0, records[:100])
        broker = kafka.brokers[0].server.pid
        running = pool.submit(log.append, 0, records * times)
        assert wait_until(lambda: log.bounds(0)[1] > 600 or running.done(), WAIT_S, every_s=0.01)
        os.kill(broker, signal.SIGSTOP)
        try:
            before, most, until_s = resident_bytes(), 0, time.monotonic() + stopped_s
            while time.monotonic() < until_s:
                most = max(most, resident_bytes())
                time.sleep(0.1)
            assert not running.done()
        finally:
            os.kill(broker, signal.SIGCONT)
        assert running.result(WAIT_S) == 100 + times * len(records)
        check(log, 0, records[:100] + records * times, found)
    found.rounds = 1
    assert most - before <= MAX_IN_FLIGHT_BYTES + 64 * 2**20
    assert (found.lost, found.duplicated, found.mixed) == (0, 0, 0)


def test_a_producer_that_expired_is_replaced(kafka: Kafka, monkeypatch: pytest.MonkeyPatch) -> None:
    """kafka-python's own producer would hang for ever with every later send."""
    monkeypatch.setattr(kafka_writer, "REQUEST_S", 1.0)
    monkeypatch.setattr(kafka_writer, "DELIVERY_S", 3.0)
    with closing(open_log(plain_url(kafka, new_topic()), 2)) as log:
        assert log.append(0, [b"a"]) == 1
        broker = kafka.brokers[0].server.pid
        os.kill(broker, signal.SIGSTOP)
        try:
            started_s = time.monotonic()
            with pytest.raises(BackendError, match="the brokers do not answer"):
                log.append(0, [b"b"])
            assert time.monotonic() - started_s < 3.0 + 3 * kafka_writer.GRACE_S
        finally:
            os.kill(broker, signal.SIGCONT)
        assert wait_until(lambda: metadata(kafka.brokers[0].port) is not None, WAIT_S)
        monkeypatch.undo()
        log.append(0, [b"b", b"c"])
        log.append(1, [b"d"])
        values = [data for _, data in read_all(log, 0)]
        assert values[0] == b"a"
        assert values[-2:] == [b"b", b"c"]
        assert values[1:-2] in ([], [b"b"]), "the outcome of the append that failed is unknown"


class Load:
    """Appends to all partitions, a batch at a time, and remembers what was sent."""

    def __init__(self, log: Log, records: int) -> None:
        self.log, self.records = log, records
        self.sent: dict[int, list[bytes]] = {partition: [] for partition in range(PARTITIONS)}
        self._acknowledged = [0] * PARTITIONS

    @property
    def acknowledged(self) -> int:
        return sum(self._acknowledged)

    def run(self, partition: int) -> None:
        filler = os.urandom(RECORD_BYTES)
        while len(self.sent[partition]) < self.records:
            first = len(self.sent[partition])
            batch = [b"%d/%d:" % (partition, first + index) + filler for index in range(BATCH)]
            self.sent[partition] += batch
            assert self.log.append(partition, batch) == len(self.sent[partition])
            self._acknowledged[partition] += BATCH


def any_failed(running: list["Future[None]"]) -> bool:
    return any(one.done() for one in running)


def check(log: Log, partition: int, sent: list[bytes], found: Found) -> None:
    """Count what differs from what was sent, in this order."""
    held = [data for _, data in read_all(log, partition)]
    found.add(
        lost=max(len(set(sent) - set(held)), len(sent) - len(held)),
        duplicated=max(0, len(held) - len(sent)),
        mixed=sum(one != other for one, other in zip(held, sent, strict=False)),
    )


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
