"""`python -m vista deliver --region R`: one worker of one region, until it is told to stop.

Where nothing has been delivered yet it waits for the first delivery: that is the normal state of a new
deployment, and /healthz says so.
"""

import logging
import signal
import threading
from collections.abc import Callable
from contextlib import closing

from prometheus_client import CollectorRegistry

from vista.config import Settings
from vista.delivery.interfaces import Log
from vista.delivery.log import open_log
from vista.delivery.region_health import HOST, Monitor, RegionHealth, Timings, served
from vista.delivery.region_worker import RegionWorker
from vista.delivery.store import open_store
from vista.delivery.worker import WorkerReport
from vista.errors import BackendError, InputError, NoLogError

log = logging.getLogger(__name__)

LOOK_S = 2.0


def deliver_region(settings: Settings, region: str, port: int) -> WorkerReport:
    """Follow the log for a region until SIGTERM or SIGINT; the batch in hand is finished.

    Health and metrics are on loopback `port`, 0 for a free one. Raises `InputError` for an unknown region or
    a taken port, `BackendError` if a back end cannot be reached at the start.
    """
    if region not in settings.region_urls:
        raise InputError(f"region {region!r} does not exist: {', '.join(settings.region_urls)}")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    registry, health = CollectorRegistry(), _Health(region)
    with served(health, registry, port) as found:
        log.info("region %s: http://%s:%d has /healthz and /metrics", region, HOST, found)
        source = _first_log(settings.log_url, region, health, stop)
        return WorkerReport() if source is None else _follow(settings, region, source, registry, health, stop)


class _Health:
    """What /healthz says: until there is a worker, what it waits for."""

    def __init__(self, region: str) -> None:
        self._region, self.waits_for = region, ""
        self.told: Callable[[], RegionHealth] | None = None

    def __call__(self) -> RegionHealth:
        if self.told is not None:
            return self.told()
        reason = self.waits_for or "it is starting"
        return RegionHealth(region=self._region, ready=False, waiting=True, reasons=(reason,))


def _first_log(url: str, region: str, health: _Health, stop: threading.Event) -> Log | None:
    """The log, once there is one; None if told to stop before. Raises `BackendError` if the brokers cannot be
    used from the start; an outage later is waited for too."""
    while not stop.is_set():
        try:
            return open_log(url)
        except BackendError as error:
            if not (health.waits_for or isinstance(error, NoLogError)):
                raise
            first, health.waits_for = not health.waits_for, f"it waits for a first delivery: {error}"
            if first:
                log.info("region %s waits for a first delivery: %s", region, error)
        stop.wait(LOOK_S)
    return None


def _follow(
    settings: Settings,
    region: str,
    source: Log,
    registry: CollectorRegistry,
    health: _Health,
    stop: threading.Event,
) -> WorkerReport:
    with (
        closing(source),
        closing(open_log(settings.log_url)) as watched,
        closing(open_store(settings.region_urls[region], source.partitions)) as store,
    ):
        timings = Timings(registry, region)
        worker = RegionWorker(region, source, store, timings.apply_seconds, timings.read_seconds)
        monitor = Monitor(worker, watched, settings.catalog_url)
        registry.register(monitor)
        health.told = monitor.health
        log.info("region %s follows %s", region, settings.log_url)
        watch = threading.Thread(target=monitor.watch, args=(stop,))
        watch.start()
        threading.Thread(target=monitor.follow_release, args=(stop,), daemon=True).start()
        try:
            return worker.follow(stop)
        finally:
            stop.set()
            watch.join()
