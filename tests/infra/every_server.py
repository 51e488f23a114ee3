"""Every kind of server by name, started in this process, or as a launcher that a test can kill.

`python every_server.py NAME PLACE` starts one, prints the ids of its processes as JSON, and stays.
"""

import json
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from infra.hive import running_hiveserver, running_metastore
from infra.kafka import running_kafka
from infra.postgres import running_postgres
from infra.redis import running_cluster, running_redis, running_sentinel
from infra.s3 import running_s3
from infra.servers import Server
from infra.tls import make_certificates


@contextmanager
def postgres(place: Path) -> Iterator[Sequence[Server]]:
    with running_postgres(place / "postgres") as running:
        yield [running.server]


@contextmanager
def redis(place: Path) -> Iterator[Sequence[Server]]:
    with running_redis(place / "redis") as running:
        yield [running.nodes[0].server]


@contextmanager
def redis_over_tls(place: Path) -> Iterator[Sequence[Server]]:
    with running_redis(place / "redis", make_certificates(place / "tls")) as running:
        yield [running.nodes[0].server]


@contextmanager
def sentinel(place: Path) -> Iterator[Sequence[Server]]:
    with running_sentinel(place / "redis") as running:
        yield [node.server for node in (*running.nodes, *running.sentinels)]


@contextmanager
def cluster(place: Path) -> Iterator[Sequence[Server]]:
    with running_cluster(place / "redis") as running:
        yield [node.server for node in running.nodes]


@contextmanager
def kafka(place: Path) -> Iterator[Sequence[Server]]:
    with running_kafka(place / "kafka") as running:
        yield [running.brokers[0].server]


@contextmanager
def three_brokers_over_tls(place: Path) -> Iterator[Sequence[Server]]:
    with running_kafka(place / "kafka", 3, make_certificates(place / "tls")) as running:
        yield [broker.server for broker in running.brokers]


@contextmanager
def s3(place: Path) -> Iterator[Sequence[Server]]:
    with running_s3(place / "s3") as running:
        yield [running.server]


@contextmanager
def hive(place: Path) -> Iterator[Sequence[Server]]:
    with (
        running_postgres(place / "postgres") as database,
        running_metastore(place / "metastore", database) as metastore,
        running_hiveserver(place / "hiveserver", metastore) as hiveserver,
    ):
        yield [database.server, metastore.server, hiveserver.server]


STARTED: dict[str, Callable[[Path], AbstractContextManager[Sequence[Server]]]] = {
    start.__name__: start
    for start in (postgres, redis, redis_over_tls, sentinel, cluster, kafka, three_brokers_over_tls, s3, hive)
}

if __name__ == "__main__":
    with STARTED[sys.argv[1]](Path(sys.argv[2])) as servers:
        sys.stdout.write(json.dumps([server.pid for server in servers]) + "\n")
        sys.stdout.flush()
        signal.pause()
