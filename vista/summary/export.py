"""Stage 1 over the users of one bucket: the shard of one epoch. Users whose records can be copied from an
earlier epoch do not go through the model.

Shape suffixes: B users, S seeds, D width.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from vista.config import Frozen
from vista.data.batches import rows_where
from vista.data.dataset import Dataset
from vista.data.schema import Batch, HistoryBatch
from vista.model.incremental import Incremental
from vista.model.inputs import tensors
from vista.model.ranker import Ranker
from vista.summary.codec import codec_of, encode_summaries
from vista.summary.record import renewed, space_id
from vista.summary.state import encode_states
from vista.summary.table import Shard, Work, write_shard
from vista.summary.unchanged import EarlierRecords, inputs_digests, users_where

MAX_TOKENS = 65_536
COMPANY = 8


class ExportedEpoch(Frozen):
    """What the records of one epoch say about it, and how they are made. `made_by` names what a record's body
    depends on beside the user's events and its codec: checkpoint and code. Where all of it is equal, the body
    is copied from `earlier`, the files of another epoch of the space."""

    space: str
    epoch: int
    as_of_us: int
    codec: str
    zstd: bool
    made_by: str
    earlier: str | None = None
    states: bool = False


@dataclass
class _Rows:
    """A shard as it grows, a part of its users at a time."""

    user_id_B: list[NDArray[np.int64]] = field(default_factory=list)
    seq_B: list[NDArray[np.int64]] = field(default_factory=list)
    event_time_us_B: list[NDArray[np.int64]] = field(default_factory=list)
    inputs_digest_B: list[NDArray[np.int64]] = field(default_factory=list)
    records: list[bytes] = field(default_factory=list)
    states: list[bytes] = field(default_factory=list)
    work: list[Work] = field(default_factory=list)


def export_bucket(
    model: Ranker, max_uih: int, dataset: Dataset, bucket: int, epoch: ExportedEpoch, directory: Path | str
) -> Shard:
    """Summarise every user of `bucket` from events before `as_of_us`; write the shard into `directory`.

    If states are wanted, all users are computed: a state holds other events than its record. Raises
    `InputError` if a summary is not finite, or if states are wanted and a history is cut off; `EpochError` if
    `earlier` is damaged.
    """
    incremental = Incremental(model, max_uih) if epoch.states else None
    before = EarlierRecords(None if epoch.states else epoch.earlier, bucket, space_id(epoch.space))
    rows = _Rows()
    for part in dataset.histories(epoch.as_of_us, bucket, max_uih, MAX_TOKENS):
        rows.user_id_B.append(part.batch.user_id_B)
        rows.seq_B.append(part.seq_B)
        rows.event_time_us_B.append(part.event_time_us_B)
        _add_records(rows, model, part, epoch, before)
        if incremental is not None:
            rows.states += _states(incremental, part, epoch)
    return write_shard(
        directory,
        bucket,
        _joined(rows.user_id_B),
        _joined(rows.seq_B),
        _joined(rows.event_time_us_B),
        rows.records,
        rows.states if epoch.states else None,
        inputs_digests=_joined(rows.inputs_digest_B),
        work=Work.total(rows.work),
        copied_from=before.taken_from,
    )


def _add_records(
    rows: _Rows, model: Ranker, part: HistoryBatch, epoch: ExportedEpoch, before: EarlierRecords
) -> None:
    """The records of a part's users, copied or computed, in the order of the users."""
    digest_B = inputs_digests(part.batch, f"{epoch.made_by} {epoch.codec} {epoch.zstd}")
    rows.inputs_digest_B.append(digest_B)
    users = zip(part.batch.user_id_B.tolist(), digest_B.tolist(), strict=True)
    copied = [before.take(user, digest) for user, digest in users]
    changed_B = np.array([data is None for data in copied], bool)
    started_cpu_s = time.process_time()
    computed: Iterator[bytes] = iter(())
    if changed_B.any():
        computed = iter(_records(model, users_where(part, changed_B), epoch))
    model_cpu_s = time.process_time() - started_cpu_s
    for data, seq, time_us in zip(copied, part.seq_B.tolist(), part.event_time_us_B.tolist(), strict=True):
        rows.records.append(
            next(computed)
            if data is None
            else renewed(data, epoch=epoch.epoch, as_of_us=epoch.as_of_us, seq=seq, event_time_us=time_us)
        )
    rows_B = np.diff(part.batch.seq_offsets) + model.config.seeds
    rows.work.append(
        Work(
            recomputed=int(changed_B.sum()),
            republished=int((~changed_B).sum()),
            recomputed_rows=int(rows_B[changed_B].sum()),
            republished_rows=int(rows_B[~changed_B].sum()),
            model_cpu_s=model_cpu_s,
        )
    )


def in_company(batch: Batch) -> Batch:
    """The users of `batch`, then `COMPANY` users of one event each, for whom nobody asks.

    A matrix product of three rows or fewer is added up in another order than one of many, so that without
    them a user's last bits would depend on who else is computed.
    """
    none_B, last = np.zeros(COMPANY, np.int64), batch.seq_offsets[-1]
    added = {
        column.name: np.append(getattr(batch, column.name), none_B)
        for column in fields(Batch)
        if column.name.startswith("uih_") or column.name.endswith("_B") or column.name == "num_candidates"
    }
    offsets = np.append(batch.seq_offsets, last + 1 + np.arange(COMPANY))
    return replace(batch, seq_offsets=offsets, **added)


def _records(model: Ranker, part: HistoryBatch, epoch: ExportedEpoch) -> list[bytes]:
    with torch.inference_mode():
        summary_BSD = model.summarise(tensors(in_company(part.batch), "cpu"))
    return encode_summaries(
        summary_BSD[:-COMPANY].float().numpy(),
        space_id=space_id(epoch.space),
        epoch=epoch.epoch,
        as_of_us=epoch.as_of_us,
        user_id_B=part.batch.user_id_B,
        seq_B=part.seq_B,
        event_time_us_B=part.event_time_us_B,
        codec=codec_of(epoch.codec),
        zstd=epoch.zstd,
    )


def _states(incremental: Incremental, part: HistoryBatch, epoch: ExportedEpoch) -> list[bytes]:
    """States hold arrivals without a gap: a user's events up to the first that is not before `as_of_us`. The
    record may hold later arrivals; a state that follows it takes them again."""
    batch = part.batch
    users = np.repeat(np.arange(len(batch.user_id_B)), np.diff(batch.seq_offsets))
    whole_L = part.seq_L < part.whole_until_B[users]
    state = incremental.empty(len(batch.user_id_B))
    state = incremental.update(state, rows_where(batch, whole_L), part.seq_L[whole_L])
    return encode_states(state, space_id=space_id(epoch.space), epoch=epoch.epoch, user_id_B=batch.user_id_B)


def _joined(parts: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    return np.concatenate([*parts, np.empty(0, np.int64)])
