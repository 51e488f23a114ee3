"""How a region's worker is: ready or not, and why, as JSON on /healthz, and in figures on /metrics."""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from wsgiref.simple_server import WSGIRequestHandler, make_server
from wsgiref.types import StartResponse, WSGIEnvironment

from prometheus_client import CollectorRegistry, Histogram, make_wsgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import ThreadingWSGIServer
from prometheus_client.registry import Collector

from vista.config import Frozen
from vista.delivery.catalog import open_catalog
from vista.delivery.epochs import known_epoch
from vista.delivery.interfaces import BucketState, Log, Release, ReleaseCatalog
from vista.delivery.lag import Ends, Lag
from vista.delivery.readiness import manifests
from vista.delivery.region_worker import RegionWorker
from vista.errors import BackendError, InputError, VistaError
from vista.summary.record import space_id
from vista.summary.table import Shard

log = logging.getLogger(__name__)

HOST = "127.0.0.1"
SAMPLE_S = 0.5
RETRY_S = 30.0
"""After so long the catalog and the table are asked again."""
MAX_LAG_S = 30.0
"""A region further behind than this is not ready."""
SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


class RegionHealth(Frozen):
    """One worker's buckets of a region; None for what is not known yet. Coverage and ages are those of the
    release that has reached the region; that of the epoch counts from its first promotion."""

    region: str
    ready: bool
    waiting: bool = False  # it does not follow a log: it starts, or there is none before a first delivery
    reasons: tuple[str, ...]
    buckets: int = 0
    buckets_needing_backfill: int = 0
    buckets_failing: int = 0
    lag_records: int | None = None
    lag_s: float | None = None
    release: str | None = None
    coverage: float | None = None
    oldest_summary_age_s: float | None = None
    epoch_age_s: float | None = None
    free_bytes: int | None = None
    dead_letters: int | None = None


class Timings:
    """The histograms that a worker fills."""

    def __init__(self, registry: CollectorRegistry, region: str) -> None:
        def histogram(name: str, what: str) -> Histogram:
            family = Histogram(name, what, ["region"], buckets=SECONDS, registry=registry)
            return family.labels(region)

        self.apply_seconds = histogram("vista_apply_seconds", "one batch into the store")
        self.read_seconds = histogram("vista_read_seconds", "one summary from the store, behind a batch")


