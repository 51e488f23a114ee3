"""Stage 1: a user's whole history becomes S summary vectors (section 3.2).

What treats rows alone goes through `by_rows`, so that a history may have a million events.

Shape suffixes: B users, L packed history rows, M packed rows of [uih ; seeds], S seeds, H heads, D width,
E width of a head, P length features.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vista.config import ModelConfig
from vista.model.attention import Packed, attention_of
from vista.model.blocks import SGLU, SRMSNorm
from vista.model.decay import source_weights
from vista.model.inputs import Uih, length_features, num_length_features
from vista.model.recompute import by_rows

GAP_BUCKETS = 40
"""Log2 buckets of seconds: bucket 39 is centuries; 0 is a user's first event."""


def reverse_positions(seq_offsets: Tensor, user_L: Tensor, max_positions: int) -> Tensor:
    """Rows from the user's newest event (0), clipped at `max_positions - 1`."""
    rows_L = torch.arange(user_L.numel(), device=user_L.device)
    return (seq_offsets[1:][user_L] - 1 - rows_L).clamp(max=max_positions - 1)


def gap_buckets(time_us_L: Tensor, user_L: Tensor) -> Tensor:
    """1 + floor(log2(1 + seconds since the user's previous event)); 0 for a user's first event.

    Measured to the previous event, so that appending an event changes nothing before it.
    """
    gap_s = (time_us_L[1:] - time_us_L[:-1]).clamp(min=0).double() / 1e6
    bucket = (1 + (1 + gap_s).log2().floor().long()).clamp(max=GAP_BUCKETS - 1)
    bucket_L = torch.zeros_like(time_us_L)
    bucket_L[1:] = bucket.where(user_L[1:] == user_L[:-1], 0)
    return bucket_L


