"""The model that serves now, on the rows that its challenger is judged on."""

from contextlib import closing
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vista.config import Frozen
from vista.data.schema import FeatureSpec
from vista.delivery.catalog import open_catalog
from vista.delivery.interfaces import Epoch, Release
from vista.delivery.release import current_release
from vista.errors import CheckpointError, EpochError
from vista.evaluate.gate import NO_CHAMPION
from vista.model.checkpoint import load
from vista.model.downstream import Downstream
from vista.summary.join import SummaryReader
from vista.train.jobs import judged_epochs, summary_forward
from vista.train.loop import batch_plan, predict
from vista.train.stage import StageContext
from vista.train.vocabulary import Vocabulary


class Champion(Frozen):
    """The current release and whether its model can score these rows; if not, `why` says so."""

    release: str | None
    comparable: bool
    why: str = ""

    @property
    def not_compared(self) -> str:
        """What the gate says instead of figures; empty if there are some."""
        if self.release is None:
            return NO_CHAMPION
        return "" if self.comparable else f"the champion {self.release} could not be compared: {self.why}"


class _NotComparable(Exception):
    """Why the champion cannot score the rows of this run."""


def score_champion(stage: StageContext) -> tuple[Champion, NDArray[np.float32] | None]:
    """The champion's probabilities on the test day by candidate id. It reads no summary of its challenger's
    foundation, which may lie in its space."""
    with closing(open_catalog(stage.settings.catalog_url)) as catalog:
        release = current_release(catalog)
    if release is None:
        return Champion(release=None, comparable=False, why="nothing is released yet"), None
    try:
        scores_N = _score(stage, release)
    except _NotComparable as reason:
        return Champion(release=release.id, comparable=False, why=str(reason)), None
    return Champion(release=release.id, comparable=True), scores_N


def _score(stage: StageContext, release: Release) -> NDArray[np.float32]:
    dataset, test_day = stage.dataset, stage.dataset.split().n
    model, vocabulary = _load(release)
    _check_features(model.spec, dataset.spec(dataset.day_start_us(test_day)))
    differ = vocabulary.differences(Vocabulary.of(dataset, model.spec))
    if not model.config.recent_tail and "value_edges" in differ:  # it reads no event, so no value
        differ.remove("value_edges")
    if differ:
        raise _NotComparable(f"release {release.id} was trained on data with other {', '.join(differ)}")
    examples = dataset.examples(test_day, test_day + 1)
    epochs = judged_epochs(stage.settings.catalog_url, release.space, release.foundation)
    _check_covered(epochs, examples.cut_us_E, release)
    try:
        reader = SummaryReader(epochs)
    except EpochError as error:
        raise _NotComparable(f"the epochs of {release.space} cannot be read: {error}") from error
    plan = batch_plan(examples, stage.recipe.downstream, max_uih=model.config.recent_tail)
    return predict(model, summary_forward(model, reader), plan, dataset.info.candidates)[:, 0]


def _load(release: Release) -> tuple[Downstream, Vocabulary]:
    directory = Path(release.downstream)
    try:
        model, _ = load(directory)
        vocabulary = Vocabulary.read(directory)
    except CheckpointError as error:
        raise _NotComparable(f"the model of release {release.id} cannot be read: {error}") from error
    if not isinstance(model, Downstream):
        raise _NotComparable(f"{directory} of release {release.id} is no downstream model")
    return model, vocabulary


def _check_features(theirs: FeatureSpec, ours: FeatureSpec) -> None:
    for name in ("tasks", "actions", "context", "dense", "num_value_buckets"):
        if getattr(theirs, name) != getattr(ours, name):
            raise _NotComparable(f"its {name} are {getattr(theirs, name)}, those of this data set are others")


def _check_covered(epochs: list[Epoch], cut_us_E: NDArray[np.int64], release: Release) -> None:
    if not epochs:
        raise _NotComparable(f"no epoch of {release.space} that it may read is published and not withdrawn")
    first_cut_us = int(cut_us_E.min())
    if all(epoch.as_of_us > first_cut_us for epoch in epochs):
        raise _NotComparable(f"every epoch of {release.space} is newer than the first row of the test day")
