"""Stage 1: a user's whole history becomes S summary vectors (section 3.2).

Shape suffixes: B users, L packed history rows, M packed rows of [uih ; seeds], S seeds, H heads, D width,
P length features.
"""

import torch
from torch import Tensor, nn

from kernels import qla, qla_read, qla_state
from vista.config import ModelConfig
from vista.model.blocks import SGLU, SRMSNorm
from vista.model.inputs import Uih, length_features, num_length_features

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
            normal_LD: Tensor = self.norm(uih.tokens_LD)
            return normal_LD
        positions_L = reverse_positions(uih.seq_offsets, uih.user_L, self.position.num_embeddings)
        gaps_L = gap_buckets(uih.time_us_L, uih.user_L)
        ordered_LD: Tensor = self.norm(uih.tokens_LD) + self.position(positions_L) + self.gap(gaps_L)
        return ordered_LD


class QLU(nn.Module):
    """Quasi-linear attention over [uih ; seeds], all of them sources."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.query = nn.Linear(config.width, config.width, bias=False)
        self.key = nn.Linear(config.width, config.width, bias=False)
        self.value = nn.Linear(config.width, config.width, bias=False)
        self.norm = SRMSNorm()
        self.output = nn.Linear(config.width, config.width, bias=False)

    def _split(self, x_MD: Tensor) -> Tensor:
        return x_MD.view(*x_MD.shape[:-1], self.heads, x_MD.shape[-1] // self.heads)

    def _merge(self, out_MHE: Tensor) -> Tensor:
        merged_MD: Tensor = self.output(self.norm(out_MHE.flatten(-2)))
        return merged_MD

    def forward(self, x_MD: Tensor, seq_offsets: Tensor) -> Tensor:
        """Every row reads all rows of its user."""
        no_candidates = torch.zeros_like(seq_offsets[1:])
        q, k, v = (self._split(project(x_MD)) for project in (self.query, self.key, self.value))
        return self._merge(qla(q, k, v, seq_offsets, no_candidates, phi="silu", phi_out="silu"))

    def read_seeds(self, x_MD: Tensor, seeds_BSD: Tensor, seq_offsets: Tensor) -> Tensor:
        """Only the seeds read: all that the last layer needs."""
        no_candidates = torch.zeros_like(seq_offsets[1:])
        k, v = self._split(self.key(x_MD)), self._split(self.value(x_MD))
        kv_BHDE = qla_state(k, v, seq_offsets, no_candidates, phi="silu")
        q_BSHD = self._split(self.query(seeds_BSD))
        return self._merge(qla_read(q_BSHD, kv_BHDE, phi="silu", phi_out="silu"))


class Block(nn.Module):
    """x + QLU(norm(x)), then x + SGLU(norm(x))."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm = SRMSNorm()
        self.qlu = QLU(config)
        self.sglu = SGLU(config.width)

    def forward(self, x_MD: Tensor, seq_offsets: Tensor) -> Tensor:
        x_MD = x_MD + self.qlu(self.norm(x_MD), seq_offsets)
        mixed_MD: Tensor = x_MD + self.sglu(self.norm(x_MD))
        return mixed_MD

    def last(self, x_MD: Tensor, seed_rows_BS: Tensor, seq_offsets: Tensor) -> Tensor:
        """The seeds' rows alone, x_BSD."""
        normal_MD = self.norm(x_MD)
        x_BSD = x_MD[seed_rows_BS] + self.qlu.read_seeds(normal_MD, normal_MD[seed_rows_BS], seq_offsets)
        mixed_BSD: Tensor = x_BSD + self.sglu(self.norm(x_BSD))
        return mixed_BSD


class Summariser(nn.Module):
    """[uih ; seeds] through the blocks; the seeds' rows after a final norm are the summary.

    The seeds carry the history's length features, which a mean over sources would lose. A user without
    history has the summary of the seeds alone.
    """

    def __init__(self, config: ModelConfig, actions: int) -> None:
        super().__init__()
        self.order = OrderEmbedding(config)
        self.seeds_SD = nn.Parameter(torch.randn(config.seeds, config.width))
        self.lengths = nn.Linear(num_length_features(actions), config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = SRMSNorm()

    def forward(self, uih: Uih) -> Tensor:
        """uih -> summary_BSD."""
        seeds_BSD = self.seeds_SD + self.lengths(length_features(uih)).unsqueeze(1)
        x_MD, seed_rows_BS, seq_offsets = _append_seeds(self.order(uih), seeds_BSD, uih)
        for block in self.blocks[:-1]:
            x_MD = block(x_MD, seq_offsets)
        last = self.blocks[-1]
        assert isinstance(last, Block)
        summary_BSD: Tensor = self.norm(last.last(x_MD, seed_rows_BS, seq_offsets))
        return summary_BSD


def _append_seeds(tokens_LD: Tensor, seeds_BSD: Tensor, uih: Uih) -> tuple[Tensor, Tensor, Tensor]:
    """Packed rows of [uih ; seeds] per user, where the seeds' rows are, and the new offsets."""
    users, seeds, width = seeds_BSD.shape
    ends_B = uih.seq_offsets[1:]
    rows_L = torch.arange(uih.user_L.numel(), device=ends_B.device)
    before_B = torch.arange(users + 1, device=ends_B.device) * seeds
    seed_rows_BS = (ends_B + before_B[:-1]).unsqueeze(1) + torch.arange(seeds, device=ends_B.device)
    x_MD = tokens_LD.new_zeros(rows_L.numel() + users * seeds, width)
    x_MD = x_MD.index_copy(0, rows_L + uih.user_L * seeds, tokens_LD)
    x_MD = x_MD.index_copy(0, seed_rows_BS.flatten(), seeds_BSD.flatten(0, 1))
    return x_MD, seed_rows_BS, uih.seq_offsets + before_B
