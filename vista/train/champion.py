"""The model that serves now, on the rows that its challenger is judged on."""

import hashlib
import json
from contextlib import closing
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vista.config import Frozen
from vista.data.dataset import Dataset
from vista.data.schema import FeatureSpec
from vista.delivery.catalog import open_catalog
from vista.delivery.interfaces import Epoch, Release
from vista.delivery.release import current_release
from vista.errors import CheckpointError, EpochError
from vista.model.checkpoint import load
from vista.model.downstream import Downstream
from vista.runs import write_whole
from vista.summary.join import SummaryReader
from vista.train.jobs import summary_forward, usable_epochs
from vista.train.loop import batch_plan, predict
from vista.train.stage import StageContext

DICTIONARY_FILE = "dictionary.json"


class Champion(Frozen):
    """The current release and whether its model can score these rows; if not, `why` says so."""

    release: str | None
    comparable: bool
    why: str = ""


class _NotComparable(Exception):
    """Why the champion cannot score the rows of this run."""


def score_champion(stage: StageContext) -> tuple[Champion, NDArray[np.float32] | None]:
    """The champion's probabilities on the test day by candidate id, from the summaries of its own space."""
    with closing(open_catalog(stage.settings.catalog_url)) as catalog:
        release = current_release(catalog)
    if release is None:
        return Champion(release=None, comparable=False, why="nothing is released yet"), None
    try:
        scores_N = _score(stage, release)
    except _NotComparable as reason:
        return Champion(release=release.id, comparable=False, why=str(reason)), None
    return Champion(release=release.id, comparable=True), scores_N


def keep_dictionary(checkpoint: Path, dataset: Dataset, spec: FeatureSpec) -> None:
    """Write beside a checkpoint what its rows mean: a digest of the ids that it knows."""
    digest = dictionary_digest(dataset, spec)
    write_whole(checkpoint / DICTIONARY_FILE, json.dumps({"digest": digest}))


def dictionary_digest(dataset: Dataset, spec: FeatureSpec) -> str:
    """SHA-256 of the prefixes of the dictionaries that a model of `spec` knows.

    The same for a data set that has grown since, because dictionaries are only appended to; another one if
    an id has been removed or has another row.
    """
    known = (
        (dataset.items, spec.num_items),
        (dataset.users, spec.num_users),
        (dataset.categories, spec.num_categories),
    )
    digest = hashlib.sha256()
    for dictionary, rows in known:
        ids = dictionary.id_R[: rows - 1]
        digest.update(len(ids).to_bytes(8, "little") + ids.astype("<i8").tobytes())
    return digest.hexdigest()


def _score(stage: StageContext, release: Release) -> NDArray[np.float32]:
    dataset, test_day = stage.dataset, stage.dataset.split().n
    model, digest = _load(release)
    _check_features(model.spec, dataset.spec(dataset.day_start_us(test_day)))
    if digest != dictionary_digest(dataset, model.spec):
        raise _NotComparable(f"release {release.id} was trained on data with another dictionary of ids")
    examples = dataset.examples(test_day, test_day + 1)
    epochs = usable_epochs(stage.settings.catalog_url, release.space)
    _check_covered(epochs, examples.cut_us_E, release)
    try:
        reader = SummaryReader(epochs)
    except EpochError as error:
        raise _NotComparable(f"the epochs of {release.space} cannot be read: {error}") from error
    plan = batch_plan(examples, stage.recipe.downstream, max_uih=0)
    return predict(model, summary_forward(model, reader), plan, dataset.info.candidates)


def _load(release: Release) -> tuple[Downstream, str]:
    directory = Path(release.downstream)
    try:
        model, _ = load(directory)
        kept: dict[str, str] = json.loads((directory / DICTIONARY_FILE).read_text(encoding="utf-8"))
    except (CheckpointError, OSError) as error:
        raise _NotComparable(f"the model of release {release.id} cannot be read: {error}") from error
    if not isinstance(model, Downstream):
        raise _NotComparable(f"{directory} of release {release.id} is no downstream model")
    return model, kept["digest"]


def _check_features(theirs: FeatureSpec, ours: FeatureSpec) -> None:
    for name in ("tasks", "actions", "context", "dense", "num_value_buckets"):
        if getattr(theirs, name) != getattr(ours, name):
            raise _NotComparable(f"its {name} are {getattr(theirs, name)}, those of this data set are others")


def _check_covered(epochs: list[Epoch], cut_us_E: NDArray[np.int64], release: Release) -> None:
    first_cut_us = int(cut_us_E.min())
    if all(epoch.as_of_us > first_cut_us for epoch in epochs):
        raise _NotComparable(f"every epoch of {release.space} is newer than the first row of the test day")