class OrderEmbedding(nn.Module):
    """Normal tokens plus the reverse position and the gap: full attention is otherwise blind to order.

    The norm lets 1e-4 embeddings speak from the first step: without it training stays on a plateau. With
    `positions` off the order is not told.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm = SRMSNorm()
        self.positions = config.positions
        if config.positions:
            self.position = nn.Embedding(config.max_positions, config.width)
            self.gap = nn.Embedding(GAP_BUCKETS, config.width)
            for table in (self.position, self.gap):
                nn.init.normal_(table.weight, std=config.embedding_init)

    def forward(self, uih: Uih) -> Tensor:
        if not self.positions:
            return by_rows(self.norm, self, uih.tokens_LD)
        positions_L = reverse_positions(uih.seq_offsets, uih.user_L, self.position.num_embeddings)
        gaps_L = gap_buckets(uih.time_us_L, uih.user_L)
        return by_rows(self._ordered, self, uih.tokens_LD, positions_L, gaps_L)

    def _ordered(self, tokens_LD: Tensor, positions_L: Tensor, gaps_L: Tensor) -> Tensor:
        # index_select: the backward pass of nn.Embedding is four times as slow on the CPU
        positions_LD = self.position.weight.index_select(0, positions_L)
        ordered_LD: Tensor = self.norm(tokens_LD) + positions_LD + self.gap.weight.index_select(0, gaps_L)
        return ordered_LD


class QLU(nn.Module):
    """Attention over [uih ; seeds], quasi-linear unless the configuration names another kernel.

    Queries, keys and values are one projection; the output is normalised, since with 1/n in the state it
    would shrink with the history's length.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads, self.width = config.heads, config.width
        self.attention = attention_of(config)
        self.query_key_value = nn.Linear(config.width, 3 * config.width, bias=False)
        self.norm = SRMSNorm()
        self.output = nn.Linear(config.width, config.width, bias=False)

    def split(self, x: Tensor, parts: int) -> tuple[Tensor, ...]:
        """Queries, keys and values side by side -> one [..., H, E] each."""
        return x.view(*x.shape[:-1], parts, self.heads, self.width // self.heads).unbind(-3)

    def query(self, x: Tensor) -> Tensor:
        return F.linear(x, self.query_key_value.weight[: self.width])

    def key_value(self, x: Tensor) -> Tensor:
        return F.linear(x, self.query_key_value.weight[self.width :])

    def merge(self, out: Tensor) -> Tensor:
        """What the heads read, side by side -> what is added to the rows."""
        merged: Tensor = self.output(self.norm(out))
        return merged


class Block(nn.Module):
    """x + QLU(norm(x)), then x + SGLU(norm(x))."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm = SRMSNorm()
        self.qlu = QLU(config)
        self.sglu = SGLU(config.width)

    def forward(self, x_MD: Tensor, packed: Packed) -> Tensor:
        q, k, v = self.qlu.split(by_rows(self._project, self.qlu, x_MD), 3)
        out_MHE = self.qlu.attention.rows(q, k, v, packed)
        return by_rows(self._add, self, x_MD, out_MHE.flatten(-2))

    def last(self, x_MD: Tensor, packed: Packed) -> Tensor:
        """The seeds' rows alone, x_BSD: nobody reads the others any more."""
        k, v = self.key_value(x_MD)
        x_BSD = x_MD.index_select(0, packed.seed_rows_BS.flatten())
        x_BSD = x_BSD.view(*packed.seed_rows_BS.shape, x_MD.shape[1])
        return self.read(x_BSD, lambda q_BSHE: self.qlu.attention.seeds(q_BSHE, k, v, packed))

    def key_value(self, x_MD: Tensor) -> tuple[Tensor, ...]:
        """What the rows are read by: keys and values, MHE each."""
        return self.qlu.split(by_rows(self._project_read, self.qlu, x_MD), 2)

    def read(self, x_BSD: Tensor, reading: Callable[[Tensor], Tensor]) -> Tensor:
        """The seeds' rows after they have read: `reading` is what queries q_BSHE find."""
        (q_BSHE,) = self.qlu.split(self.qlu.query(self.norm(x_BSD)), 1)
        return self._add(x_BSD, reading(q_BSHE).flatten(-2))

    def _project(self, x_MD: Tensor) -> Tensor:
        projected: Tensor = self.qlu.query_key_value(self.norm(x_MD))
        return projected

    def _project_read(self, x_MD: Tensor) -> Tensor:
        return self.qlu.key_value(self.norm(x_MD))

    def _add(self, x: Tensor, out: Tensor) -> Tensor:
        x = x + self.qlu.merge(out)
        mixed: Tensor = x + self.sglu(self.norm(x))
        return mixed


class Summariser(nn.Module):
    """[uih ; seeds] through the blocks; the seeds' rows after a final norm are the summary.

    The seeds carry the history's length features, which a mean over sources would lose. A user without
    history has the summary of the seeds alone.
    """

    def __init__(self, config: ModelConfig, actions: int) -> None:
        super().__init__()
        self.seeds_are_candidates = config.seeds_as == "candidates"
        self.half_life_s = config.half_life_s
        self.order = OrderEmbedding(config)
        self.seeds_SD = nn.Parameter(torch.randn(config.seeds, config.width))
        self.lengths = nn.Linear(num_length_features(actions), config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = SRMSNorm()

    def forward(self, uih: Uih) -> Tensor:
        """uih -> summary_BSD."""
        return self.summarise(self.order(uih), uih)

    def summarise(self, ordered_LD: Tensor, uih: Uih) -> Tensor:
        """The tokens of `uih` with their positions -> summary_BSD."""
        seeds_BSD = self.seeds_SD + self.lengths(length_features(uih)).unsqueeze(1)
        x_MD, packed = self._append(ordered_LD, seeds_BSD, uih)
        for block in self.blocks[:-1]:
            x_MD = block(x_MD, packed)
        last = self.blocks[-1]
        assert isinstance(last, Block)
        summary_BSD: Tensor = self.norm(last.last(x_MD, packed))
        return summary_BSD

    def _append(self, ordered_LD: Tensor, seeds_BSD: Tensor, uih: Uih) -> tuple[Tensor, Packed]:
        """Packed rows of [uih ; seeds] per user, and where they are."""
        users, seeds, _ = seeds_BSD.shape
        ends_B = uih.seq_offsets[1:]
        before_B = torch.arange(users + 1, device=ends_B.device) * seeds
        seed_rows_BS = (ends_B + before_B[:-1]).unsqueeze(1) + torch.arange(seeds, device=ends_B.device)
        rows_L = torch.arange(uih.user_L.numel(), device=ends_B.device) + uih.user_L * seeds
        rows_M = torch.cat([rows_L, seed_rows_BS.flatten()])
        x_MD = torch.cat([ordered_LD, seeds_BSD.flatten(0, 1)])
        x_MD = torch.empty_like(x_MD).index_copy_(0, rows_M, x_MD)
        num_candidates = torch.full_like(ends_B, seeds if self.seeds_are_candidates else 0)
        weight_M = None
        if self.half_life_s is not None:
            weight_L, weight_BS = source_weights(uih, seeds, self.half_life_s)
            weight_M = torch.cat([weight_L, weight_BS.flatten()])
            weight_M = torch.empty_like(weight_M).index_copy_(0, rows_M, weight_M)
        return x_MD, Packed(uih.seq_offsets + before_B, num_candidates, seed_rows_BS, weight_M)
