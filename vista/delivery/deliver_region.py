"""`python -m vista deliver --region R`: one worker of one region, until it is told to stop."""

import logging
import signal
import threading
from contextlib import closing

from prometheus_client import CollectorRegistry

from vista.config import Settings
from vista.delivery.log import open_log
from vista.delivery.region_health import HOST, Monitor, Timings, served
from vista.delivery.region_worker import RegionWorker
from vista.delivery.store import open_store
from vista.delivery.worker import WorkerReport
from vista.errors import InputError

log = logging.getLogger(__name__)


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
    registry = CollectorRegistry()
    with (
        closing(open_log(settings.log_url)) as source,
        closing(open_log(settings.log_url)) as watched,
        closing(open_store(settings.region_urls[region], source.partitions)) as store,
    ):
        timings = Timings(registry, region)
        worker = RegionWorker(region, source, store, timings.apply_seconds, timings.read_seconds)
        monitor = Monitor(worker, watched, settings.catalog_url)
        watch = threading.Thread(target=monitor.watch, args=(stop,))
        with served(monitor, registry, port) as found:
            log.info(
                "region %s follows %s; http://%s:%d has /healthz and /metrics",
                region, settings.log_url, HOST, found,
            )  # fmt: skip
            watch.start()
            try:
                return worker.follow(stop)
            finally:
                stop.set()
                watch.join()
