"""Stage 1 over the users of one bucket: the shard of one epoch.

Shape suffixes: B users, S seeds, D width.
"""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from vista.config import Frozen
from vista.data.batches import rows_where
from vista.data.dataset import Dataset
from vista.data.schema import HistoryBatch
from vista.model.incremental import Incremental
from vista.model.inputs import tensors
from vista.model.ranker import Ranker
from vista.summary.codec import codec_of, encode_summaries
from vista.summary.record import space_id
from vista.summary.state import encode_states
from vista.summary.table import Shard, write_shard

MAX_TOKENS = 65_536


class ExportedEpoch(Frozen):
    """What the records of one epoch say about it, and how they are written."""

    space: str
    epoch: int
    as_of_us: int
    codec: str
    zstd: bool
    states: bool = False


def export_bucket(
    model: Ranker, max_uih: int, dataset: Dataset, bucket: int, epoch: ExportedEpoch, directory: Path | str
) -> Shard:
    """Summarise every user of `bucket` from events before `as_of_us`; write the shard into `directory`.

    Raises `InputError` if a summary is not finite, or if states are wanted and a history is cut off.
    """
    incremental = Incremental(model, max_uih) if epoch.states else None
    users: list[NDArray[np.int64]] = []
    seqs: list[NDArray[np.int64]] = []
    times: list[NDArray[np.int64]] = []
    records: list[bytes] = []
    states: list[bytes] = []
    for part in dataset.histories(epoch.as_of_us, bucket, max_uih, MAX_TOKENS):
        users.append(part.batch.user_id_B)
        seqs.append(part.seq_B)
        times.append(part.event_time_us_B)
        records += _records(model, part, epoch)
        if incremental is not None:
            states += _states(incremental, part, epoch)
    columns = (_joined(users), _joined(seqs), _joined(times), records)
    return write_shard(directory, bucket, *columns, states if epoch.states else None)


def _records(model: Ranker, part: HistoryBatch, epoch: ExportedEpoch) -> list[bytes]:
    with torch.inference_mode():
        summary_BSD = model.summarise(tensors(part.batch, "cpu")).float().numpy()
    return encode_summaries(
        summary_BSD,
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
