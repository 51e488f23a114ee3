"""Warm start: a run's foundation goes on from an earlier checkpoint, and its space goes on with it.

It is the newest checkpoint of the space that has not seen the days that this run trains on, never simply the
champion's: a refresh of last month's data must not begin with what was learned today.
"""

from datetime import UTC, datetime
from pathlib import Path

from vista.config import Frozen
from vista.delivery.interfaces import Epoch
from vista.errors import InputError
from vista.model.checkpoint import load
from vista.model.ranker import Ranker
from vista.runs import write_whole
from vista.train.jobs import usable_epochs
from vista.train.prepare import release_to_continue
from vista.train.stage import StageContext
from vista.train.vocabulary import Vocabulary

START_FILE = "warm_start.json"


class WarmStart(Frozen):
    """The checkpoint that the foundation begins with, and the first day after its training."""

    space: str
    checkpoint: Path
    first_day: int


def warm_start(stage: StageContext) -> WarmStart:
    """Where this run begins: found once and then kept, since other runs go on publishing.

    Raises `InputError` if there is no such checkpoint, or if its rows mean other ids or values than those of
    this data set.
    """
    kept = stage.run.training("foundation") / START_FILE
    if kept.exists():
        return WarmStart.model_validate_json(kept.read_text(encoding="utf-8"))
    space = release_to_continue(stage.settings).space
    start = _newest(stage, space, usable_epochs(stage.settings.catalog_url, space))
    _check_vocabulary(stage, start)
    write_whole(kept, start.model_dump_json(indent=2))
    return start


def _newest(stage: StageContext, space: str, epochs: list[Epoch]) -> WarmStart:
    """The newest checkpoint that leaves at least the day before the test day to train on."""
    dataset = stage.dataset
    limit_us = dataset.day_start_us(dataset.split().n - 1)
    usable = [epoch for epoch in epochs if epoch.trained_until_us <= limit_us]
    if not usable:
        raise InputError(
            f"warm_start: every checkpoint of {space} was trained beyond {_utc(limit_us)}, which leaves no "
            "day before the test day to train on: give newer events, or run without warm_start"
        )
    epoch = max(usable, key=lambda one: (one.trained_until_us, one.epoch))
    first_day = dataset.days.first_after(epoch.trained_until_us)
    return WarmStart(
        space=space, checkpoint=Path(epoch.checkpoint), first_day=max(dataset.split().first_day, first_day)
    )


def _check_vocabulary(stage: StageContext, start: WarmStart) -> None:
    earlier, meta = load(start.checkpoint)
    assert isinstance(earlier, Ranker), "an epoch's checkpoint is a foundation model"
    if meta.max_uih != stage.recipe.data.max_uih:
        raise InputError(
            f"warm_start: max_uih {stage.recipe.data.max_uih}, but {start.space} reads the newest "
            f"{meta.max_uih} events: leave max_uih as it was, or run without warm_start"
        )
    found = Vocabulary.read(start.checkpoint).differences(Vocabulary.of(stage.dataset, earlier.spec))
    if found:
        raise InputError(
            f"warm_start: {', '.join(found)} that {start.checkpoint} knows were removed or reordered in this "
            "data set: give the events of before as they were, or run without warm_start"
        )


def _utc(time_us: int) -> str:
    return f"{datetime.fromtimestamp(time_us / 1e6, UTC):%Y-%m-%d %H:%M} UTC"
