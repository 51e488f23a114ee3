"""Deployments under test, over whichever back ends, and the regions' workers as real processes."""

import json
import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from delivery_samples import BUCKETS, SPACES, record, settings_of
from kafka_topics import plain_url
from prometheus_client.parser import text_string_to_metric_families

from vista.config import Settings
from vista.data.schema import bucket_of
from vista.delivery.interfaces import Log

if TYPE_CHECKING:
    from infra.hive import Metastore
    from infra.kafka import Kafka
    from infra.redis import Redis

ROOT = Path(__file__).parents[2]
PATIENCE_S = 120.0
"""Until a condition must hold on a machine that does other work."""


@dataclass(frozen=True)
class Deployment:
    """Back ends and what only a test does to them. `cut_off(region)` keeps a region's store from its worker
    as long as the context lasts; `new_log(name)` is the URL of a log that nobody has written to."""

    settings: Settings
    cut_off: Callable[[str], AbstractContextManager[None]]
    new_log: Callable[[str], str]

    @property
    def environment(self) -> dict[str, str]:
        regions = ",".join(f"{name}={url}" for name, url in self.settings.region_urls.items())
        return {
            "VISTA_HOME": str(self.settings.home), "VISTA_RUNS": str(self.settings.runs),
            "VISTA_CATALOG_URL": self.settings.catalog_url, "VISTA_LOG_URL": self.settings.log_url,
            "VISTA_REGIONS": regions, "VISTA_WAREHOUSE": self.settings.warehouse,
        }  # fmt: skip


def embedded(home: Path) -> Deployment:
    """Three regions in SQLite files."""
    settings = settings_of(home, ("east", "west", "south"))

    @contextmanager
    def cut_off(region: str) -> Iterator[None]:
        path = settings.region_urls[region].removeprefix("sqlite:///")
        with closing(sqlite3.connect(path, timeout=PATIENCE_S, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")  # from here on nobody else can write
            yield

    return Deployment(settings, cut_off, lambda name: f"sqlite:///{home}/{name}.db")


def on_servers(
    home: Path, metastore: "Metastore", kafka: "Kafka", regions: Mapping[str, "Redis"]
) -> Deployment:
    """A database of its own in Hive, a topic of its own, and a Redis per region, which is emptied."""
    for redis in regions.values():
        redis.wipe()

    def new_log(name: str) -> str:
        return plain_url(kafka, f"{name}-{uuid.uuid4().hex}")

    @contextmanager
    def cut_off(region: str) -> Iterator[None]:
        pid = regions[region].nodes[0].server.pid
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    settings = settings_of(home).model_copy(
        update={
            "catalog_url": f"hive://127.0.0.1:{metastore.port}/regions_{uuid.uuid4().hex[:12]}",
            "log_url": new_log("log"),
            "region_urls": {name: redis.url for name, redis in regions.items()},
        }
    )
    return Deployment(settings, cut_off, new_log)


def until(condition: Callable[[], object], what: str, seconds: float = PATIENCE_S) -> float:
    """Wait for a condition; the seconds that it took. Fails after `seconds`."""
    started_s = time.monotonic()
    while not condition():
        assert time.monotonic() - started_s < seconds, f"not within {seconds:g} s: {what}"
        time.sleep(0.02)
    return time.monotonic() - started_s


@dataclass
class RegionProcess:
    """`python -m vista deliver --region R`, and what it says of itself."""

    process: "subprocess.Popen[str]"
    port: int

    def health(self) -> dict[str, Any]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/healthz", timeout=30) as answer:
                status, text = answer.status, answer.read()
        except urllib.error.HTTPError as refusal:
            status, text = refusal.code, refusal.read()
        found: dict[str, Any] = json.loads(text)
        assert status == (200 if found["ready"] else 503)
        assert found["ready"] == (not found["reasons"])
        return found

    def metric(self, name: str, **labels: str) -> float:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=30) as answer:
            text = answer.read().decode()
        samples = (one for family in text_string_to_metric_families(text) for one in family.samples)
        (value,) = (one.value for one in samples if one.name == name and labels.items() <= one.labels.items())
        return float(value)

    def stop(self) -> str:
        """SIGTERM; what it printed. It must end well."""
        self.process.send_signal(signal.SIGTERM)
        printed, _ = self.process.communicate(timeout=PATIENCE_S)
        assert self.process.returncode == 0
        return printed


@contextmanager
def region_process(deployment: Deployment, region: str, logs: Path) -> Iterator[RegionProcess]:
    """A worker of a region; killed at the end if it still runs."""
    path = logs / f"{region}-{time.monotonic_ns()}.log"
    command = [sys.executable, "-m", "vista", "deliver", "--region", region]
    with path.open("w") as errors:
        process = subprocess.Popen(
            command, cwd=ROOT, env=deployment.environment, text=True, stdout=subprocess.PIPE, stderr=errors
        )
    says = re.compile("follows|waits for a first delivery")
    try:
        until(lambda: process.poll() is not None or says.search(path.read_text()), "the worker's beginning")
        found = re.search(r"http://127\.0\.0\.1:(\d+) has /healthz", path.read_text())
        assert found, path.read_text()
        yield RegionProcess(process, int(found[1]))
    finally:
        process.kill()
        process.communicate()


@dataclass
class Stream:
    """Streamed updates of some users under some epochs, from a thread: each user's seq only grows. A test
    whose stream dies fails."""

    log: Log
    users: int
    epochs: tuple[int, ...]
    pause_s: float
    sent: int = 0
    newest: dict[tuple[int, int], bytes] = field(default_factory=dict)
    _stop: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def running(self) -> Iterator["Stream"]:
        with ThreadPoolExecutor(1) as pool:
            sending = pool.submit(self._send)
            try:
                yield self
            finally:
                self._stop.set()
            sending.result()

    def _send(self) -> None:
        choice = random.Random(7)
        while not self._stop.wait(self.pause_s):
            user = choice.randrange(self.users)
            for epoch in self.epochs:
                data = update(user, 1_000 + self.sent, epoch)
                self.log.append(bucket_of(user, BUCKETS), [data])
                self.newest[epoch, user] = data
            self.sent += 1


def update(user: int, seq: int, epoch: int) -> bytes:
    """A streamed record: reproducible, so that a reader can tell whether it got these bytes."""
    return record(user, seq, space=SPACES[0], epoch=epoch, as_of_us=1_000_000 + seq, variant=epoch)
