"""Appending to a topic: durable, pipelined, with bounded memory.

Measured of kafka-python's producer: its buffer has no bound, and once a batch that was sent expires every
later send hangs. So bytes in flight are counted here, and a producer is thrown away with its first failure.
What it had sent may still be written: records have a total order, a repeat is harmless.
"""

import threading
import time
from collections.abc import Iterable, Sequence
from functools import partial
from hashlib import sha256
from typing import Any

from kafka import KafkaProducer
from kafka.errors import KafkaError, KafkaTimeoutError

from vista.delivery.address import Address
from vista.delivery.control import header_of
from vista.delivery.kafka_clients import connect
from vista.delivery.kafka_topic import MAX_MESSAGE_BYTES
from vista.errors import InputError

MAX_IN_FLIGHT_BYTES = 32 * 2**20
BATCH_BYTES = 2**20
"""A partition has one batch on its way at a time: long ones keep a single partition's rate up."""
OVERHEAD_BYTES = 1_024
"""Of a message: its key, and the head of a batch that holds nothing else."""
REQUEST_S = 20.0
DELIVERY_S = 300.0
"""Longer than any outage of the brokers that an append rides out."""
GRACE_S = 5.0


def key_of(data: bytes) -> bytes:
    """The key by which a topic is compacted: 32 bytes that are equal only for equal records.

    space_id, epoch, arrivals and user_id as in the header, then its crc. Compaction keeps the last record of
    a key, not the one with the larger seq: with a key of (space, epoch, user) a backfilled record behind a
    streamed one would delete the newer summary. Bytes that are no record have their SHA-256.
    """
    if header_of(data) is None:
        return sha256(data).digest()
    return data[12:40] + data[60:64]


class Writer:
    """The appends of one process to one topic."""

    def __init__(self, address: Address, access: dict[str, Any]) -> None:
        self._address, self._access = address, access
        self._lock = threading.Lock()
        self._flight: _Flight | None = None

    def append(self, partition: int, records: Sequence[bytes]) -> int:
        """The offset after the last one. Raises `InputError`, or Kafka's errors: the outcome is unknown."""
        if (longest := max(map(len, records))) > MAX_MESSAGE_BYTES - OVERHEAD_BYTES:
            raise InputError(
                f"a record has {longest} bytes, the log takes {MAX_MESSAGE_BYTES - OVERHEAD_BYTES}"
            )
        return self.send((partition, data) for data in records)[-1] + 1

    def send(self, placed: Iterable[tuple[int, bytes]]) -> list[int]:
        """The offsets of records, each with its partition, once all are durable. Raises Kafka's errors: of
        several appends through one producer all get what it failed with first, for which it is thrown away.
        """
        flight = self._current()
        try:
            sent = [flight.send(partition, data) for partition, data in placed]
            deadline_s = time.monotonic() + DELIVERY_S + GRACE_S
            return [int(one.get(max(0.0, deadline_s - time.monotonic())).offset) for one in sent]
        except KafkaError as error:
            with self._lock:
                first = flight.failure = flight.failure or error
            self._throw_away(flight)
            raise first from None

    def close(self) -> None:
        if self._flight is not None:
            self._throw_away(self._flight)

    def _current(self) -> "_Flight":
        with self._lock:
            if self._flight is None:
                self._flight = _Flight(self._address, self._access)
            return self._flight

    def _throw_away(self, flight: "_Flight") -> None:
        with self._lock:
            if self._flight is flight:
                self._flight = None
        flight.end()


class _Flight:
    """A producer, and the bytes that it has taken and no broker has acknowledged."""

    def __init__(self, address: Address, access: dict[str, Any]) -> None:
        self.failure: KafkaError | None = None
        self._topic = address.name
        self._room = threading.Condition()
        self._bytes = 0
        self._producer = connect(
            KafkaProducer,
            address,
            acks="all",
            enable_idempotence=True,
            batch_size=BATCH_BYTES,
            max_request_size=MAX_MESSAGE_BYTES,
            request_timeout_ms=int(REQUEST_S * 1_000),
            delivery_timeout_ms=int(DELIVERY_S * 1_000),
            allow_auto_create_topics=False,
            metrics_enabled=False,
            **access,
        )

    def send(self, partition: int, data: bytes) -> Any:
        """Hand on one record as soon as there is room for it."""
        key = key_of(data)
        size = len(key) + len(data)
        with self._room:
            if not self._room.wait_for(
                lambda: self._bytes + size <= MAX_IN_FLIGHT_BYTES, DELIVERY_S + GRACE_S
            ):
                raise KafkaTimeoutError(f"no room for {size} bytes within {DELIVERY_S:.0f} s")
            self._bytes += size
        return self._producer.send(self._topic, data, key, partition=partition).add_both(
            partial(self._landed, size)
        )

    def end(self) -> None:
        """Give up what is on its way."""
        # close() begins by waiting for every batch, and leaves the thread alone if one cannot be sent
        self._producer._sender.force_close()
        self._producer.close(GRACE_S)

    def _landed(self, size: int, _outcome: object) -> None:
        with self._room:
            self._bytes -= size
            self._room.notify_all()
