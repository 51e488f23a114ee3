"""Stage: retire the epochs that nobody needs any more, write the report, point `runs/latest` at it."""

import logging
from pathlib import Path

from vista.config import Frozen, RefreshConfig, Settings
from vista.delivery.readiness import RegionState
from vista.delivery.regions import Backends, open_backends
from vista.delivery.release import retire
from vista.errors import EpochError
from vista.evaluate.report import write_report
from vista.runs import RunDirectory
from vista.summary.record import space_id
from vista.train.compose import compose
from vista.train.stage import StageContext

LOG = logging.getLogger(__name__)

SpaceEpoch = tuple[str, int]


class CleanUpReport(Frozen):
    """`retired` are epochs as space/epoch; `report` is the page for people, report.json lies beside it."""

    retired: tuple[str, ...]
    report: str


def clean_up(config: RefreshConfig, settings: Settings) -> CleanUpReport:
    """Retire, report, link. Repeating it changes nothing."""
    stage = StageContext.open(config, settings)
    with open_backends(settings) as backends:
        retired = retire_old(backends, stage)
    write_report(stage.run.path, compose(stage))
    stage.run.make_latest()
    return CleanUpReport(
        retired=tuple(f"{space}/{epoch}" for space, epoch in retired),
        report=str(stage.run.path / "report.html"),
    )


def retire_old(backends: Backends, stage: StageContext) -> list[SpaceEpoch]:
    """Retire from the stores what is neither of the newest `epochs_kept` nor needed for a rollback."""
    kept, retired = kept_epochs(backends, stage), []
    held = {
        key
        for name, store in backends.stores.items()
        for bucket in RegionState.of(name, store, backends.log.partitions).buckets
        for key in bucket.epochs
    }
    for space, epoch in sorted(finished_epochs(backends, stage.settings.runs) - set(kept)):
        newer_than_kept = any(one == space and number < epoch for one, number in kept)
        if (space_id(space), epoch) not in held or newer_than_kept:
            continue
        try:
            reason = f"older than the newest {stage.recipe.delivery.epochs_kept}"
            retire(backends, space=space, epoch=epoch, actor=f"run {stage.config.run_id}", reason=reason)
        except EpochError as needed:
            LOG.info("kept: %s", needed)
        else:
            retired.append((space, epoch))
    return retired


def kept_epochs(backends: Backends, stage: StageContext) -> list[SpaceEpoch]:
    """This run's epoch (it may still be promoted by hand) and those of the newest releases."""
    delivered = stage.run.report_of("deliver")
    newest_first = [(delivered["space"], delivered["epoch"])] + [
        (release.space, release.epoch) for release in reversed(backends.catalog.releases())
    ]
    return list(dict.fromkeys(newest_first))[: stage.recipe.delivery.epochs_kept]


def finished_epochs(backends: Backends, runs: Path) -> set[SpaceEpoch]:
    """Every epoch that was released, or delivered by a run that has had its chance of promotion."""
    epochs = {(release.space, release.epoch) for release in backends.catalog.releases()}
    for path in runs.iterdir():
        run = RunDirectory(path)
        if not path.is_symlink() and run.stage("promote") is not None:
            delivered = run.report_of("deliver")
            epochs.add((delivered["space"], delivered["epoch"]))
    return epochs
