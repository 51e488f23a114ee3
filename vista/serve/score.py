"""Score candidates for a user from the summary in the nearest region's store; an answer always comes.

Shape suffixes: C candidates, T tasks, S seeds, D width.
"""

import re
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from vista.config import Frozen, Settings
from vista.data.dataset import Dataset
from vista.data.features import serving_batch
from vista.data.schema import UNSEEN_ROW
from vista.delivery.catalog import open_catalog
from vista.delivery.epochs import known_epoch
from vista.delivery.interfaces import Release
from vista.delivery.reader import Read, RegionReader
from vista.delivery.regions import open_regions
from vista.delivery.release import current_release, nothing_released
from vista.errors import InputError, RecordError, SpaceMismatchError
from vista.model.checkpoint import load
from vista.model.downstream import Downstream
from vista.model.inputs import tensors
from vista.runs import RunDirectory
from vista.summary.codec import decode_summary

MAX_CANDIDATES = 10_000


class Answer(Frozen):
    """Probabilities by candidate and task, and what they were made of.

    `degraded` says why the seeds-only summary stood in for the user's own; region and age are None then.
    `unknown_items` are candidates that the model has not trained on: they share the unseen row.
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
    unknown_items: tuple[str, ...]


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
            raise InputError(nothing_released(settings))
        epoch = known_epoch(catalog, release.space, release.epoch)
    model = load_downstream(release)
    run = _run_of(release, settings)
    dataset = Dataset.open(run.data)
    (user_id,), items = _ids(dataset, "user", [user]), _ids(dataset, "item", candidates)
    with (
        open_regions(settings, epoch.buckets) as stores,
        closing(RegionReader(stores, release, epoch.buckets)) as reader,
    ):
        (read,) = reader.read([user_id])
    found = _decoded(read)
    clock_us = dataset.newest_event_us
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
        degraded=_degraded(found, user, known=bool(dataset.users.rows_of(np.array([user_id]))[0])),
        unknown_items=_unknown(model, dataset, candidates, items),
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


def _decoded(read: Read) -> Found:
    """The summary of a record. One with a right checksum that cannot be decoded was written so: no other
    region has it better."""
    if read.data is None:
        return Found(None, why=read.why)
    try:
        record, summary_SD = decode_summary(read.data)
    except RecordError as error:
        return Found(None, why=f"region {read.region}: {error}")
    return Found(summary_SD, region=read.region, as_of_us=record.as_of_us, seq=record.seq)


def _degraded(found: Found, user: str, *, known: bool) -> str | None:
    if found.why is None or known:
        return found.why
    return f"user {user!r} is in no event of the release's data; {found.why}"


def _unknown(
    model: Downstream, dataset: Dataset, candidates: Sequence[str], items: Sequence[int]
) -> tuple[str, ...]:
    row_C = dataset.items.rows_of(np.array(items))
    unseen_C = (row_C == UNSEEN_ROW) | (row_C >= model.spec.num_items)
    return tuple(candidate for candidate, unseen in zip(candidates, unseen_C, strict=True) if unseen)


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


def _ids(dataset: Dataset, name: str, texts: Sequence[str]) -> list[int]:
    """Numeric ids of the texts of the command line; text ids of the user's own files are looked up."""
    if not 0 < len(texts) <= MAX_CANDIDATES:
        raise InputError(f"{len(texts)} {name} ids: give 1 .. {MAX_CANDIDATES:,}, separated by commas")
    known = dataset.texts(name)
    if known is not None:
        rows = {text: row for row, text in enumerate(known)}
        return [rows.get(text, len(rows)) for text in texts]  # the number of a text that is not known yet
    return [_number(name, text) for text in texts]


def _number(name: str, text: str) -> int:
    try:
        if not re.fullmatch(r"[0-9]+", text):  # int() also takes -17, 1_7 and digits of other scripts
            raise ValueError(text)
        return int(np.int64(int(text)))
    except (ValueError, OverflowError) as error:
        raise InputError(
            f"{name} id {text!r}: write a whole number from 0 to 2^63 - 1 (text ids need a mapping with "
            "string_ids)"
        ) from error
