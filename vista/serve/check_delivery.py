"""Are the summaries that serve where they should be? What can be mended is mended; the rest is an error."""

import logging
import time
from contextlib import closing
from dataclasses import replace

from vista.config import CheckConfig, Frozen, Settings
from vista.delivery.catalog import open_catalog
from vista.delivery.epochs import published_epoch
from vista.delivery.interfaces import Release
from vista.delivery.readiness import RegionReport, RegionState, manifests
from vista.delivery.regions import Backends, open_backends
from vista.delivery.release import current_release
from vista.delivery.repair import verify_all
from vista.delivery.verify import Verdict
from vista.errors import BackendError, NoLogError, RegionNotReadyError
from vista.serve.operations import faults_in, kept_epochs, repair_regions

LOG = logging.getLogger(__name__)

POLL_S = 0.5


class CheckReport(Frozen):
    """`regions` as they are after what was `found` has been mended; no `release`: nothing serves yet."""

    release: str | None
    found: tuple[str, ...]
    regions: dict[str, RegionReport]


def check_delivery(config: CheckConfig, settings: Settings) -> CheckReport:
    """Check coverage, lag and age of what serves in every region; replay or refill what is missing.

    Raises `RegionNotReadyError` with what could not be mended, and for summaries that are too old,
    `NoLogError` where the log is lost: to make another one is an operator's decision.
    """
    with closing(open_catalog(settings.catalog_url)) as catalog:
        release = current_release(catalog)
    if release is None:
        LOG.info("nothing is released in %s: nothing to check", settings.catalog_url)
        return CheckReport(release=None, found=(), regions={})
    found = faults(config, settings, release)
    for fault in found:
        LOG.warning("%s", fault)
    if found:
        reason = f"check_delivery: {len(found)} faults"
        for line in repair_regions(settings, None, None, reason, all_bytes=False, dry_run=False).split("\n"):
            LOG.info("%s", line)
    with open_backends(settings) as backends:
        regions = figures(backends, release)
    for name, region in regions.items():
        LOG.info(
            "region %s: coverage %.2f%%, lag %d records, oldest summary %.0f s old",
            name, 100 * region.coverage, region.lag_records, region.oldest_summary_age_s or 0.0,
        )  # fmt: skip
    check_age(regions, config.max_age_s)
    return CheckReport(release=release.id, found=tuple(found), regions=regions)


def faults(config: CheckConfig, settings: Settings, release: Release) -> list[str]:
    """What is wrong, a line each: what `verify` finds, and which regions do not follow the log."""
    try:
        with open_backends(settings) as backends:
            late = behind(backends, config.max_lag_s)
            verdicts = verify_all(backends, kept_epochs(backends.catalog), all_bytes=False)
    except NoLogError:
        raise
    except BackendError as error:  # a region that does not answer: `repair` tells
        return [str(error)]
    return faults_in([without_dead_letters(verdict) for verdict in verdicts], release) + [
        f"region {name} lacks {records:,} records that the log held {config.max_lag_s:.0f} s ago"
        for name, records in late.items()
    ]


def without_dead_letters(verdict: Verdict) -> Verdict:
    """They are said, but a repair every quarter of an hour would not make them less."""
    for finding in verdict.findings:
        if finding.what == "dead_letters":
            LOG.warning("%s", finding.text)
    return replace(verdict, findings=tuple(one for one in verdict.findings if one.what != "dead_letters"))


def behind(backends: Backends, max_lag_s: float) -> dict[str, int]:
    """Regions that do not have, within the time, what the log holds now; with the records that they lack."""
    ends = [backends.log.bounds(partition)[1] for partition in range(backends.log.partitions)]
    give_up_s = time.monotonic() + max_lag_s
    while True:
        lacking = {
            name: sum(max(0, end - store.state(bucket).offset) for bucket, end in enumerate(ends))
            for name, store in backends.stores.items()
        }
        late = {name: records for name, records in lacking.items() if records}
        if not late or time.monotonic() >= give_up_s:
            return late
        time.sleep(POLL_S)


def figures(backends: Backends, release: Release) -> dict[str, RegionReport]:
    """Coverage, lag and age of what serves, by region; ages by the wall clock."""
    epoch = published_epoch(backends.catalog, release.space, release.epoch)
    shards, now_us = manifests(epoch), time.time_ns() // 1_000
    return {
        name: RegionState.of(name, store, epoch.buckets).report(epoch, shards, backends.log, now_us)
        for name, store in backends.stores.items()
    }


def check_age(regions: dict[str, RegionReport], max_age_s: float | None) -> None:
    """Raises `RegionNotReadyError` for summaries that are older than the limit."""
    old = [
        f"region {name}: its oldest summary is {region.oldest_summary_age_s:,.0f} s old, more than max_age_s "
        f"{max_age_s:,.0f}: refreshes fail or are not promoted, their reports say why"
        for name, region in regions.items()
        if max_age_s is not None
        and region.oldest_summary_age_s is not None
        and region.oldest_summary_age_s > max_age_s
    ]
    if old:
        raise RegionNotReadyError("\n".join(old))
