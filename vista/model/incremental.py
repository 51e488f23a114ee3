"""Summaries that follow their users event by event.

One layer of quasi-linear attention reads a history through a sum over its events, phi(K)^T V, and through
counts. Kept per user, they take a new event in constant time, and exactly: the history is not read again. In
deeper models, with positions or truncation an event's part depends on other events, and a summary has to be
computed anew.

Shape suffixes: B users, L packed rows of new events, S seeds, H heads, D width of keys, E width of values,
A actions.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernels import qla_read, qla_state
from vista.config import incremental_obstacles
from vista.data.batches import rows_where
from vista.data.schema import Batch
from vista.errors import InputError
from vista.model.attention import QuasiLinearSources
from vista.model.decay import fading, newest_us
from vista.model.inputs import log_lengths, segment_sum, tensors
from vista.model.ranker import Ranker, VistaHistory
from vista.model.summariser import Block

PART_ROWS = 2**16
"""Rows that are summed at once: of a history of a million events all in float64 would be gigabytes."""


@dataclass(frozen=True, slots=True)
class SummaryState:
    """What the summaries of B users are made of, in float64: the events with arrival numbers 0 .. seq.

    Sums are weighed by the time of the newest event, if the model has a half-life.
    """

    seq_B: Tensor  # -1 for none
    event_time_us_B: Tensor  # of the newest event, -1 for none
    weight_B: Tensor  # sum of the events' weights: their number, without a half-life
    actions_BA: Tensor  # events with each action
    kv_BHDE: Tensor  # sum of weight * phi(k)^T v


class Incremental:
    """Keeps states of one checkpoint up to date, and reads summaries from them."""

    def __init__(self, model: Ranker, max_uih: int) -> None:
        """Raises `InputError` that names the condition, if the model's summaries are no such sums."""
        if obstacles := incremental_obstacles(model.config):
            raise InputError(f"an event cannot be added to these summaries: {obstacles}; change the model")
        assert isinstance(model.history, VistaHistory), "only slot 'vista' has summaries"
        self.model = model.eval()
        self.max_uih = max_uih
        self.half_life_s = model.config.half_life_s
        self.summariser = model.history.summariser
        (block,) = self.summariser.blocks
        assert isinstance(block, Block)
        assert isinstance(block.qlu.attention, QuasiLinearSources)
        self.block, self.attention = block, block.qlu.attention

    def empty(self, users: int) -> SummaryState:
        """The state of users without events."""
        config = self.model.config
        width = config.width // config.heads
        none_B = torch.full((users,), -1)
        return SummaryState(
            seq_B=none_B,
            event_time_us_B=none_B,
            weight_B=torch.zeros(users, dtype=torch.float64),
            actions_BA=torch.zeros(users, len(self.model.spec.actions), dtype=torch.float64),
            kv_BHDE=torch.zeros(users, config.heads, width, width, dtype=torch.float64),
        )

    @torch.inference_mode()
    def update(self, state: SummaryState, events: Batch, seq_L: NDArray[np.int64]) -> SummaryState:
        """The state with those of `events` that it does not hold yet; user b of one is user b of the other.

        Events of any time may come, late ones too, but in the order of their arrival numbers `seq_L`. Raises
        `InputError` if one is missing in between, if the model would read no more than `max_uih` of them, or
        if the state is not of such a model and so many users.
        """
        self._check_state(state, len(events.num_candidates))
        self._check_length(events, seq_L)
        next_L = next_arrivals(state.seq_B.numpy(), events, seq_L)
        events, seq_L = rows_where(events, next_L), seq_L[next_L]
        uih = self.model.uih(tensors(events, "cpu"))
        newest_B = newest_us(uih, state.event_time_us_B)
        faded_B = fading(newest_B - state.event_time_us_B, self.half_life_s)
        weight_L = fading(newest_B[uih.user_L] - uih.time_us_L, self.half_life_s)
        k_LHD, v_LHE = self.block.key_value(self.summariser.order(uih))
        kv_BHDE = self._sum(k_LHD, v_LHE, weight_L, uih.seq_offsets)
        users = len(newest_B)
        return SummaryState(
            seq_B=state.seq_B.scatter_reduce(0, uih.user_L, torch.from_numpy(seq_L), "amax"),
            event_time_us_B=newest_B,
            weight_B=state.weight_B * faded_B + segment_sum(weight_L, uih.user_L, users),
            actions_BA=state.actions_BA + segment_sum(uih.actions_LA.double(), uih.user_L, users),
            kv_BHDE=state.kv_BHDE * faded_B[:, None, None, None] + kv_BHDE,
        )

    @torch.inference_mode()
    def summary(self, state: SummaryState) -> Tensor:
        """summary_BSD, as the model computes it from the whole history."""
        seeds_SD = self.summariser.seeds_SD
        lengths_BP = log_lengths((state.seq_B + 1).unsqueeze(1).float(), state.actions_BA.float())
        seeds_BSD = seeds_SD + self.summariser.lengths(lengths_BP).unsqueeze(1)
        k, v = self.block.key_value(seeds_BSD.flatten(0, 1))
        offsets = torch.arange(len(seeds_BSD) + 1) * len(seeds_SD)
        sources_B = state.weight_B + len(seeds_SD)
        kv_BHDE = state.kv_BHDE + self._sum(k, v, torch.ones(len(k)), offsets)
        kv_BHDE = kv_BHDE / sources_B[:, None, None, None]

        def read(q_BSHD: Tensor) -> Tensor:
            phi, phi_out = self.attention.phi, self.attention.phi_out
            return qla_read(q_BSHD, kv_BHDE.float(), phi=phi, phi_out=phi_out)

        summary_BSD: Tensor = self.summariser.norm(self.block.read(seeds_BSD, read))
        return summary_BSD

    def _sum(self, k_LHD: Tensor, v_LHE: Tensor, weight_L: Tensor, seq_offsets: Tensor) -> Tensor:
        """Sum over each user's rows of weight * phi(k)^T v in float64, some rows at a time."""
        none_B = torch.zeros_like(seq_offsets[1:])
        sum_BHDE = torch.zeros((), dtype=torch.float64)
        for first in range(0, max(1, len(k_LHD)), PART_ROWS):
            rows = slice(first, first + PART_ROWS)
            offsets = seq_offsets.clamp(rows.start, rows.stop) - rows.start
            v_RHE = v_LHE[rows].double() * weight_L[rows, None, None]
            mean_BHDE = qla_state(k_LHD[rows].double(), v_RHE, offsets, none_B, phi=self.attention.phi)
            sum_BHDE = sum_BHDE + mean_BHDE * offsets.diff()[:, None, None, None]
        return sum_BHDE

    def _check_state(self, state: SummaryState, users: int) -> None:
        for name in SummaryState.__dataclass_fields__:
            found, wanted = (tuple(getattr(one, name).shape) for one in (state, self.empty(users)))
            if found != wanted:
                raise InputError(
                    f"the state's {name} is {found}, this model's of {users} users {wanted}: give the states "
                    "of its own checkpoint, one for each user of the events"
                )

    def _check_length(self, events: Batch, seq_L: NDArray[np.int64]) -> None:
        if len(seq_L) and seq_L.max() >= self.max_uih:
            user = events.user_id_B[np.searchsorted(events.seq_offsets, np.argmax(seq_L), side="right") - 1]
            raise InputError(
                f"user {user} has {seq_L.max() + 1:,} events, the model reads the newest {self.max_uih:,}: "
                "what is cut off cannot be taken out of a sum; train with a larger max_uih"
            )


def next_arrivals(
    held_seq_B: NDArray[np.int64], events: Batch, seq_L: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """[L] the rows that come next for their users, each arrival number once; those held already are not among
    them. Raises `InputError` for an event that comes before an earlier arrival."""
    user_L = np.repeat(np.arange(len(held_seq_B)), np.diff(events.seq_offsets))
    order_L = np.lexsort((seq_L, user_L))
    user, seq = user_L[order_L], seq_L[order_L]
    new = seq > held_seq_B[user]
    new[1:] &= (seq[1:] != seq[:-1]) | (user[1:] != user[:-1])
    user, seq = user[new], seq[new]
    expected = held_seq_B[user] + 1 + np.arange(len(user)) - np.searchsorted(user, user)
    if (early := seq != expected).any():
        first = int(np.argmax(early))
        raise InputError(
            f"user {events.user_id_B[user[first]]}: event {seq[first]} came before event {expected[first]}: "
            "give a user's events in the order of their arrival; if one is lost, export the state again"
        )
    next_L = np.zeros(len(seq_L), bool)
    next_L[order_L[new]] = True
    return next_L
