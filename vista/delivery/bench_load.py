"""A region under load: `python -m vista.delivery.bench_load` prints JSON, and writes it with a picture.

A broker, a Redis and a region's worker of their own. The records of an epoch wait in the log; a bare loop of
the two clients (poll, pipelined SET) copies them twice, then the worker drains them. After that a live
producer updates the epoch's users at a fixed rate. All the time a reader asks for summaries of the epoch
before. At the end every summary of the store is looked at. What the delivery promises is judged, what is
missed too. Linux only: memory is from /proc.
"""

import json
import os
import platform
import shutil
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from infra.kafka import Kafka, running_kafka
from infra.redis import Redis, running_redis
from infra.regions import region_worker
from infra.servers import Server, running
from vista.data.schema import buckets_of
from vista.delivery.backfill import APPENDERS
from vista.delivery.bench_load_clients import (
    BUCKETS,
    LIVE_PER_S,
    PROGRESS_S,
    SERVED,
    SERVED_USERS,
    SPACE,
    WAITING,
    Records,
    beside,
    copy_bare,
    produce,
    read,
    updated_users,
)
from vista.delivery.bench_load_report import Phase, Sample, report_of
from vista.delivery.control import barrier
from vista.delivery.interfaces import Log, Store
from vista.delivery.log import open_log
from vista.delivery.store import open_store
from vista.delivery.worker import drain
from vista.errors import BackendError, InputError
from vista.summary.record import inspect, space_id

TOPIC, REGION = "bench-load", "east"
BARE_ROUNDS = 2
SAMPLE_S = 0.5
ANSWER_S = 30.0
CHUNK = 256
RECORD_BYTES = 33_000
"""At most, in the log and in Redis."""
OTHER_BYTES = 4 * 2**30
"""Memory of the broker, of the Python processes, of Redis' buffers, and some cache of the log's files."""


@click.command(help=__doc__)
@click.option("--records", default=250_000, show_default=True, help="Waiting records, one a user.")
@click.option("--live-s", default=300, show_default=True, help="Seconds with a live producer.")
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("build/bench-load.json"), show_default=True,
    help="The report; its picture lies beside it, as PNG and SVG.",
)  # fmt: skip
def main(records: int, live_s: int, out: Path) -> None:
    with TemporaryDirectory(prefix="vista-load-") as folder, ExitStack() as stack:
        place = Path(folder)
        check_room(place, records, live_s * LIVE_PER_S)
        kafka = stack.enter_context(running_kafka(place / "kafka"))
        redis = stack.enter_context(running_redis(place / "redis"))
        load = Load(place, kafka, redis, records, live_s * LIVE_PER_S)
        with load.opened():
            load.run()
    report = report_of(load.phases, load.measured)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=1) + "\n")
    from vista.delivery.bench_load_figure import save_figure  # the processes need no pictures

    save_figure(load.phases, max(report["bare_per_s"]), out)
    click.echo(json.dumps({name: value for name, value in report.items() if name != "samples"}, indent=1))
    for verdict in report["verdicts"]:
        click.echo(verdict["said"])


def check_room(place: Path, records: int, updates: int) -> None:
    """Raises `InputError` if disk or memory would not do: what is killed half-way costs other work too."""
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    free = {"memory": int(lines["MemAvailable"].split()[0]) * 1024, "disk": shutil.disk_usage(place).free}
    wanted = {
        "memory": records * RECORD_BYTES + OTHER_BYTES,
        "disk": (records + updates) * RECORD_BYTES + 2**30,
    }
    for kind, size in wanted.items():
        if free[kind] < size:
            raise InputError(
                f"{free[kind] / 1e9:.1f} GB of {kind} are free, {size / 1e9:.1f} GB are needed: make room, "
                "take fewer --records, or for the disk set TMPDIR"
            )


