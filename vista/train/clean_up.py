"""Stage: retire the epochs that nobody needs any more, delete the files of those that are gone, write the
report, point `runs/latest` at it."""

import logging
from collections.abc import Mapping
from pathlib import Path

from vista.config import Frozen, RefreshConfig, Settings
from vista.delivery.interfaces import Catalog
from vista.delivery.publish import usable
from vista.delivery.readiness import RegionState
from vista.delivery.regions import Backends, open_backends
from vista.delivery.release import needed_releases, retire
from vista.delivery.retention import expire_space, sweep
from vista.errors import EpochError, VistaError
from vista.evaluate.report import REPORT_FILE, REPORT_PAGE, write_report
from vista.runs import RunDirectory
from vista.summary.record import space_id
from vista.train.compose import compose
from vista.train.delivery_run import end_delivery, track_delivery
from vista.train.registry import follow_release
from vista.train.stage import StageContext
from vista.train.tracking import Tracked

LOG = logging.getLogger(__name__)

SpaceEpoch = tuple[str, int]


class CleanUpReport(Frozen):
    """`retired` left the stores, `expired` left the table, as space/epoch; `deleted` are folders of files.
    `report` is the page for people, report.json lies beside it."""

    retired: tuple[str, ...]
    expired: tuple[str, ...]
    deleted: tuple[str, ...]
    report: str


def clean_up(config: RefreshConfig, settings: Settings) -> CleanUpReport:
    """Retire, report, link. Repeating it changes nothing."""
    stage = StageContext.open(config, settings)
    delivered = stage.run.report_of("deliver")
    newest = (delivered["space"], delivered["epoch"])
    with open_backends(settings) as backends:
        retired = retire_old(backends, settings.runs, newest, stage.recipe.delivery.epochs_kept)
        expired = expire_old(backends, settings.runs, newest, stage.recipe.delivery.epochs_kept)
        deleted = sweep(backends.catalog, settings.warehouse)
    write_report(stage.run.path, compose(stage))
    _track(stage)
    stage.run.make_latest()
    return CleanUpReport(
        retired=tuple(f"{space}/{epoch}" for space, epoch in retired),
        expired=tuple(f"{space}/{epoch}" for space, epoch in expired),
        deleted=tuple(deleted),
        report=str(stage.run.path / REPORT_PAGE),
    )


def _track(stage: StageContext) -> None:
    """What is known at the end only, into MLflow: the regions, the report, the release that serves now."""
    run, settings = stage.run, stage.settings
    delivered = run.report_of("deliver")
    end_delivery(track_delivery(stage, delivered["space"]), delivered)
    pages = {f"report/{name}": (run.path / name).read_text("utf-8") for name in (REPORT_PAGE, REPORT_FILE)}
    Tracked(settings.mlflow_url, run.report_of("retrain_downstream")["mlflow_run_id"]).finish({}, {}, pages)
    follow_release(settings)


def retire_old(backends: Backends, runs: Path, newest: SpaceEpoch, epochs_kept: int) -> list[SpaceEpoch]:
    """Retire from the stores what is neither of the newest `epochs_kept` nor needed for a rollback.

    `newest` is the epoch of this run.
    """
    finished, held = finished_epochs(backends, runs), held_epochs(backends)
    kept = kept_epochs(backends.catalog, finished, newest, epochs_kept)
    retired = []
    for space, epoch in sorted(finished.keys() - set(kept)):
        newer_than_kept = any(one == space and number < epoch for one, number in kept)
        if (space_id(space), epoch) not in held or newer_than_kept:
            continue
        try:
            reason = f"neither of the newest {epochs_kept} nor needed by a release or a rollback"
            retire(backends, space=space, epoch=epoch, actor="clean_up", reason=reason)
        except EpochError as needed:
            LOG.info("kept: %s", needed)
        else:
            retired.append((space, epoch))
    return retired


def expire_old(backends: Backends, runs: Path, newest: SpaceEpoch, epochs_kept: int) -> list[SpaceEpoch]:
    """Withdraw from the table the spaces of which no epoch is kept, nor needed for a rollback.

    A space that is kept is kept whole: trainings read its older epochs.
    """
    finished = finished_epochs(backends, runs)
    kept = {space for space, _ in kept_epochs(backends.catalog, finished, newest, epochs_kept)}
    kept |= {release.space for release in needed_releases(backends.catalog)}
    gone = {space for space, _ in finished} - kept
    reason = f"no epoch of its space is of the newest {epochs_kept} or needed by a release or a rollback"
    return [
        (epoch.space, epoch.epoch)
        for space in sorted(gone)
        for epoch in expire_space(backends.catalog, space, "clean_up", reason)
    ]


def kept_epochs(
    catalog: Catalog, finished: Mapping[SpaceEpoch, int], newest: SpaceEpoch, epochs_kept: int
) -> list[SpaceEpoch]:
    """`newest` and the usable ones that were delivered last, `epochs_kept` in all, promoted or not: a person
    may promote any of them by hand. What serves and what a rollback would take may be older, and come on
    top."""
    kept = [newest]
    for one in sorted(finished, key=finished.__getitem__, reverse=True):
        if len(kept) == epochs_kept:
            break
        if one not in kept and one[1] in usable(catalog, one[0]):
            kept.append(one)
    return kept


def held_epochs(backends: Backends) -> set[tuple[int, int]]:
    """(space_id, epoch) of which any region holds anything."""
    return {
        key
        for name, store in backends.stores.items()
        for bucket in RegionState.of(name, store, backends.log.partitions).buckets
        for key in bucket.epochs
    }


def finished_epochs(backends: Backends, runs: Path) -> dict[SpaceEpoch, int]:
    """Every epoch that was delivered by a run that has had its chance of promotion, with when that was (file
    time, ns), or was released: 0, the newest first, if no run tells when.

    A run whose reports are damaged is passed over: what it delivered stays for now.
    """
    epochs = {(release.space, release.epoch): 0 for release in reversed(backends.catalog.releases())}
    for path in runs.iterdir():
        run = RunDirectory(path)
        try:
            if path.is_symlink() or run.stage("promote") is None:
                continue
            delivered = run.report_of("deliver")
            if delivered["delivered"]:
                one = (delivered["space"], delivered["epoch"])
                time_ns = (path / "stages" / "deliver.json").stat().st_mtime_ns
                epochs[one] = max(epochs.get(one, 0), time_ns)
        except (VistaError, KeyError) as error:
            LOG.warning("%s is passed over: its reports are damaged (%s)", path, error)
    return epochs
