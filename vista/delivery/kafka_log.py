"""The log on Kafka: a topic, whose partitions are the buckets, and a consumer group per region.

A group only shares buckets out among a region's workers; where a worker goes on is in the store. What the
group commits is for displays of lag.
"""

import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from kafka import ConsumerRebalanceListener, KafkaConsumer, OffsetAndMetadata, TopicPartition
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.errors import KafkaError

from vista.delivery.address import Address
from vista.delivery.assignment import Assignment
from vista.delivery.kafka_clients import access_to, connect, mapped, parse
from vista.delivery.kafka_reader import Reader
from vista.delivery.kafka_topic import open_topic
from vista.delivery.kafka_writer import Writer
from vista.errors import InputError

SESSION_TIMEOUT_S = 6.0
"""A worker that is not heard of for so long loses its buckets to the others; brokers allow no less."""
HEARTBEAT_S = SESSION_TIMEOUT_S / 4
STALLED_S = 300.0
"""A worker that does not go on for so long loses them too."""
TURN_S = 0.5
COMMIT_S = 5.0
LEAVE_S = 5.0


class KafkaLog:
    """See `vista.delivery.interfaces.Log`. Each process has its own clients, made when first used."""

    def __init__(self, url: str, partitions: int | None) -> None:
        self._address = parse(url)
        self._access = access_to(self._address)
        self.partitions = open_topic(self._address, self._access, partitions)
        self._lock = threading.Lock()
        self._writers: dict[int, Writer] = {}
        self._readers: dict[int, Reader] = {}
        self._asked: dict[int, int] = {}  # partition -> offset of the last read: what is before is applied

    def append(self, partition: int, records: Sequence[bytes]) -> int:
        if not records:
            return self.bounds(partition)[1]
        with mapped(self._address.url):
            after = self._writer().append(self._checked(partition), records)
        if reader := self._readers.get(os.getpid()):
            reader.moved(partition)
        return after

    def broadcast(self, partitions: Iterable[int], record: bytes) -> None:
        wanted = [self._checked(partition) for partition in partitions]
        with mapped(self._address.url):
            self._writer().send((partition, record) for partition in wanted)
        if reader := self._readers.get(os.getpid()):
            for partition in wanted:
                reader.moved(partition)

    def read(self, partition: int, offset: int, max_bytes: int) -> list[tuple[int, bytes]]:
        with mapped(self._address.url):
            self._asked[self._checked(partition)] = offset
            return self._reader().read(partition, offset, max_bytes)

    def identity(self) -> str:
        with mapped(self._address.url):
            return self._reader().identity()

    def bounds(self, partition: int) -> tuple[int, int]:
        with mapped(self._address.url):
            return self._reader().bounds(self._checked(partition))

    def subscribe(
        self,
        region: str,
        on_assigned: Callable[[Iterable[int]], None],
        on_revoked: Callable[[Iterable[int]], None],
    ) -> "KafkaSubscription":
        def revoke(buckets: Iterable[int]) -> None:
            if reader := self._readers.get(os.getpid()):
                reader.forget(buckets)
            on_revoked(buckets)

        return KafkaSubscription(self._address, self._access, region, self._asked, on_assigned, revoke)

    def close(self) -> None:
        with self._lock:
            mine = [self._writers.pop(os.getpid(), None), self._readers.pop(os.getpid(), None)]
        for client in mine:
            if client is not None:
                client.close()

    def _writer(self) -> Writer:
        with self._lock:
            if os.getpid() not in self._writers:
                self._writers[os.getpid()] = Writer(self._address, self._access)
            return self._writers[os.getpid()]

    def _reader(self) -> Reader:
        with self._lock:
            if os.getpid() not in self._readers:
                self._readers[os.getpid()] = Reader(self._address, self._access, self.partitions)
            return self._readers[os.getpid()]

    def _checked(self, partition: int) -> int:
        if not 0 <= partition < self.partitions:
            raise InputError(f"partition {partition} does not exist: the log has 0 .. {self.partitions - 1}")
        return partition


class KafkaSubscription(ConsumerRebalanceListener):  # type: ignore[misc]  # Kafka's package has no types
    """A worker's membership of its region's group.

    Measured of kafka-python: a join whose answer comes between two polls is thrown away and begun again, so a
    consumer that is polled now and then never gets in. A thread polls it all the time.
    """

    def __init__(
        self,
        address: Address,
        access: dict[str, Any],
        region: str,
        applied: Mapping[int, int],
        on_assigned: Callable[[Iterable[int]], None],
        on_revoked: Callable[[Iterable[int]], None],
    ) -> None:
        self._address, self._applied = address, applied
        self._assignment = Assignment(on_assigned, on_revoked)
        self._polled_s = self._committed_s = time.monotonic()
        self._consumer = connect(
            KafkaConsumer,
            address,
            group_id=f"{address.name}.{region}",
            partition_assignment_strategy=[CooperativeStickyAssignor],
            session_timeout_ms=int(SESSION_TIMEOUT_S * 1_000),
            heartbeat_interval_ms=int(HEARTBEAT_S * 1_000),
            max_poll_interval_ms=int(STALLED_S * 1_000),
            enable_auto_commit=False,
            allow_auto_create_topics=False,
            metrics_enabled=False,
            **access,
        )
        self._consumer.subscribe([address.name], listener=self)
        self._left = threading.Event()
        self._failure: KafkaError | None = None
        self._member = threading.Thread(target=self._stay, name=f"group {region}", daemon=True)
        self._member.start()

    def poll(self) -> None:
        """Say that this worker goes on, and take what the group assigns now."""
        self._polled_s = time.monotonic()
        if not self._member.is_alive():
            raise RuntimeError("the thread that stays in the group has ended: its traceback says why")
        with mapped(self._address.url):
            if (failure := self._failure) is not None:
                raise failure
            self._assignment.change(one.partition for one in self._consumer.assignment())

    def close(self) -> None:
        self._left.set()
        self._member.join()
        with mapped(self._address.url):
            self._consumer.close(autocommit=False, timeout_ms=LEAVE_S * 1_000)
        self._assignment.change(())

    def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        """Called in the client's own thread: this consumer fetches nothing."""
        for partition in assigned:
            self._consumer.pause(partition)
            self._consumer.seek(partition, 0)

    def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        """The next `poll` tells the worker."""

    def _stay(self) -> None:
        """In a thread: be a member, for as long as the worker goes on.

        Not before the client knows the topic's partitions: of one that was just made the group would assign
        none, and might not ask again for five minutes, since the client's assignment races its metadata.
        """
        known = False
        while not self._left.is_set():
            if time.monotonic() - self._polled_s > STALLED_S:
                self._left.wait(TURN_S)
                continue
            try:
                known = known or bool(self._consumer.partitions_for_topic(self._address.name))
                if known:
                    self._consumer.poll(TURN_S * 1_000)
                else:
                    self._left.wait(TURN_S)
                self._commit()
            except KafkaError as error:
                self._failure = error  # `poll` raises it until all is well again
                self._left.wait(TURN_S)
            else:
                self._failure = None

    def _commit(self) -> None:
        if time.monotonic() - self._committed_s < COMMIT_S:
            return
        self._committed_s = time.monotonic()
        offsets = {
            TopicPartition(self._address.name, bucket): OffsetAndMetadata(self._applied[bucket], "", -1)
            for bucket in self._assignment.buckets & self._applied.keys()
        }
        if offsets:
            self._consumer.commit_async(offsets)
