"""The regions of a deployment, opened together; and one process per region that brings it up to date."""

import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from multiprocessing import get_context, parent_process

from vista.config import Settings
from vista.delivery.catalog import open_catalog
from vista.delivery.interfaces import Catalog, Log, Store
from vista.delivery.log import open_log
from vista.delivery.store import open_store
from vista.delivery.worker import WorkerReport, drain
from vista.errors import RegionNotReadyError

log = logging.getLogger(__name__)

PROGRESS_S = 5.0


@contextmanager
def open_regions(settings: Settings, buckets: int) -> Iterator[dict[str, Store]]:
    """The stores of all regions, nearest first, closed at the end."""
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(closing(open_store(url, buckets)))
            for name, url in settings.region_urls.items()
        }


@dataclass(frozen=True, slots=True)
class Backends:
    """A whole deployment; regions are ordered, nearest first."""

    catalog: Catalog
    log: Log
    stores: dict[str, Store]


@contextmanager
def open_backends(settings: Settings) -> Iterator[Backends]:
    """Catalog, log and stores of a deployment that has delivered something, closed at the end."""
    with (
        closing(open_catalog(settings.catalog_url)) as catalog,
        closing(open_log(settings.log_url)) as source,
        open_regions(settings, source.partitions) as stores,
    ):
        yield Backends(catalog, source, stores)


def drain_regions(settings: Settings, buckets: int) -> dict[str, WorkerReport]:
    """Bring every region to where the log ends now, each in a process of its own.

    The processes end with this one, also when it is killed. Raises what a region's worker raised, or
    `RegionNotReadyError` if a worker was killed.
    """
    with ExitStack() as stack:
        futures: dict[str, Future[WorkerReport]] = {}
        for region, url in settings.region_urls.items():
            pool = ProcessPoolExecutor(1, get_context("spawn"), initializer=_start_worker)
            stack.enter_context(pool)
            futures[region] = pool.submit(drain_region, region, url, settings.log_url, buckets)
        started = time.monotonic()
        while not_done := wait(futures.values(), timeout=PROGRESS_S).not_done:
            waiting = [region for region, future in futures.items() if future in not_done]
            log.info("%.0f s: waiting for %s", time.monotonic() - started, ", ".join(waiting))
        return {region: _result(region, future) for region, future in futures.items()}


def drain_region(region: str, store_url: str, log_url: str, buckets: int) -> WorkerReport:
    """Bring one region to where the log ends now."""
    with closing(open_log(log_url, buckets)) as source, closing(open_store(store_url, buckets)) as store:
        return drain(region, source, store)


def _result(region: str, future: "Future[WorkerReport]") -> WorkerReport:
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise RegionNotReadyError(
            f"the worker of region {region} was killed ({error}): run the stage again, it goes on"
        ) from error


def _start_worker() -> None:
    """In the worker's process: log as the parent does, and end with it."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s", stream=sys.stderr)
    parent = parent_process()
    assert parent is not None, "runs in a child only"

    def end_with_parent() -> None:
        parent.join()  # the operating system says so, also after SIGKILL
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
