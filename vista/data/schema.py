"""Words and shapes that every later folder shares: events, the prepared data set, batches.

Shape suffixes: B users of a batch, L packed history rows, C candidates, K context columns, F dense
features, T tasks.
"""

from dataclasses import dataclass

import google_crc32c
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vista.config import Frozen

UNSEEN_ROW = 0
"""Row of an embedding table for an id that the model has not trained on."""

EVENT_SCHEMA = pa.schema(
    [
        pa.field("user_id", pa.int64(), nullable=False),
        pa.field("item_id", pa.int64(), nullable=False),
        pa.field("event_time_us", pa.int64(), nullable=False),
        pa.field("seq", pa.int64(), nullable=False),
        pa.field("action_mask", pa.uint32(), nullable=False),
        pa.field("value", pa.float32()),
        pa.field("category_id", pa.int64()),
        pa.field("surface", pa.int32()),
    ]
)
"""One schema whatever the source. Sorted by (user_id, event_time_us, seq); `seq` is the user's own arrival
number 0, 1, 2 ..."""


def bucket_of(user_id: int, buckets: int) -> int:
    """The bucket of a user: crc32c of the id as a little-endian int64, modulo `buckets`; the same everywhere.

    >>> bucket_of(0, 32), bucket_of(1, 32), bucket_of(-1, 32)
    (10, 13, 7)
    """
    checksum: int = google_crc32c.value(user_id.to_bytes(8, "little", signed=True))
    return checksum % buckets


class ContextColumn(Frozen):
    """A categorical column of a candidate: values 0 .. cardinality - 1, 0 for unknown."""

    name: str
    cardinality: int


class FeatureSpec(Frozen):
    """What a model must know about the data to size its tables; travels with every checkpoint.

    Row counts include row 0, the unseen row. Dictionaries are ordered by first appearance, so that a model
    trained until some time knows a prefix: rows at or above its counts are its unseen row.
    """

    num_items: int
    num_users: int
    num_categories: int
    num_value_buckets: int
    actions: tuple[str, ...]
    context: tuple[ContextColumn, ...]
    dense: tuple[str, ...]
    tasks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Batch:
    """Ragged, packed rows of B users. A user's history is `seq_offsets[b] .. seq_offsets[b + 1]`, oldest
    event first; its candidates are the next `num_candidates[b]` rows of the C arrays."""

    user_id_B: NDArray[np.int64]
    user_row_B: NDArray[np.int64]
    cut_us_B: NDArray[np.int64]
    seq_offsets: NDArray[np.int64]  # [B + 1]
    uih_item_L: NDArray[np.int64]
    uih_category_L: NDArray[np.int64]
    uih_action_L: NDArray[np.int64]  # action_mask
    uih_value_L: NDArray[np.int64]  # bucket of the value, 0 for none
    uih_time_us_L: NDArray[np.int64]
    num_candidates: NDArray[np.int64]  # [B]
    candidate_item_C: NDArray[np.int64]
    candidate_category_C: NDArray[np.int64]
    candidate_context_CK: NDArray[np.int64]
    candidate_dense_CF: NDArray[np.float32]
    candidate_id_C: NDArray[np.int64]  # position in the data set's candidate table
    labels_CT: NDArray[np.float32]
