"""The log on Kafka beside a bare loop of kafka-python over the same bytes.

`python -m vista.delivery.bench_log` starts one broker of its own, sends and reads records of a production
size over 8 partitions, bare and ours by turns, and writes build/bench-log.json. Broker and client share the
machine's cores: ratios say more than rates, and they are judged (exit code 1).
"""

import json
import os
import platform
import statistics
import tempfile
import time
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import click
import numpy as np
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from infra.kafka import running_kafka
from vista.delivery.backfill import APPENDERS
from vista.delivery.interfaces import Log
from vista.delivery.kafka_topic import MAX_MESSAGE_BYTES
from vista.delivery.kafka_writer import BATCH_BYTES, key_of
from vista.delivery.log import open_log
from vista.delivery.worker import MAX_BATCH_BYTES
from vista.evaluate.verdicts import Verdict, judge
from vista.summary.codec import encode_summaries
from vista.summary.record import Codec

SEEDS, WIDTH = 128, 256
PARTITIONS = 8
APPEND_RECORDS = 256
OF_BARE = 0.8
REPORT = Path("build/bench-log.json")


@click.command(help=__doc__)
@click.option("--records", default=4_000, show_default=True)
@click.option("--rounds", default=3, show_default=True)
def main(records: int, rounds: int) -> None:
    sent = _records(records // PARTITIONS)
    keys = [[key_of(data) for data in row] for row in sent]
    rates: dict[str, list[float]] = {
        name: [] for name in ("produce_bare", "produce", "consume_bare", "consume")
    }
    with tempfile.TemporaryDirectory() as place, running_kafka(Path(place)) as kafka:
        (server,) = kafka.bootstrap
        for _ in range(rounds):
            topic = f"bench-{uuid.uuid4().hex}"
            with closing(open_log(f"kafka://{server}/{topic}", PARTITIONS)) as log:
                rates["produce_bare"].append(records / _produce_bare_s(server, topic, sent, keys))
                rates["produce"].append(records / _produce_s(log, sent))
                rates["consume_bare"].append(2 * records / _consume_bare_s(server, topic, 2 * records))
                rates["consume"].append(2 * records / _consume_s(log))
    per_s = {name: statistics.median(found) for name, found in rates.items()}
    report = {
        "machine": {"cores": os.cpu_count(), "python": platform.python_version()},
        "record_bytes": len(sent[0][0]),
        "records_per_s": {name: [round(rate) for rate in found] for name, found in rates.items()},
        "mb_per_s": {name: round(rate * len(sent[0][0]) / 1e6, 1) for name, rate in per_s.items()},
        "produce_of_bare": round(per_s["produce"] / per_s["produce_bare"], 3),
        "consume_of_bare": round(per_s["consume"] / per_s["consume_bare"], 3),
    }
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text(json.dumps(report, indent=2))
    click.echo(json.dumps(report, indent=2))
    judge(verdicts_of(report))


def verdicts_of(report: Mapping[str, Any]) -> list[Verdict]:
    """What the log owes to a bare loop."""
    return [
        Verdict(f"{name} / bare loop", report[f"{name}_of_bare"], OF_BARE, at_least=True)
        for name in ("produce", "consume")
    ]


def _records(per_partition: int) -> list[list[bytes]]:
    """Records of every partition; the users' buckets do not matter to a log."""
    random = np.random.default_rng(0)
    found: list[list[bytes]] = []
    for partition in range(PARTITIONS):
        users = np.arange(per_partition, dtype=np.int64) + partition * per_partition
        values = random.standard_normal((per_partition, SEEDS, WIDTH)).astype(np.float32)
        found.append(
            encode_summaries(
                values, space_id=1, epoch=1, as_of_us=1_000, user_id_B=users, seq_B=users,
                event_time_us_B=users * 0, codec=Codec.INT8, zstd=True,
            )
        )  # fmt: skip
    return found


def _produce_bare_s(server: str, topic: str, sent: list[list[bytes]], keys: list[list[bytes]]) -> float:
    producer = KafkaProducer(
        bootstrap_servers=server, acks="all", batch_size=BATCH_BYTES, max_request_size=MAX_MESSAGE_BYTES
    )
    started_s = time.perf_counter()
    for row in range(len(sent[0])):
        for partition in range(PARTITIONS):
            producer.send(topic, sent[partition][row], keys[partition][row], partition=partition)
    producer.flush()
    took_s = time.perf_counter() - started_s
    producer.close()
    return took_s


def _produce_s(log: Log, sent: list[list[bytes]]) -> float:
    """As a backfill does: some partitions at a time, each in pieces."""

    def fill(partition: int) -> None:
        for start in range(0, len(sent[partition]), APPEND_RECORDS):
            log.append(partition, sent[partition][start : start + APPEND_RECORDS])

    log.append(0, sent[0][:1])  # connects
    started_s = time.perf_counter()
    with ThreadPoolExecutor(APPENDERS) as pool:
        assert all(done is None for done in pool.map(fill, range(PARTITIONS)))
    return time.perf_counter() - started_s


def _consume_bare_s(server: str, topic: str, records: int) -> float:
    consumer = KafkaConsumer(bootstrap_servers=server, auto_offset_reset="earliest")
    consumer.assign([TopicPartition(topic, partition) for partition in range(PARTITIONS)])
    started_s = time.perf_counter()
    left = records
    while left > 0:
        left -= sum(map(len, consumer.poll(1_000).values()))
    took_s = time.perf_counter() - started_s
    consumer.close()
    return took_s


def _consume_s(log: Log) -> float:
    """As a worker does: a batch of every partition, round by round."""
    offsets = {partition: log.bounds(partition)[0] for partition in range(PARTITIONS)}
    started_s = time.perf_counter()
    while offsets:
        for partition, offset in list(offsets.items()):
            if offset == log.bounds(partition)[1]:
                del offsets[partition]
                continue
            offsets[partition] = log.read(partition, offset, MAX_BATCH_BYTES)[-1][0] + 1
    return time.perf_counter() - started_s


if __name__ == "__main__":
    main()
