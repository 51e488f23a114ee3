"""Softmax transformers over the history: plain multi-head attention, and SASRec.

Shape suffixes: B users, L packed history rows, C candidates, I item features, H heads, D width, E width of a
head.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vista.config import ModelConfig
from vista.data.schema import FeatureSpec
from vista.model.baselines.attention import softmax_attention, softmax_read
from vista.model.blocks import SRMSNorm
from vista.model.history import HistoryModule
from vista.model.inputs import Uih, length_features, num_length_features
from vista.model.summariser import OrderEmbedding


class TransformerBlock(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)) (Vaswani et al., 2017, norms first)."""

    def __init__(self, config: ModelConfig, *, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = config.heads, causal
        width = config.width
        self.norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.attended = nn.Linear(width, width)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width)
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_LD: Tensor, seq_offsets: Tensor) -> Tensor:
        """The events' rows: each reads its user's events."""
        q, k, v = self._split(x_LD)
        return self._finish(x_LD, softmax_attention(q, k, v, seq_offsets, causal=self.causal))

    def read(self, candidates_CD: Tensor, x_LD: Tensor, seq_offsets: Tensor, user_C: Tensor) -> Tensor:
        """The candidates' rows: each reads its user's events and itself."""
        q, own_k, own_v = self._split(candidates_CD)
        _, k, v = self._split(x_LD)
        return self._finish(candidates_CD, softmax_read(q, own_k, own_v, k, v, seq_offsets, user_C))

    def newest(self, x_LD: Tensor, seq_offsets: Tensor) -> Tensor:
        """What `forward` gives for each user's newest row, and only that; zero for a user without any row.

        The newest row reads all rows, causal or not: no other row's attention has to be computed.
        """
        lengths_B = seq_offsets.diff()
        user_S = lengths_B.nonzero().squeeze(1)
        newest_S = seq_offsets[user_S + 1] - 1
        is_older_L = torch.ones_like(x_LD[:, 0], dtype=torch.bool).index_fill_(0, newest_S, False)
        older_offsets = F.pad((lengths_B - 1).clamp(min=0).cumsum(0), (1, 0))
        newest_SD = self.read(x_LD.index_select(0, newest_S), x_LD[is_older_L], older_offsets, user_S)
        return newest_SD.new_zeros(len(lengths_B), x_LD.shape[1]).index_copy(0, user_S, newest_SD)

    def _split(self, x_ND: Tensor) -> list[Tensor]:
        shape = (len(x_ND), self.heads, x_ND.shape[1] // self.heads)
        return [part.reshape(shape) for part in self.query_key_value(self.norm(x_ND)).chunk(3, dim=1)]

    def _finish(self, x_ND: Tensor, read_NHE: Tensor) -> Tensor:
        x_ND = x_ND + self.dropout(self.attended(read_NHE.flatten(1)))
        finished_ND: Tensor = x_ND + self.dropout(self.feed_forward(x_ND))
        return finished_ND


class Mha(HistoryModule):
    """Multi-head self-attention of the history, then each candidate reads the result."""

    def __init__(self, config: ModelConfig, spec: FeatureSpec, item_width: int) -> None:
        super().__init__()
        self.order = OrderEmbedding(config)
        self.project = nn.Linear(item_width, config.width, bias=False)
        self.entry = SRMSNorm()
        self.blocks = nn.ModuleList(TransformerBlock(config, causal=False) for _ in range(config.layers))
        self.last = TransformerBlock(config, causal=False)
        self.norm = nn.LayerNorm(config.width)
        self.width = config.width + num_length_features(len(spec.actions))

    def forward(self, uih: Uih, candidates_CI: Tensor, user_C: Tensor) -> Tensor:
        x_LD = self.order(uih)
        for block in self.blocks:
            x_LD = block(x_LD, uih.seq_offsets)
        candidates_CD = self.entry(self.project(candidates_CI))
        candidates_CD = self.norm(self.last.read(candidates_CD, x_LD, uih.seq_offsets, user_C))
        return torch.cat([candidates_CD, length_features(uih)[user_C]], dim=1)


class SasRec(HistoryModule):
    """Causal self-attention with positions (Kang & McAuley, 2018); a candidate stands where the next event
    would. Gives the candidate's row and the newest event's.
    """

    def __init__(self, config: ModelConfig, spec: FeatureSpec, item_width: int) -> None:
        super().__init__()
        self.order = OrderEmbedding(config)
        self.project = nn.Linear(item_width, config.width, bias=False)
        self.entry = SRMSNorm()
        self.next_position_D = nn.Parameter(torch.randn(config.width) * config.embedding_init)
        self.blocks = nn.ModuleList(TransformerBlock(config, causal=True) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.width = 2 * config.width + num_length_features(len(spec.actions))

    def forward(self, uih: Uih, candidates_CI: Tensor, user_C: Tensor) -> Tensor:
        x_LD = self.order(uih)
        candidates_CD = self.entry(self.project(candidates_CI)) + self.next_position_D
        for block in self.blocks:
            assert isinstance(block, TransformerBlock)
            candidates_CD = block.read(candidates_CD, x_LD, uih.seq_offsets, user_C)
            if block is self.blocks[-1]:
                newest_BD = self.norm(block.newest(x_LD, uih.seq_offsets))
            else:
                x_LD = block(x_LD, uih.seq_offsets)
        parts = [self.norm(candidates_CD), newest_BD[user_C], length_features(uih)[user_C]]
        return torch.cat(parts, dim=1)