class Monitor(Collector):
    """Samples the log's ends beside the worker, so that a store that hangs does not hide the lag. Its log is
    opened for it alone: it waits for no read of the worker's."""

    def __init__(self, worker: RegionWorker, source: Log, catalog_url: str) -> None:
        self._worker, self._source, self._catalog_url = worker, source, catalog_url
        self._lag, self._sample_fault = Lag(), ""
        self._shards: tuple[Shard, ...] = ()
        self._shards_of: tuple[str, int] | None = None
        self._promoted_us: int | None = None
        self._retry_s = 0.0
        self._is_released: bool | None = None  # the deployment has a release; None: not known yet
        self._ask_s = 0.0

    def watch(self, stop: threading.Event) -> None:
        """Sample until `stop` is set."""
        while True:
            try:
                ends = {bucket: self._source.bounds(bucket)[1] for bucket in self._worker.assigned}
                self._lag.sample(Ends(time.monotonic(), ends), self._worker.offsets())
                self._sample_fault = ""
            except BackendError as error:
                self._sample_fault = str(error)
            if stop.wait(SAMPLE_S):
                return

    def follow_release(self, stop: threading.Event) -> None:
        """Learn of what the release promises until `stop` is set. In a thread of its own, since it may hang
        with the catalog or with the table's files: coverage is then not known, but the lag is."""
        while not stop.wait(SAMPLE_S):
            self._find_whether_released()
            self._find_epoch()

    def health(self) -> RegionHealth:
        worker = self._worker
        states, offsets, faults, letters = worker.states, worker.offsets(), worker.faults, worker.dead_letters
        release = next((state.release for state in states.values() if state.release is not None), None)
        lag_s = self._lag.seconds(offsets, time.monotonic())
        needing = sum(fault.needs_backfill for fault in faults.values())
        reasons = tuple(self._reasons(lag_s))
        return RegionHealth(
            region=worker.region,
            ready=not reasons,
            reasons=reasons,
            buckets=len(worker.assigned),
            buckets_needing_backfill=needing,
            buckets_failing=len(faults) - needing,
            lag_records=self._lag.records(offsets),
            lag_s=lag_s,
            release=None if release is None else release.id,
            coverage=None if release is None else self._coverage(release, states),
            oldest_summary_age_s=None if release is None else _age_s(release, states.values()),
            epoch_age_s=None if release is None else self._epoch_age_s(release),
            free_bytes=min((state.free_bytes for state in states.values()), default=None),
            dead_letters=sum(letters.values()) if letters else None,
        )

    def collect(self) -> Iterable[Metric]:
        """The figures of `health`, and what became of the log's records."""
        health, report = self.health(), self._worker.report
        for name, what, value in (
            ("vista_ready", "1 if the region is ready", float(health.ready)),
            ("vista_buckets", "buckets of this worker", health.buckets),
            ("vista_buckets_needing_backfill", "buckets that need a repair", health.buckets_needing_backfill),
            ("vista_buckets_failing", "buckets whose back end fails", health.buckets_failing),
            ("vista_held_back", "1 while the store is spared", float(bool(self._worker.held_back))),
            ("vista_lag_records", "records of the log not applied yet", health.lag_records),
            ("vista_lag_seconds", "for so long at most something has been missing", health.lag_s),
            ("vista_coverage", "share of the release's users that are held", health.coverage),
            ("vista_oldest_summary_age_seconds", "age of the oldest summary", health.oldest_summary_age_s),
            ("vista_epoch_age_seconds", "since the epoch was first promoted", health.epoch_age_s),
            ("vista_free_bytes", "that the store can still take", health.free_bytes),
            ("vista_dead_letters", "records that the store keeps and cannot apply", health.dead_letters),
        ):
            gauge = GaugeMetricFamily(name, what, labels=["region"])
            if value is not None:
                gauge.add_metric([health.region], value)
            yield gauge
        refused = CounterMetricFamily("vista_refused_batches", "refused by the fence", labels=["region"])
        refused.add_metric([health.region], report.refused)
        records = CounterMetricFamily("vista_records", "by what became of them", labels=["region", "outcome"])
        for outcome in ("written", "older", "conflicts", "retired", "dead_letters"):
            records.add_metric([health.region, outcome], getattr(report, outcome))
        yield from (refused, records)

    def _reasons(self, lag_s: float | None) -> Iterator[str]:
        worker = self._worker
        if not worker.assigned:
            yield "no bucket is assigned to this worker"
        for needs_backfill in (True, False):
            found = [fault for fault in worker.faults.values() if fault.needs_backfill == needs_backfill]
            if found:
                yield f"{found[0].reason} ({len(found)} of {len(worker.assigned)} buckets stand still)"
        yield from filter(None, (worker.log_fault or self._sample_fault, worker.held_back))
        if lag_s is None or lag_s > MAX_LAG_S:
            known = "not known yet" if lag_s is None else f"{lag_s:.0f} s, {MAX_LAG_S:g} s are allowed"
            yield f"the lag is {known}"
        incomplete = [bucket for bucket, state in sorted(worker.states.items()) if not _complete(state)]
        if incomplete:
            yield f"{len(incomplete)} buckets lack the barrier of their release's epoch: {incomplete[:5]}"
        yield from self._serves_nothing()

    def _serves_nothing(self) -> Iterator[str]:
        """A deployment without a release has nothing to serve, and is ready for it."""
        worker, states = self._worker, self._worker.states
        lacking = [
            bucket
            for bucket in sorted(worker.assigned - worker.faults.keys())
            if bucket not in states or states[bucket].release is None
        ]
        if lacking and self._is_released is None:
            yield "whether there is a release is not known yet"
        elif lacking and self._is_released:
            yield (
                f"{len(lacking)} of {len(worker.assigned)} buckets have not passed a release yet: "
                f"{lacking[:5]}"
            )

    def _coverage(self, release: Release, states: dict[int, BucketState]) -> float | None:
        if self._shards_of != (release.space, release.epoch):
            return None
        key = space_id(release.space), release.epoch
        mine = [shard for shard in self._shards if shard.bucket in self._worker.assigned]
        held = sum(
            min(shard.rows, states[shard.bucket].epochs[key].users)
            for shard in mine
            if shard.bucket in states and key in states[shard.bucket].epochs
        )
        total = sum(shard.rows for shard in mine)
        return held / total if total else 1.0

    def _epoch_age_s(self, release: Release) -> float | None:
        if self._shards_of != (release.space, release.epoch) or self._promoted_us is None:
            return None
        return time.time() - self._promoted_us / 1e6

    def _find_whether_released(self) -> None:
        """Ask the catalog until it has a release, which is for ever."""
        if self._is_released or time.monotonic() < self._ask_s:
            return
        self._ask_s = time.monotonic() + RETRY_S
        try:
            with closing(open_catalog(self._catalog_url)) as catalog:
                self._is_released = bool(catalog.releases())
        except VistaError as error:
            log.warning("region %s: the catalog does not say what serves: %s", self._worker.region, error)

    def _find_epoch(self) -> None:
        """Read how many users the release's epoch has and when it was promoted, once; later again if the
        table or the catalog cannot be read now."""
        states = list(self._worker.states.values())
        release = next((state.release for state in states if state.release is not None), None)
        if release is None or self._shards_of == (release.space, release.epoch):
            return
        if time.monotonic() < self._retry_s:
            return
        self._retry_s = time.monotonic() + RETRY_S
        try:
            with closing(open_catalog(self._catalog_url)) as catalog:
                self._shards = manifests(known_epoch(catalog, release.space, release.epoch))
                self._promoted_us = _promoted_us(catalog, release)
        except VistaError as error:
            log.warning("region %s: the epoch that serves is not known: %s", self._worker.region, error)
        else:
            self._shards_of, self._retry_s = (release.space, release.epoch), 0.0


