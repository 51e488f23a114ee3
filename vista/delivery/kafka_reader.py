"""Reading a topic at explicit offsets, fast for a worker that steps over many partitions.

One consumer is assigned all partitions; all are paused but the one that is read and those that come next in
a worker's round, so that their records arrive while the worker applies the ones before. A request never
waits at the broker for records to come: nobody reads before there are some.
"""

import threading
import time
from bisect import bisect_left
from collections import defaultdict, deque
from collections.abc import Iterable
from typing import Any

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaTimeoutError

from vista.delivery.address import Address
from vista.delivery.kafka_clients import ANSWER_S, connect
from vista.delivery.kafka_topic import TopicId

TOGETHER = 8
"""Partitions that are fetched at once."""
FETCH_BYTES = 2**20
"""Of one partition. A worker's buckets have at most twice as much in memory each: waiting, and behind it."""
REQUEST_S = 10.0
POLL_S = 0.5
SAME_TIME_S = 0.005
"""Who steps over idle partitions asks for the bounds of all of them at once, and again after this time."""
MAX_POLL_RECORDS = 100_000


class Reader:
    """The reads of one process; threads take turns."""

    def __init__(self, address: Address, access: dict[str, Any], partitions: int) -> None:
        self._lock = threading.Lock()
        self._topic_id = TopicId(address, access)
        self._consumer = connect(
            KafkaConsumer,
            address,
            auto_offset_reset="earliest",
            enable_auto_commit=False,
            fetch_max_wait_ms=1,
            fetch_max_bytes=TOGETHER * FETCH_BYTES,
            max_partition_fetch_bytes=FETCH_BYTES,
            request_timeout_ms=int(REQUEST_S * 1_000),
            allow_auto_create_topics=False,
            metrics_enabled=False,
            **access,
        )
        self._partitions = [TopicPartition(address.name, number) for number in range(partitions)]
        self._consumer.assign(self._partitions)
        for partition in self._partitions:
            self._consumer.pause(partition)
            self._consumer.seek(partition, 0)
        self._bounds: dict[int, tuple[float, int, int]] = {}  # partition -> when asked, first, end
        self._moved_s: dict[int, float] = {}
        self._next: dict[int, int] = {}  # partition -> offset from which its waiting records go on
        self._waiting: defaultdict[int, deque[tuple[int, bytes]]] = defaultdict(deque)

    def identity(self) -> str:
        """The topic's id. Raises Kafka's errors."""
        return self._topic_id.ask()

    def bounds(self, partition: int) -> tuple[int, int]:
        """First offset still held, and the next one, as of `SAME_TIME_S` ago at most, and never before what
        this process has appended or read. Raises Kafka's errors."""
        now_s = time.monotonic()
        asked_s, first, end = self._bounds.get(partition, (0.0, 0, 0))
        if asked_s > max(now_s - SAME_TIME_S, self._moved_s.get(partition, 0.0)):
            return first, end
        numbers = list(self._bounds) if partition in self._bounds else [partition]
        asked, timeout_ms = [self._partitions[number] for number in numbers], int(ANSWER_S * 1_000)
        firsts = self._consumer.beginning_offsets(asked, timeout_ms)
        ends = self._consumer.end_offsets(asked, timeout_ms)
        for source in asked:
            self._bounds[source.partition] = now_s, firsts[source], ends[source]
        return firsts[self._partitions[partition]], ends[self._partitions[partition]]

    def moved(self, partition: int) -> None:
        """The partition's end is known to be further on than it was."""
        self._moved_s[partition] = time.monotonic()

    def read(self, partition: int, offset: int, max_bytes: int) -> list[tuple[int, bytes]]:
        """From the first offset still held, if that is larger. Raises Kafka's errors."""
        with self._lock:
            if offset != self._next.get(partition):
                self._next[partition] = offset
                self._waiting[partition].clear()
                self._consumer.seek(self._partitions[partition], offset)
            waiting = self._waiting[partition]
            if not waiting:
                self._fetch(partition, self.bounds(partition)[1])
            taken = [waiting.popleft()] if waiting else []
            size = sum(len(data) for _, data in taken)
            while waiting and size + len(waiting[0][1]) <= max_bytes:
                taken.append(waiting.popleft())
                size += len(taken[-1][1])
            if taken:
                self._next[partition] = taken[-1][0] + 1
                self.moved(partition)
            return taken

    def forget(self, partitions: Iterable[int]) -> None:
        """Somebody else reads these partitions now."""
        with self._lock:
            for partition in partitions:
                for kept in (self._next, self._waiting, self._bounds):
                    kept.pop(partition, None)

    def close(self) -> None:
        self._consumer.close(autocommit=False)
        self._topic_id.close()

    def _fetch(self, partition: int, end: int) -> None:
        """Wait until records of the partition are there, or it is known that none are left before `end`."""
        deadline_s = time.monotonic() + ANSWER_S
        asked = self._partitions[partition]
        while not self._waiting[partition] and self._consumer.position(asked) < end:
            if time.monotonic() > deadline_s:
                raise KafkaTimeoutError(f"partition {partition} was not read within {ANSWER_S:.0f} s")
            together = self._together(partition)
            self._consumer.resume(*together)
            found = self._consumer.poll(POLL_S * 1_000, MAX_POLL_RECORDS)
            self._consumer.pause(*together)
            for source, records in found.items():
                # a message without a value deletes an earlier one with its key
                self._waiting[source.partition] += [
                    (record.offset, record.value) for record in records if record.value is not None
                ]

    def _together(self, partition: int) -> list[TopicPartition]:
        """The partition, and the next ones of those that are being read and have no records waiting."""
        known = sorted(self._next)
        at = bisect_left(known, partition)
        ahead = [number for number in known[at + 1 :] + known[:at] if not self._waiting[number]]
        return [self._partitions[number] for number in [partition, *ahead[: TOGETHER - 1]]]
