"""A region's endless worker in a thread of the test, with its monitor."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import TemporaryDirectory

from prometheus_client import CollectorRegistry

from vista.delivery.interfaces import Log, Store
from vista.delivery.region_health import Monitor, Timings
from vista.delivery.region_worker import LIMITS, Limits, RegionWorker
from vista.delivery.worker import WorkerReport


class RegionThread:
    """`worker` and `monitor` of a region; `report` when it has ended."""

    def __init__(self, region: str, log: Log, store: Store, limits: Limits, catalog_url: str) -> None:
        self.registry = CollectorRegistry()
        timings = Timings(self.registry, region)
        self.worker = RegionWorker(region, log, store, timings.apply_seconds, timings.read_seconds, limits)
        self.monitor = Monitor(self.worker, log, catalog_url)
        self.registry.register(self.monitor)
        self.stop = threading.Event()
        self.report: WorkerReport | None = None
        self._threads = [
            threading.Thread(target=self._follow),
            threading.Thread(target=self.monitor.watch, args=(self.stop,)),
            threading.Thread(target=self.monitor.follow_release, args=(self.stop,)),
        ]

    def _follow(self) -> None:
        self.report = self.worker.follow(self.stop)

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def end(self) -> WorkerReport:
        self.stop.set()
        for thread in self._threads:
            thread.join()
        assert self.report is not None, "the worker ended by an exception"
        return self.report


@contextmanager
def region_thread(
    region: str, log: Log, store: Store, limits: Limits = LIMITS, catalog_url: str = ""
) -> Iterator[RegionThread]:
    """Follows the log until the end of the context. Without a `catalog_url` nothing is released."""
    with TemporaryDirectory() as folder:
        url = catalog_url or f"sqlite:///{folder}/catalog.db"
        running = RegionThread(region, log, store, limits, url)
        running.start()
        try:
            yield running
        finally:
            running.end()
