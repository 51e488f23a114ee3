"""Appends of several threads through one producer."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from kafka.errors import IllegalStateError, KafkaError, NotEnoughReplicasError
from kafka.producer.future import FutureProduceResult, FutureRecordMetadata
from kafka.structs import TopicPartition

from infra.processes import wait_until
from vista.delivery import kafka_writer
from vista.delivery.kafka_clients import parse
from vista.delivery.kafka_writer import Writer


class Producer:
    """Stands in for kafka-python's: partition 1 has too few copies, partition 0 takes its time."""

    def __init__(self) -> None:
        self._sender, self._closed = self, False
        self.waiting: list[FutureProduceResult] = []

    def send(self, topic: str, data: bytes, key: bytes, partition: int) -> FutureRecordMetadata:
        if self._closed:
            raise IllegalStateError("KafkaProducer already closed!")
        result = FutureProduceResult(TopicPartition(topic, partition))
        if partition:
            result.failure(NotEnoughReplicasError())
        else:
            self.waiting.append(result)
        return FutureRecordMetadata(result, 0, None, None, len(key), len(data), -1)

    def force_close(self) -> None:
        self._closed = True

    def close(self, timeout_s: float) -> None:
        for result in self.waiting:
            result.failure(IllegalStateError("Producer is closed forcefully."))


def test_all_are_told_why_their_producer_was_thrown_away(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Producer] = []

    def connect(*_: Any, **__: Any) -> Producer:
        made.append(Producer())
        return made[-1]

    monkeypatch.setattr(kafka_writer, "connect", connect)
    writer = Writer(parse("kafka://localhost:9092/log"), {})
    late = writer._current()
    with ThreadPoolExecutor(1) as pool:
        waits = pool.submit(writer.append, 0, [b"a"])
        assert wait_until(lambda: bool(made[0].waiting), 60.0)
        failures: list[KafkaError] = []
        for append in (lambda: writer.append(1, [b"b"]), lambda: waits.result(60.0)):
            with pytest.raises(KafkaError) as failed:
                append()
            failures.append(failed.value)
    monkeypatch.setattr(writer, "_current", lambda: late)
    with pytest.raises(KafkaError) as failed:  # it had the producer in its hand
        writer.append(0, [b"c"])
    assert [type(one) for one in [*failures, failed.value]] == [NotEnoughReplicasError] * 3