@dataclass
class Load:
    """One run over one log and one store; `phases` and `measured` grow as it goes."""

    place: Path
    kafka: Kafka
    redis: Redis
    records: int
    updates: int
    phases: dict[str, Phase] = field(default_factory=dict)
    measured: dict[str, Any] = field(default_factory=dict)

    @contextmanager
    def opened(self) -> Iterator[None]:
        self.log_url = f"kafka://{self.kafka.bootstrap[0]}/{TOPIC}"
        with (
            closing(open_log(self.log_url, BUCKETS)) as self.log,
            closing(open_store(self.redis.url, BUCKETS)) as self.store,
        ):
            yield

    def run(self) -> None:
        self.measured["machine"] = {
            "cores": os.cpu_count(), "load": os.getloadavg()[0], "python": platform.python_version(),
        }  # fmt: skip
        fill(self.log, SERVED_USERS, SERVED)
        drain(REGION, self.log, self.store)
        first = {bucket: self.log.bounds(bucket)[1] for bucket in range(BUCKETS)}
        fill(self.log, self.records, WAITING)
        took_s = [self._bare(number, first) for number in range(BARE_ROUNDS)]
        self.measured |= {
            "records": self.records,
            "record_bytes": len(Records().of(0, WAITING, 0)),
            "bare_per_s": [round((self.records + BUCKETS) / one) for one in took_s],
        }
        worker, address = region_worker(self.place / "worker", REGION, self._environment())
        with ExitStack() as stack:
            with self._reading("drain") as phase:
                stack.enter_context(running([worker]))
                watch = Watch(
                    worker, address, {"worker": pid_of(worker), "store": pid_of(self.redis.nodes[0].server)}
                )
                watch.until(self._is_drained, phase, "draining")
            self._live(watch)
        self.measured |= looked_at(self.store, self.records, self.updates)

    def _bare(self, number: int, first: dict[int, int]) -> float:
        arguments = self.kafka.bootstrap[0], TOPIC, first, self.records + BUCKETS, self.redis.url
        with beside(copy_bare, *arguments) as process:
            with self._reading(f"bare_{number}"):
                process.tell("go")
                took_s: float = process.result()
            assert process.result() is None
        return took_s

    def _live(self, watch: "Watch") -> None:
        with beside(produce, self.log_url, self.records, self.updates) as producer:
            watch.pids["producer"] = producer.pid
            with self._reading("live") as phase:
                producer.tell("go")
                watch.until(lambda _: producer.has_result, phase, "live")
            self.measured["sent_per_s"] = round(self.updates / producer.result(), 1)
        watch.pids.pop("producer")
        watch.until(self._is_drained, Phase(), "what still waits")

    def _is_drained(self, sample: Sample) -> bool:
        """Whether the store has all of the log; asked of it only when the worker may be done."""
        return (
            sample.written > 0
            and sample.lag == 0
            and all(
                self.store.state(bucket).offset == self.log.bounds(bucket)[1] for bucket in range(BUCKETS)
            )
        )

    @contextmanager
    def _reading(self, name: str) -> Iterator[Phase]:
        """A phase, through which a reader reads."""
        with beside(read, self.redis.url) as reader:
            phase = self.phases[name] = Phase()
            yield phase
            reader.tell("stop")
            phase.read_counts, phase.reads = reader.result()

    def _environment(self) -> dict[str, str]:
        return {
            "VISTA_HOME": str(self.place / "home"),
            "VISTA_LOG_URL": self.log_url,
            "VISTA_REGIONS": f"{REGION}={self.redis.url}",
        }


def fill(log: Log, users: int, epoch: int) -> None:
    """Append an epoch of these users as a backfill does, barriers too."""
    records, bucket_U = Records(), buckets_of(np.arange(users), BUCKETS)
    done: Counter[str] = Counter()
    told_s = [time.monotonic()]

    def append(bucket: int) -> None:
        mine = np.flatnonzero(bucket_U == bucket).tolist()
        for first in range(0, len(mine), CHUNK):
            log.append(bucket, [records.of(user, epoch, 0) for user in mine[first : first + CHUNK]])
            done["records"] += len(mine[first : first + CHUNK])
            if time.monotonic() - told_s[0] > PROGRESS_S:
                told_s[0] = time.monotonic()
                click.echo(f"filling the log: {done['records']:,} of {users:,}")
        log.append(bucket, [barrier(SPACE, epoch)])

    with ThreadPoolExecutor(APPENDERS) as pool:
        for _ in pool.map(append, range(BUCKETS)):
            pass


@dataclass
class Watch:
    """Samples what the worker says of itself, and the memory of processes by name."""

    worker: Server
    address: str
    pids: dict[str, int]

    def until(self, done: Callable[[Sample], bool], phase: Phase, what: str) -> None:
        """Add samples to the phase until one is the last. Raises `BackendError` if the worker ended."""
        told_s = time.monotonic()
        while True:
            phase.samples.append(sample := self._sample())
            if done(sample):
                return
            if time.monotonic() - told_s > PROGRESS_S:
                told_s = time.monotonic()
                click.echo(f"{what}: {sample.written:,} written, {sample.lag or 0:,.0f} behind")
            time.sleep(SAMPLE_S)

    def _sample(self) -> Sample:
        if self.worker.ended:
            raise BackendError(f"the region's worker ended: {self.worker.log.read_text()}")
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(f"http://{self.address}/metrics", timeout=ANSWER_S) as answer:
            families = text_string_to_metric_families(answer.read().decode())
        said = {
            (one.name, one.labels.get("outcome")): one.value for family in families for one in family.samples
        }
        return Sample(
            time.monotonic(),
            int(said.get(("vista_records_total", "written"), 0)),  # absent until one was written
            said.get(("vista_lag_records", None)),
            {name: resident_bytes(pid) for name, pid in self.pids.items()},
        )


def pid_of(server: Server) -> int:
    assert server.pid is not None
    return server.pid


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def looked_at(store: Store, users: int, updates: int) -> dict[str, int]:
    """How many of the users lack their newest summary, and how many have one that is not theirs."""
    newest_U = np.zeros(users, np.int64)
    np.maximum.at(newest_U, updated_users(users, updates), np.arange(1, updates + 1))
    newest, lost, mixed, told_s = newest_U.tolist(), 0, 0, time.monotonic()
    for first in range(0, users, CHUNK):
        asked = range(first, min(users, first + CHUNK))
        for user, data in zip(asked, store.get_many(SPACE, WAITING, asked), strict=True):
            if data is None:
                lost += 1
                continue
            header = inspect(data)
            mixed += (header.space_id, header.epoch, header.user_id) != (space_id(SPACE), WAITING, user)
            lost += header.seq != newest[user]
        if time.monotonic() - told_s > PROGRESS_S:
            told_s = time.monotonic()
            click.echo(f"looking at every summary: {first:,} of {users:,}")
    return {"lost": lost, "mixed": mixed}


if __name__ == "__main__":
    main()
