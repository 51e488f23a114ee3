"""Warm start: a run's foundation goes on from an earlier checkpoint, and its space goes on with it.

It is the newest checkpoint of the space that has not seen the days that this run trains on, never simply the
champion's: a refresh of last month's data must not begin with what was learned today. Only a foundation whose
release holds is gone on from: a model that was rolled back, or whose epoch was withdrawn, was judged bad, and
one that was never released was not judged good.
"""

from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from vista.config import Frozen, Recipe, Settings
from vista.delivery.catalog import open_catalog
from vista.delivery.interfaces import Epoch, Release
from vista.errors import InputError
from vista.model.checkpoint import CheckpointMeta, load, load_meta
from vista.model.inherit import FREE, changed
from vista.model.ranker import Ranker
from vista.runs import read_as, write_whole
from vista.train.stage import StageContext
from vista.train.vocabulary import Vocabulary

START_FILE = "warm_start.json"


class WarmStart(Frozen):
    """The checkpoint that the foundation begins with, and the first day after its training."""

    space: str
    checkpoint: Path
    first_day: int


def warm_start(stage: StageContext, *, trains: bool = True) -> WarmStart:
    """Where this run begins: found once and then kept, since other runs go on publishing. A run that does not
    train needs no day for it.

    Raises `InputError` if there is no such checkpoint, or if its rows mean other ids or values than those of
    this data set.
    """
    kept = stage.run.training("foundation") / START_FILE
    if kept.exists():
        remedy = f"delete {kept.parent}, then `make run RESUME=1` trains the foundation anew"
        return read_as(WarmStart, kept, remedy)
    start = _newest(stage, Starts.of(stage.settings), trains)
    _check_recipe(stage.recipe, start.space, load_meta(start.checkpoint))
    _check_vocabulary(stage, start)
    write_whole(kept, start.model_dump_json(indent=2))
    return start


def possible_start(recipe: Recipe, settings: Settings) -> Path:
    """The newest checkpoint that a warm run of `recipe` could go on from, whatever its data are.

    Raises `InputError` for what can be known before there are any: nothing is released, no release holds, or
    the recipe is of another space.
    """
    starts = Starts.of(settings)
    newest = Path(starts.usable[-1].checkpoint)
    _check_recipe(recipe, starts.space, load_meta(newest))
    return newest


@dataclass(frozen=True, slots=True)
class Starts:
    """The released epochs of the space that serves whose foundations may be gone on from, by the end of their
    training; `why_not` says of each other released epoch why not."""

    space: str
    usable: tuple[Epoch, ...]
    why_not: tuple[str, ...]

    @classmethod
    def of(cls, settings: Settings) -> "Starts":
        """Raises `InputError` if there is none."""
        with closing(open_catalog(settings.catalog_url)) as catalog:
            releases = catalog.releases()
            if not releases:
                raise InputError(
                    f"warm_start: nothing is released in {settings.catalog_url}: set VISTA_HOME to the "
                    "deployment's folder, or run without warm_start first"
                )
            space = releases[-1].space
            epochs = {epoch.epoch: epoch for epoch in catalog.list_epochs(space)}
        held = {release.epoch for release in holding(releases) if release.space == space}
        usable, why_not = [], []
        for number in sorted({release.epoch for release in releases if release.space == space}):
            if number not in held:
                why_not.append(f"the release of epoch {number} was rolled back")
            elif epochs[number].withdrawn:
                why_not.append(f"epoch {number} was withdrawn")
            else:
                usable.append(epochs[number])
        if not usable:
            raise InputError(
                f"warm_start: no foundation of {space}, which serves, may be gone on from ("
                f"{'; '.join(why_not)}): roll back to a good release, or run without warm_start"
            )
        usable.sort(key=lambda epoch: (epoch.trained_until_us, epoch.epoch))
        return cls(space, tuple(usable), tuple(why_not))


def holding(releases: list[Release]) -> list[Release]:
    """The releases that were not rolled back: a release that names again what an earlier one named takes back
    all between them, and stands for that one."""
    held: list[Release] = []
    for release in releases:
        same = [place for place, one in enumerate(held) if _content(one) == _content(release)]
        if same:
            del held[same[0] :]
        held.append(release)
    return held


def _content(release: Release) -> Release:
    return release.model_copy(update={"id": "", "previous": None})


def _newest(stage: StageContext, starts: Starts, trains: bool) -> WarmStart:
    """The newest checkpoint that has not seen the test day, and leaves at least the day before it to train
    on."""
    dataset = stage.dataset
    limit_us = dataset.day_start_us(dataset.split().n - trains)
    usable = [epoch for epoch in starts.usable if epoch.trained_until_us <= limit_us]
    if not usable:
        lacking = "no day before the test day to train on" if trains else "no test day"
        raise InputError(
            f"warm_start: every foundation of {starts.space} that may be gone on from was trained beyond "
            f"{_utc(limit_us)}, which leaves {lacking}"
            f"{''.join(f'; {reason}' for reason in starts.why_not)}: give newer events, or run without "
            "warm_start"
        )
    epoch = usable[-1]
    first_day = dataset.days.first_after(epoch.trained_until_us)
    return WarmStart(
        space=starts.space,
        checkpoint=Path(epoch.checkpoint),
        first_day=max(dataset.split().first_day, first_day),
    )


def _check_recipe(recipe: Recipe, space: str, meta: CheckpointMeta) -> None:
    found = changed(meta.config, recipe.model, FREE)
    if meta.kind != recipe.foundation_slot:
        found.append(f"slot was {meta.kind!r} and is {recipe.foundation_slot!r}")
    if found:
        raise InputError(
            f"warm_start: {'; '.join(found)}: that is another space; undo it, or run without warm_start"
        )
    if meta.max_uih != recipe.data.max_uih:
        raise InputError(
            f"warm_start: max_uih {recipe.data.max_uih}, but {space} reads the newest {meta.max_uih} events: "
            "leave max_uih as it was, or run without warm_start"
        )


def _check_vocabulary(stage: StageContext, start: WarmStart) -> None:
    earlier, _ = load(start.checkpoint)
    assert isinstance(earlier, Ranker), "an epoch's checkpoint is a foundation model"
    found = Vocabulary.read(start.checkpoint).differences(Vocabulary.of(stage.dataset, earlier.spec))
    if found:
        raise InputError(
            f"warm_start: {', '.join(found)} that {start.checkpoint} knows were removed or reordered in this "
            "data set: give the events of before as they were, or run without warm_start"
        )


def _utc(time_us: int) -> str:
    return f"{datetime.fromtimestamp(time_us / 1e6, UTC):%Y-%m-%d %H:%M} UTC"
