"""Words and shapes that every later folder shares: events, the prepared data set, batches.

Shape suffixes: B examples of a batch, L packed history rows, C candidates, K context columns, F dense
features, T tasks; N events, E examples, U users.
"""

from dataclasses import dataclass
from functools import cache

import google_crc32c
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vista.config import Clock, Frozen

UNSEEN_ROW = 0
"""Row of an embedding table for an id that the model has not trained on."""

NO_LABEL = 255
"""Label of an event that is history only."""

DAY_US = 86_400_000_000

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


@cache
def _crc32c_table() -> NDArray[np.uint32]:
    one_byte = [google_crc32c.value(bytes([value])) for value in range(256)]
    # crc(b) = ~(table[~0 ^ b] ^ (~0 >> 8)): undone here for every byte
    table = np.empty(256, np.uint32)
    for value, checksum in enumerate(one_byte):
        table[0xFF ^ value] = (checksum ^ 0xFFFFFFFF) ^ 0x00FFFFFF
    return table


def buckets_of(user_id_B: NDArray[np.int64], buckets: int) -> NDArray[np.int64]:
    """`bucket_of` for many users.

    >>> buckets_of(np.array([0, 1, -1]), 32).tolist()
    [10, 13, 7]
    """
    bytes_B8 = np.ascontiguousarray(user_id_B, dtype="<i8").view(np.uint8).reshape(-1, 8)
    crc_B = np.full(len(bytes_B8), 0xFFFFFFFF, np.uint32)
    for byte in range(8):
        crc_B = _crc32c_table()[(crc_B ^ bytes_B8[:, byte]) & 0xFF] ^ (crc_B >> 8)
    return ((crc_B ^ 0xFFFFFFFF) % buckets).astype(np.int64)


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


class Windows(Frozen):
    """Day numbers of a first refresh: foundation trains on [first_day, k), epochs are as of the starts of
    days k .. n, downstream trains on [k, n), day n is the test."""

    first_day: int
    k: int
    n: int


class DatasetInfo(Frozen):
    """What a prepared data set holds. `digest` is its content (events, examples, candidates), whatever the
    number of buckets.

    Day 0 is the first calendar day (in the source's zone) with candidates, `last_day` the last one, the test
    day. Rows are events; users and items count the dictionaries without their unseen row. `oracle_auc` is
    known for generated data only: the AUC of the true probabilities on the candidates of the test day.
    """

    name: str
    digest: str
    clock: Clock
    first_day: int
    last_day: int
    rows: int
    users: int
    items: int
    candidates: int
    rejects: int
    duplicates: int
    tasks: tuple[str, ...]
    oracle_auc: float | None


