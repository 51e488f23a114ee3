"""What a retraining has to do: the summaries that were delivered since the last one.

The watermark is read off the runs' reports. A range of epochs counts as done when the run that delivered its
newest one has the report of its last stage, which is written whole in one step: nothing else could say so
sooner or later than that.
"""

import logging
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from vista.config import Frozen, RefreshConfig, Settings
from vista.delivery.catalog import open_catalog
from vista.delivery.publish import usable
from vista.delivery.release import current_release
from vista.errors import VistaError
from vista.jobs import RELEASE, NoConfig
from vista.runs import RunDirectory

LOG = logging.getLogger(__name__)


class NextSummaries(Frozen):
    """`config` is of the run to go on with, None if there is nothing to do; `epochs` are those of `space`
    that no downstream model has been trained on, up to that run's; times in UTC microseconds."""

    config: RefreshConfig | None
    space: str
    watermark_us: int | None
    head_us: int | None
    epochs: tuple[int, ...]


class Delivered(Frozen):
    """A run that brought an epoch into every region. `adopted`: it leaves the retraining to others."""

    config: RefreshConfig
    space: str
    epoch: int
    adopted: bool
    finished: bool


def next_summaries(config: NoConfig, settings: Settings) -> NextSummaries:
    """From the watermark to the head, in the space that serves."""
    with closing(open_catalog(settings.catalog_url)) as catalog:
        release = current_release(catalog)
        if release is None:
            LOG.info("nothing is released yet: nothing to retrain")
            return NextSummaries(config=None, space="", watermark_us=None, head_us=None, epochs=())
        epochs = usable(catalog, release.space)
    runs = [run for run in delivered(settings.runs) if run.space == release.space and run.epoch in epochs]
    order = {number: (one.as_of_us, number) for number, one in epochs.items()}  # days may be exported twice
    watermark = max((order[run.epoch] for run in runs if run.finished), default=None)
    waiting = [
        run
        for run in runs
        if run.adopted and not run.finished and (watermark is None or order[run.epoch] > watermark)
    ]
    head = max(waiting, key=lambda run: order[run.epoch], default=None)
    newest = watermark if head is None else order[head.epoch]
    found = NextSummaries(
        config=None if head is None else head.config,
        space=release.space,
        watermark_us=None if watermark is None else watermark[0],
        head_us=None if newest is None else newest[0],
        epochs=tuple(
            number
            for number in epochs
            if newest is not None
            and (watermark is None or watermark < order[number])
            and order[number] <= newest
        ),
    )
    LOG.info("%s: %d epochs wait for a retraining", found.space, len(found.epochs))
    return found


def delivered(runs: Path) -> Iterator[Delivered]:
    """The runs that have delivered; one whose reports are damaged is passed over."""
    for path in sorted(runs.iterdir()) if runs.is_dir() else []:
        run = RunDirectory(path)
        try:
            if path.is_symlink() or run.stage("deliver") is None:
                continue
            report = run.report_of("deliver")
            if report["delivered"]:
                yield Delivered(
                    config=run.config(),
                    space=report["space"],
                    epoch=report["epoch"],
                    adopted=run.report_of("train_foundation").get("adopted", False),
                    finished=run.stage(RELEASE[-1]) is not None,
                )
        except (VistaError, KeyError) as error:
            LOG.warning("%s is passed over: its reports are damaged (%s)", path, error)
