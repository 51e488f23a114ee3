"""Score candidates for a user from the summary in the nearest region's store; an answer always comes.

Shape suffixes: C candidates, T tasks, S seeds, D width.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from vista.config import Frozen, Settings
from vista.data.dataset import Dataset
from vista.data.features import serving_batch
from vista.data.mapping import StringIds
from vista.delivery.catalog import open_catalog
from vista.delivery.deliver import known_epoch, newest_event_us
from vista.delivery.interfaces import Epoch, Release, Store
from vista.delivery.readiness import RegionState
from vista.delivery.regions import open_regions
from vista.delivery.release import current_release
from vista.errors import BackendError, InputError, RecordError, RegionNotReadyError, SpaceMismatchError
from vista.model.checkpoint import load
from vista.model.downstream import Downstream
from vista.model.inputs import tensors
from vista.runs import RunDirectory
from vista.summary.codec import decode_summary
from vista.summary.record import space_id

log = logging.getLogger(__name__)

MAX_CANDIDATES = 10_000


class Answer(Frozen):
    """Probabilities by candidate and task, and what they were made of.

    `degraded` says why the seeds-only summary stood in for the user's own; region and age are None then.
    """

    user: str
    scores: dict[str, dict[str, float]]
    release: str
    space: str
    epoch: int
    region: str | None
    summary_age_s: float | None
    summary_seq: int | None
    degraded: str | None


@dataclass(frozen=True, slots=True)
class Found:
    """A user's summary in one region; `summary_SD` is None, with the reason, if there is none."""

    summary_SD: NDArray[np.float32] | None
    region: str | None = None
    as_of_us: int | None = None
    seq: int | None = None
    why: str | None = None


def score(settings: Settings, user: str, candidates: Sequence[str]) -> Answer:
    """Score with the current release. The clock is the newest event of the release's data set.

    Raises `InputError` for bad ids or if nothing is released, `CheckpointError`, `SpaceMismatchError`.
    """
    with closing(open_catalog(settings.catalog_url)) as catalog:
        release = current_release(catalog)
        if release is None:
            raise InputError(
                f"nothing is released in {settings.catalog_url}: set VISTA_HOME to the deployment's folder, "
                "or run `make run` first"
            )
        epoch = known_epoch(catalog, release.space, release.epoch)
    model = load_downstream(release)
    run = _run_of(release, settings)
    dataset = Dataset.open(run.data)
    (user_id,), items = _ids(run.data, "user", [user]), _ids(run.data, "item", candidates)
    with open_regions(settings, epoch.buckets) as stores:
        found = read_summary(stores, release, epoch, user_id)
    clock_us = newest_event_us(run.data)
    scores_CT = _probabilities(model, found, dataset, user_id, items, clock_us + 1)
    return Answer(
        user=user,
        scores={
            candidate: dict(zip(dataset.info.tasks, row, strict=True))
            for candidate, row in zip(candidates, scores_CT.tolist(), strict=True)
        },
        release=release.id,
        space=release.space,
        epoch=release.epoch,
        region=found.region,
        summary_age_s=None if found.as_of_us is None else (clock_us - found.as_of_us) / 1e6,
        summary_seq=found.seq,
        degraded=found.why,
    )


def load_downstream(release: Release) -> Downstream:
    """The release's model. Raises `CheckpointError`, `SpaceMismatchError` if it reads another space."""
    model, meta = load(Path(release.downstream))
    if not isinstance(model, Downstream) or meta.space != release.space:
        raise SpaceMismatchError(
            f"{release.downstream} is a {meta.kind} model of space {meta.space}, release {release.id} needs "
            f"a downstream model of {release.space}: roll back"
        )
    return model


def read_summary(stores: Mapping[str, Store], release: Release, epoch: Epoch, user_id: int) -> Found:
    """The user's summary from the nearest region that holds the release's whole epoch.

    A region that cannot be read, is not complete or answers with damaged bytes is passed over. Raises
    `SpaceMismatchError` for a record of another space, epoch or user.
    """
    reasons: list[str] = []
    for name, store in stores.items():
        try:
            return _read(name, store, release, epoch, user_id)
        except (BackendError, RecordError, RegionNotReadyError) as error:
            log.warning("region %s is passed over: %s", name, error)
            reasons.append(f"region {name}: {error}")
    return Found(None, why="; ".join(reasons))


def _read(name: str, store: Store, release: Release, epoch: Epoch, user_id: int) -> Found:
    if not RegionState.of(name, store, epoch.buckets).complete(release.space, release.epoch):
        raise RegionNotReadyError(f"it does not hold all of epoch {release.epoch} of {release.space}")
    (data,) = store.get_many(release.space, release.epoch, [user_id])
    if data is None:
        return Found(None, why=f"region {name} holds no summary of this user")
    record, summary_SD = decode_summary(data)
    found = (record.space_id, record.epoch, record.user_id)
    if found != (space_id(release.space), release.epoch, user_id):
        raise SpaceMismatchError(
            f"region {name} answered for user {user_id}, epoch {release.epoch} with the record of user "
            f"{record.user_id}, epoch {record.epoch}: empty its store, it refills from the log"
        )
    return Found(summary_SD, region=name, as_of_us=record.as_of_us, seq=record.seq)


def _probabilities(
    model: Downstream, found: Found, dataset: Dataset, user_id: int, items: Sequence[int], cut_us: int
) -> NDArray[np.float32]:
    recent_tail = model.config.recent_tail
    batch = tensors(serving_batch(dataset, user_id, items, cut_us, recent_tail), "cpu")
    summary_SD = model.fallback_summary_SD
    if found.summary_SD is not None:
        if found.summary_SD.shape != tuple(summary_SD.shape):
            raise SpaceMismatchError(
                f"the summary has shape {found.summary_SD.shape}, the model reads {tuple(summary_SD.shape)}: "
                "a change of shape starts a new space"
            )
        summary_SD = torch.from_numpy(found.summary_SD)
    with torch.inference_mode():
        logits_CT = model(batch, summary_SD[None]).logits_CT
    probabilities_CT: NDArray[np.float32] = torch.sigmoid(logits_CT).numpy()
    return probabilities_CT


def _run_of(release: Release, settings: Settings) -> RunDirectory:
    """The run that made the release: its data set has the dictionaries that the model knows."""
    try:
        run_id = Path(release.downstream).relative_to(settings.runs).parts[0]
    except ValueError as error:
        raise InputError(
            f"release {release.id} was made outside of {settings.runs}: set VISTA_RUNS to its runs folder"
        ) from error
    return RunDirectory(settings.runs / run_id)


def _ids(data: Path, name: str, texts: Sequence[str]) -> list[int]:
    """Numeric ids of the texts of the command line; text ids of the user's own files are looked up."""
    if not 0 < len(texts) <= MAX_CANDIDATES:
        raise InputError(f"{len(texts)} {name} ids: give 1 .. {MAX_CANDIDATES:,}, separated by commas")
    path = data / f"ids-{name}.parquet"
    if path.exists():
        return [int(row) for row in StringIds(path).rows(pl.Series(list(texts), dtype=pl.String))]
    return [_number(name, text) for text in texts]


def _number(name: str, text: str) -> int:
    try:
        if not re.fullmatch(r"-?[0-9]+", text):  # int() also takes 1_7 and digits of other scripts
            raise ValueError(text)
        return int(np.int64(int(text)))
    except (ValueError, OverflowError) as error:
        raise InputError(
            f"{name} id {text!r}: write a whole number of 64 bits (text ids need a mapping with string_ids)"
        ) from error