@dataclass(frozen=True, slots=True)
class Days:
    """The calendar of a data set: day 0 starts at `origin_us` (UTC microseconds of a midnight of the source's
    own zone)."""

    origin_us: int

    def of(self, time_us_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """Day numbers; negative before day 0."""
        day_N: NDArray[np.int64] = (time_us_N - self.origin_us) // DAY_US
        return day_N

    def start_us(self, day: int) -> int:
        return self.origin_us + day * DAY_US

    def first_after(self, time_us: int) -> int:
        """The first day that starts at `time_us` or later.

        >>> Days(10).first_after(10), Days(10).first_after(11)
        (0, 1)
        """
        return -((self.origin_us - time_us) // DAY_US)


@dataclass(frozen=True, slots=True)
class Events:
    """Columns of N events, sorted by (user_id, event_time_us, seq) within a bucket, a user's rows together.
    A label is 255 where the event is not a candidate."""

    user_id_N: NDArray[np.int64]
    item_row_N: NDArray[np.int32]
    category_row_N: NDArray[np.int32]
    action_mask_N: NDArray[np.uint32]
    value_bucket_N: NDArray[np.int32]
    event_time_us_N: NDArray[np.int64]
    seq_N: NDArray[np.int64]
    labels_NT: NDArray[np.uint8]

    def user_starts(self) -> NDArray[np.int64]:
        """[N] position of the first event of each event's user."""
        first_N = np.ones(len(self.user_id_N), bool)
        first_N[1:] = self.user_id_N[1:] != self.user_id_N[:-1]
        starts_U = np.flatnonzero(first_N)
        starts_N: NDArray[np.int64] = starts_U[np.cumsum(first_N) - 1]
        return starts_N

    def take(self, position_M: NDArray[np.int64]) -> "Events":
        """The events at these positions."""
        return Events(
            user_id_N=self.user_id_N[position_M],
            item_row_N=self.item_row_N[position_M],
            category_row_N=self.category_row_N[position_M],
            action_mask_N=self.action_mask_N[position_M],
            value_bucket_N=self.value_bucket_N[position_M],
            event_time_us_N=self.event_time_us_N[position_M],
            seq_N=self.seq_N[position_M],
            labels_NT=self.labels_NT[position_M],
        )


@dataclass(frozen=True, slots=True)
class Candidates:
    """Columns of the candidate table; `candidate_id` is the position in it, ordered by (user_id, time, seq),
    a positive before its sampled negatives."""

    user_id_C: NDArray[np.int64]
    item_row_C: NDArray[np.int32]
    category_row_C: NDArray[np.int32]
    event_time_us_C: NDArray[np.int64]
    day_C: NDArray[np.int32]
    history_length_C: NDArray[np.int64]  # before truncation
    labels_CT: NDArray[np.float32]
    context_CK: NDArray[np.int32]
    dense_CF: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Examples:
    """E examples: a user's history `history_start .. + history_length` of `events` (all that precede
    the cut, before truncation), and the candidates `candidate_start .. + num_candidates` of `candidates`, all
    of one day."""

    user_id_E: NDArray[np.int64]
    user_row_E: NDArray[np.int64]
    day_E: NDArray[np.int32]
    cut_us_E: NDArray[np.int64]
    history_start_E: NDArray[np.int64]
    history_length_E: NDArray[np.int64]
    candidate_start_E: NDArray[np.int64]
    num_candidates_E: NDArray[np.int64]
    events: Events
    candidates: Candidates

    def __len__(self) -> int:
        return len(self.user_id_E)

    def where(self, chosen_E: NDArray[np.bool_] | NDArray[np.int64]) -> "Examples":
        """The examples of a mask, or at positions, with the same events and candidates."""
        return Examples(
            user_id_E=self.user_id_E[chosen_E],
            user_row_E=self.user_row_E[chosen_E],
            day_E=self.day_E[chosen_E],
            cut_us_E=self.cut_us_E[chosen_E],
            history_start_E=self.history_start_E[chosen_E],
            history_length_E=self.history_length_E[chosen_E],
            candidate_start_E=self.candidate_start_E[chosen_E],
            num_candidates_E=self.num_candidates_E[chosen_E],
            events=self.events,
            candidates=self.candidates,
        )

    def candidate_ids(self) -> NDArray[np.int64]:
        """The candidates of these examples, in example order."""
        return spans(self.candidate_start_E, self.num_candidates_E)


def spans(start_E: NDArray[np.int64], length_E: NDArray[np.int64]) -> NDArray[np.int64]:
    """The positions of many ranges, one after the other.

    >>> spans(np.array([5, 0]), np.array([2, 3])).tolist()
    [5, 6, 0, 1, 2]
    """
    ends_E = np.cumsum(length_E)
    total = int(ends_E[-1]) if len(ends_E) else 0
    shift_L: NDArray[np.int64] = np.repeat(start_E - (ends_E - length_E), length_E)
    shift_L += np.arange(total)
    return shift_L


def places(sorted_N: NDArray[np.int64], value_C: NDArray[np.int64]) -> NDArray[np.int64]:
    """np.searchsorted (left) by rising values: several times faster than jumping through a large array.

    >>> places(np.array([1, 3, 3]), np.array([3, 0, 9])).tolist()
    [1, 0, 3]
    """
    order_C = np.argsort(value_C)
    place_C = np.empty(len(value_C), np.int64)
    place_C[order_C] = np.searchsorted(sorted_N, value_C[order_C])
    return place_C


@dataclass(frozen=True, slots=True)
class Batch:
    """Ragged, packed rows of B examples: a user, a history as of a cut, candidates at or after it. One user
    may come several times, with different cuts. The history is `seq_offsets[b] .. seq_offsets[b + 1]`, oldest
    event first; the candidates are the next `num_candidates[b]` rows of the C arrays."""

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


@dataclass(frozen=True, slots=True)
class HistoryBatch:
    """Users without candidates, to be summarised. `seq_B` is the largest arrival number and
    `event_time_us_B` the newest time of the user's events before the batch's cut; -1 for a user who has
    none. `seq_L` are the arrival numbers of the histories' rows; all events with one below `whole_until_B`
    lie before the cut."""

    batch: Batch
    seq_B: NDArray[np.int64]
    event_time_us_B: NDArray[np.int64]
    seq_L: NDArray[np.int64]
    whole_until_B: NDArray[np.int64]