def _complete(state: BucketState) -> bool:
    if state.release is None:
        return True
    held = state.epochs.get((space_id(state.release.space), state.release.epoch))
    return held is not None and held.barrier


def _age_s(release: Release, states: Iterable[BucketState]) -> float | None:
    key = space_id(release.space), release.epoch
    found = [state.epochs[key].oldest_as_of_us for state in states if key in state.epochs]
    known = [as_of_us for as_of_us in found if as_of_us is not None]
    return time.time() - min(known) / 1e6 if known else None


def _promoted_us(catalog: ReleaseCatalog, release: Release) -> int | None:
    """When the release's epoch came to serve for the first time: a rollback does not make it newer."""
    of_epoch = {
        one.id for one in catalog.releases() if (one.space, one.epoch) == (release.space, release.epoch)
    }
    return min((line.time_us for line in catalog.audit() if line.after in of_epoch), default=None)


class _Silent(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Probes come every second."""


@contextmanager
def served(health: Callable[[], RegionHealth], registry: CollectorRegistry, port: int) -> Iterator[int]:
    """Answer /healthz and /metrics on the loopback; yields the port. Raises `InputError` if it is taken."""
    metrics: Callable[[WSGIEnvironment, StartResponse], Iterable[bytes]] = make_wsgi_app(registry)

    def application(environment: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environment["PATH_INFO"] == "/metrics":
            return metrics(environment, start_response)
        if environment["PATH_INFO"] == "/healthz":
            found = health()
            status = "200 OK" if found.ready else "503 Service Unavailable"
            start_response(status, [("Content-Type", "application/json")])
            return [found.model_dump_json(indent=2).encode() + b"\n"]
        start_response("404 Not Found", [("Content-Type", "text/plain")])
        return [b"there are /healthz and /metrics\n"]

    try:
        server = make_server(HOST, port, application, ThreadingWSGIServer, _Silent)
    except OSError as error:
        raise InputError(f"--port {port}: {error}: choose another one, or 0 for a free one") from error
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
