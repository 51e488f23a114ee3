"""What `bench_load` runs beside a region's worker, each in a process of its own: a reader, a bare loop of the
two clients, a live producer."""

import multiprocessing
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from multiprocessing.connection import Connection
from typing import Any

import click
import numpy as np
from kafka import KafkaConsumer, TopicPartition
from numpy.typing import NDArray

from vista.data.schema import bucket_of
from vista.delivery.interfaces import Release
from vista.delivery.log import open_log
from vista.delivery.reader import RegionReader
from vista.delivery.redis_nodes import Nodes
from vista.delivery.store import open_store
from vista.summary.codec import quantise
from vista.summary.record import Codec, Record, encode, space_id

SPACE, BUCKETS = "bench", 32
SEEDS, WIDTH, BODIES = 128, 256, 64
SERVED, WAITING = 1, 2
"""The epoch that is read, and the one that is delivered and then updated."""
SERVED_USERS = 1_000
READS_PER_S, LIVE_PER_S = 200, 1_000
APPENDS_PER_S = 10
"""So often the live producer sends what has come since."""
PROGRESS_S = 5.0

_SPAWN = multiprocessing.get_context("spawn")
_RELEASE = Release(id="r-bench", space=SPACE, epoch=SERVED, foundation="f", downstream="d")


class Process:
    """A function in a process of its own. Its first argument is its end of a pipe: over it the function sends
    "ready" and its results, and is told to go, or to stop; the end of this process is a message too."""

    def __init__(self, function: Callable[..., None], *arguments: object) -> None:
        self._pipe, theirs = _SPAWN.Pipe()
        self._process = _SPAWN.Process(target=function, args=(theirs, *arguments), daemon=True)
        self._process.start()
        theirs.close()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def has_result(self) -> bool:
        return self._pipe.poll()

    def result(self) -> Any:
        """The next thing that it sends. Raises `EOFError` if it failed: its own error is on stderr."""
        return self._pipe.recv()

    def tell(self, text: str) -> None:
        self._pipe.send(text)


@contextmanager
def beside(function: Callable[..., None], *arguments: object) -> Iterator[Process]:
    """The process, ready; killed at the end if it still runs."""
    process = Process(function, *arguments)
    try:
        assert process.result() == "ready"
        yield process
    finally:
        process._process.kill()
        process._process.join()


class Records:
    """Records of a production size; equal arguments give equal bytes."""

    def __init__(self) -> None:
        values_BSD = np.random.default_rng(0).standard_normal((BODIES, SEEDS, WIDTH)).astype(np.float32)
        self._payloads = [row.tobytes() for row in quantise(values_BSD, Codec.INT8)]

    def of(self, user: int, epoch: int, seq: int) -> bytes:
        return encode(
            Record(
                space_id=space_id(SPACE), epoch=epoch, user_id=user, seq=seq, event_time_us=seq,
                as_of_us=1_000 * epoch, codec=Codec.INT8, seeds=SEEDS, width=WIDTH, zstd=True,
                payload=self._payloads[(user + seq) % BODIES],
            )
        )  # fmt: skip


def updated_users(users: int, updates: int) -> NDArray[np.int64]:
    """[updates] whom each update of the live producer is of; its seq is its number, from 1 on."""
    return np.random.default_rng(1).integers(0, users, updates)


def read(pipe: Connection, store_url: str) -> None:
    """Until told to stop, read one user at a time at a fixed rate, late or not. Sends the reader's counts,
    and [reads, 3] when each read was due, began and ended."""
    choice, times_s = random.Random(2), []
    with (
        closing(open_store(store_url, BUCKETS)) as store,
        closing(RegionReader({"east": store}, _RELEASE, BUCKETS)) as reader,
    ):
        reader.read([0])
        reader.counts.clear()
        pipe.send("ready")
        due_s = time.monotonic()
        while not pipe.poll():
            due_s += 1 / READS_PER_S
            time.sleep(max(0.0, due_s - time.monotonic()))
            began_s = time.monotonic()
            reader.read([choice.randrange(SERVED_USERS)])
            times_s.append((due_s, began_s, time.monotonic()))
    pipe.send((dict(reader.counts), np.array(times_s)))


def copy_bare(
    pipe: Connection, server: str, topic: str, offsets: Mapping[int, int], records: int, store_url: str
) -> None:
    """Poll the topic's records from these offsets on, and SET them in a pipeline. Sends the seconds; then
    None, when the keys are deleted."""
    consumer = KafkaConsumer(bootstrap_servers=server)
    places = {partition: TopicPartition(topic, partition) for partition in offsets}
    consumer.assign(list(places.values()))
    for partition, offset in offsets.items():
        consumer.seek(places[partition], offset)
    node, copied = Nodes(store_url).primary("s:bare"), 0
    node.ping()
    pipe.send("ready")
    pipe.recv()
    started_s = told_s = time.monotonic()
    while copied < records:
        pipeline = node.pipeline(transaction=False)
        for polled in consumer.poll(1_000).values():
            for record in polled:
                pipeline.set(f"s:bare:{copied}", record.value)
                copied += 1
        pipeline.execute()
        if time.monotonic() - told_s > PROGRESS_S:
            told_s = time.monotonic()
            click.echo(f"bare loop: {copied:,} of {records:,}, {copied / (told_s - started_s):,.0f}/s")
    pipe.send(time.monotonic() - started_s)
    consumer.close(autocommit=False)
    for first in range(0, copied, 1_000):
        node.unlink(*(f"s:bare:{number}" for number in range(first, min(copied, first + 1_000))))
    pipe.send(None)


def produce(pipe: Connection, log_url: str, users: int, updates: int) -> None:
    """Append updates of the users at a fixed rate, or as fast as the log takes them. Sends the seconds."""
    records, together = Records(), LIVE_PER_S // APPENDS_PER_S
    updated = updated_users(users, updates).tolist()
    with closing(open_log(log_url)) as log, ThreadPoolExecutor(BUCKETS) as pool:
        pipe.send("ready")
        pipe.recv()
        started_s = time.monotonic()
        for first in range(0, updates, together):
            time.sleep(max(0.0, started_s + first / LIVE_PER_S - time.monotonic()))
            waiting: defaultdict[int, list[bytes]] = defaultdict(list)
            for seq, user in enumerate(updated[first : first + together], start=first + 1):
                waiting[bucket_of(user, BUCKETS)].append(records.of(user, WAITING, seq))
            assert all(pool.map(log.append, waiting.keys(), waiting.values()))
        pipe.send(time.monotonic() - started_s)
