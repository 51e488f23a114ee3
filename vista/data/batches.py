"""Ragged batches packed by token count: B examples of any length, none split, none padded.

The sequence of batches depends on the examples, the limits, the seed and the epoch only; (epoch, step) is a
position to resume from.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from vista.data.ahead import ahead
from vista.data.schema import Batch, Examples, spans

PREFETCH = 2
"""Batches made ahead of the consumer."""


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """Which examples form which batch of one epoch."""

    examples: Examples
    max_uih: int
    order_E: NDArray[np.int64]
    first_of_step: NDArray[np.int64]  # [steps + 1] positions in order_E
    tokens_E: NDArray[np.int64]  # of the examples in this order: history tokens and candidates

    @classmethod
    def make(
        cls,
        examples: Examples,
        *,
        max_tokens: int,
        max_candidates: int,
        max_uih: int,
        seed: int,
        epoch: int,
        shuffle: bool = True,
    ) -> Self:
        """Fill global batches in order up to `max_tokens` (history tokens and candidates) and
        `max_candidates`. An example that is larger than a limit forms a batch alone: histories are cut
        to the newest `max_uih`, examples never."""
        order_E = np.arange(len(examples))
        if shuffle:
            np.random.default_rng([seed, epoch]).shuffle(order_E)
        candidates_E = examples.num_candidates_E[order_E]
        tokens_E = np.minimum(examples.history_length_E[order_E], max_uih) + candidates_E
        first = pack(tokens_E, candidates_E, max_tokens, max_candidates)
        return cls(examples, max_uih, order_E, first, tokens_E)

    @property
    def steps(self) -> int:
        return len(self.first_of_step) - 1

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> Batch:
        """The part of global batch `step` that belongs to `rank`: consecutive examples with about
        1 / world_size of the tokens, possibly none."""
        first, last = int(self.first_of_step[step]), int(self.first_of_step[step + 1])
        ends = np.cumsum(self.tokens_E[first:last])
        owner = ((ends - self.tokens_E[first:last] / 2) * world_size / ends[-1]).astype(np.int64)
        return gather(self.examples, self.order_E[first:last][owner == rank], self.max_uih)


def pack(
    tokens_E: NDArray[np.int64], candidates_E: NDArray[np.int64], max_tokens: int, max_candidates: int
) -> NDArray[np.int64]:
    """Starts of consecutive groups within both limits, and the end; a group holds at least one example.

    >>> pack(np.array([4, 4, 9, 1, 1]), np.array([1, 1, 1, 1, 1]), 8, 2).tolist()
    [0, 2, 3, 5]
    """
    token_ends, candidate_ends = np.cumsum(tokens_E), np.cumsum(candidates_E)
    firsts = [0]
    tokens = candidates = 0
    while firsts[-1] < len(tokens_E):
        fitting = min(
            int(np.searchsorted(token_ends, tokens + max_tokens, side="right")),
            int(np.searchsorted(candidate_ends, candidates + max_candidates, side="right")),
        )
        firsts.append(max(fitting, firsts[-1] + 1))
        tokens, candidates = int(token_ends[firsts[-1] - 1]), int(candidate_ends[firsts[-1] - 1])
    return np.array(firsts)


def gather(examples: Examples, chosen_B: NDArray[np.int64], max_uih: int) -> Batch:
    """The batch of these examples, each history cut to its newest `max_uih` events."""
    events, candidates = examples.events, examples.candidates
    row_L, length_B = history_rows(examples, chosen_B, max_uih)
    id_C = spans(examples.candidate_start_E[chosen_B], examples.num_candidates_E[chosen_B])
    return Batch(
        user_id_B=examples.user_id_E[chosen_B],
        user_row_B=examples.user_row_E[chosen_B],
        cut_us_B=examples.cut_us_E[chosen_B],
        seq_offsets=np.concatenate([np.zeros(1, np.int64), np.cumsum(length_B)]),
        uih_item_L=events.item_row_N[row_L].astype(np.int64),
        uih_category_L=events.category_row_N[row_L].astype(np.int64),
        uih_action_L=events.action_mask_N[row_L].astype(np.int64),
        uih_value_L=events.value_bucket_N[row_L].astype(np.int64),
        uih_time_us_L=events.event_time_us_N[row_L],
        num_candidates=examples.num_candidates_E[chosen_B],
        candidate_item_C=candidates.item_row_C[id_C].astype(np.int64),
        candidate_category_C=candidates.category_row_C[id_C].astype(np.int64),
        candidate_context_CK=candidates.context_CK[id_C].astype(np.int64),
        candidate_dense_CF=candidates.dense_CF[id_C],
        candidate_id_C=id_C,
        labels_CT=candidates.labels_CT[id_C],
    )


def history_rows(
    examples: Examples, chosen_B: NDArray[np.int64], max_uih: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions [L] of these examples' events, each history cut to its newest `max_uih`, and lengths [B]."""
    full_B = examples.history_length_E[chosen_B]
    length_B = np.minimum(full_B, max_uih)
    return spans(examples.history_start_E[chosen_B] + full_B - length_B, length_B), length_B


def rows_where(batch: Batch, mask_L: NDArray[np.bool_]) -> Batch:
    """The same users and candidates with the history rows of `mask_L`."""
    kept_before = np.append(0, np.cumsum(mask_L))
    rows = {
        field.name: getattr(batch, field.name) for field in fields(Batch) if field.name.startswith("uih_")
    }
    return replace(
        batch,
        seq_offsets=kept_before[batch.seq_offsets],
        **{name: column_L[mask_L] for name, column_L in rows.items()},
    )


def batches(plan: BatchPlan, *, start_step: int = 0, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
    """The batches of `rank` from `start_step` on, made by a thread `PREFETCH` ahead of the consumer. Closing
    the iterator ends the thread."""
    steps = range(start_step, plan.steps)
    return ahead((plan.batch(step, rank, world_size) for step in steps), PREFETCH)
