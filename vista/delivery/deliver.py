"""The stage `deliver`: the newest epoch from the table through the log into every region, and verified."""

import logging
from collections.abc import Mapping
from contextlib import closing

from vista.config import Frozen, RefreshConfig, Settings
from vista.data.dataset import Dataset
from vista.delivery.backfill import backfill
from vista.delivery.catalog import open_catalog
from vista.delivery.epochs import known_epoch, published_epoch
from vista.delivery.interfaces import Catalog, Epoch, Store
from vista.delivery.log import open_log
from vista.delivery.publish import usable
from vista.delivery.readiness import RegionReport, RegionState, canaries_differ
from vista.delivery.regions import drain_regions, open_regions
from vista.delivery.release import current_release, needed_releases
from vista.delivery.repair import refill_out_of_reach
from vista.delivery.retention import pinned
from vista.delivery.retirements import check_not_retired
from vista.delivery.worker import MIN_FREE_BYTES
from vista.errors import RegionNotReadyError
from vista.runs import RunDirectory
from vista.summary.table import Shard, shards_of

log = logging.getLogger(__name__)

STORE_OVERHEAD = 2.2
"""Bytes that a store takes per byte of records. A page of SQLite holds one record of 2 to 4 KB."""


class DeliverReport(Frozen):
    """`delivered` is False, with the reason, for an epoch that stays in the table."""

    space: str
    epoch: int
    delivered: bool
    reason: str
    appended_records: int
    canaries_equal: bool
    regions: dict[str, RegionReport]


def deliver_epoch(config: RefreshConfig, settings: Settings) -> DeliverReport:
    """Deliver the newest epoch of the run's space. A region of whose buckets the log does not hold what they
    need next gets them back from the table, as by a repair.

    Raises `EpochError` if it is not published, or retired, `RegionNotReadyError` if a region lacks room,
    users or a canary, `BackendError`.
    """
    run = RunDirectory.open(settings.runs, config)
    exported = run.report_of("export_summaries")
    with closing(open_catalog(settings.catalog_url)) as catalog:
        epoch = published_epoch(catalog, exported["space"], exported["newest_epoch"])
        older = _older_than_release(catalog, epoch)
        if not older:
            check_not_retired(catalog, epoch.space, epoch.epoch)
        live, release = _live_epochs(catalog, epoch), current_release(catalog)
    if older:
        log.info("not delivered: %s", older)
        return _report(epoch, delivered=False, reason=older, appended=0, regions={})
    shards = shards_of(epoch.location, epoch.buckets)
    with pinned([epoch]), closing(open_log(settings.log_url, epoch.buckets)) as target:
        with open_regions(settings, epoch.buckets) as stores:
            check_capacity(epoch, shards, stores)
            refill_out_of_reach(stores, target, live, release)
        progress = run.path / "deliver" / f"{epoch.space}-{epoch.epoch}.json"
        appended = backfill(epoch, target, progress)
        drain_regions(settings, epoch.buckets)
        clock_us = Dataset.open(run.data).newest_event_us
        with open_regions(settings, epoch.buckets) as stores:
            regions: dict[str, RegionReport] = {}
            for name, store in stores.items():
                state = check_ready(name, store, epoch, shards)
                regions[name] = state.report(epoch, shards, target, clock_us)
                log.info("region %s: epoch %d of %s is complete", name, epoch.epoch, epoch.space)
    return _report(epoch, delivered=True, reason="", appended=appended, regions=regions)


def check_capacity(epoch: Epoch, shards: tuple[Shard, ...], stores: Mapping[str, Store]) -> None:
    """Raises `RegionNotReadyError` if a region that does not hold the epoch yet has no room for it."""
    needed_bytes = int(STORE_OVERHEAD * sum(shard.value_bytes for shard in shards))
    for name, store in stores.items():
        state = RegionState.of(name, store, epoch.buckets)
        free_bytes = min(bucket.free_bytes for bucket in state.buckets)
        if not state.complete(epoch.space, epoch.epoch) and free_bytes < needed_bytes + MIN_FREE_BYTES:
            raise RegionNotReadyError(
                f"region {name} has {free_bytes:,} bytes free, epoch {epoch.epoch} needs {needed_bytes:,} "
                f"beside a reserve of {MIN_FREE_BYTES:,}: retire an older epoch or enlarge the store"
            )


def check_ready(name: str, store: Store, epoch: Epoch, shards: tuple[Shard, ...]) -> RegionState:
    """The region's state, if it holds all of the epoch. Raises `RegionNotReadyError`."""
    state = RegionState.of(name, store, epoch.buckets)
    if gaps := state.gaps(epoch, shards):
        raise RegionNotReadyError(
            f"{gaps[0]} ({len(gaps)} of {epoch.buckets} buckets have a gap): deliver again; if it stays, "
            f"{_repair(name, epoch)}"
        )
    if differ := canaries_differ(epoch, store):
        raise RegionNotReadyError(
            f"region {name} holds another summary of user {differ[0]} than the table ({len(differ)} canaries "
            f"differ): {_repair(name, epoch)}"
        )
    return state


def _live_epochs(catalog: Catalog, epoch: Epoch) -> list[Epoch]:
    """What serves and what a rollback would take, but for what is withdrawn; then `epoch`."""
    needed = [usable(catalog, one.space).get(one.epoch) for one in needed_releases(catalog)]
    return [one for one in needed if one is not None and one != epoch] + [epoch]


def _repair(region: str, epoch: Epoch) -> str:
    named = f"--region {region} --space {epoch.space} --epoch {epoch.epoch}"
    return f"`python -m vista repair {named} --reason ...` refills it from the table"


def _older_than_release(catalog: Catalog, epoch: Epoch) -> str:
    """Why the epoch stays in the table: the release of its space is newer. Empty if it does not."""
    releases = catalog.releases()
    if not releases or releases[-1].space != epoch.space:
        return ""
    current = known_epoch(catalog, epoch.space, releases[-1].epoch)
    if epoch.as_of_us >= current.as_of_us:
        return ""
    return (
        f"epoch {epoch.epoch} of {epoch.space} is as of {epoch.as_of_us}, the current release "
        f"{releases[-1].id} as of {current.as_of_us}: older epochs stay in the table"
    )


def _report(
    epoch: Epoch, *, delivered: bool, reason: str, appended: int, regions: dict[str, RegionReport]
) -> DeliverReport:
    return DeliverReport(
        space=epoch.space,
        epoch=epoch.epoch,
        delivered=delivered,
        reason=reason,
        appended_records=appended,
        canaries_equal=delivered,  # `check_ready` raises otherwise
        regions=regions,
    )
