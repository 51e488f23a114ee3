"""Hierarchical sequential transduction units (Zhai et al., 2024), as a ranking model.

Shape suffixes: B users, L packed history rows, N any rows, C candidates, M chunks of R events beside a
candidate, I item features, H heads, D width, E width of a head.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels import silu_attention
from vista.config import ModelConfig
from vista.data.schema import FeatureSpec
from vista.model.baselines.chunks import chunks_of, rows_of
from vista.model.blocks import SRMSNorm
from vista.model.history import HistoryModule
from vista.model.inputs import Uih, length_features, num_length_features, segment_sum

TIME_BUCKETS = 40
"""Log2 buckets of seconds between two events: the last one is centuries."""


class RelativeBias(nn.Module):
    """A number per distance in positions, and one per log2 of the distance in seconds; same for all heads.

    They begin at 1 in sum: at 0 the SiLU gives no event a weight, and an epoch later AUC is .003 lower.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.of_distance = nn.Parameter(1 + torch.randn(config.max_positions) * 0.02)
        self.of_time = nn.Parameter(torch.randn(TIME_BUCKETS) * 0.02)

    def forward(self, distance: Tensor, time_us: Tensor) -> Tensor:
        """Both of one shape, from a reader back to what it reads; negative counts as 0."""
        distance = distance.clamp(0, self.of_distance.numel() - 1)
        log2_s = (time_us.clamp(min=0).float() / 1e6).log1p() / math.log(2)
        bucket = log2_s.long().clamp(max=TIME_BUCKETS - 1)
        bias: Tensor = rows_of(self.of_distance, distance) + rows_of(self.of_time, bucket)
        return bias


class HstuLayer(nn.Module):
    """x + W [U, read, norm(read) * U]: the read weighs by SiLU(<q, k> + bias) / n instead of a softmax, and
    U = SiLU(W norm(x)) is its gate. Q, K and V are linear, as in Meta's ranking model of this name.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.norm = nn.LayerNorm(config.width)
        self.uvqk = nn.Linear(config.width, 4 * config.width)
        self.bias = RelativeBias(config)
        self.read_norm = nn.LayerNorm(config.width, eps=1e-6)  # reads are small: 1/n, and either sign
        self.output = nn.Linear(3 * config.width, config.width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_LD: Tensor, uih: Uih) -> Tensor:
        """The events' rows: each reads its user's events up to itself."""

        def bias(reader: Tensor, read: Tensor) -> Tensor:
            times_us = uih.time_us_L[reader] - uih.time_us_L[read]
            bias: Tensor = self.bias(reader - read, times_us).unsqueeze(-1)
            return bias

        u_LD, v, q, k = self._split(x_LD)
        no_candidates = torch.zeros_like(uih.seq_offsets[1:])
        read = silu_attention(q, k, v, uih.seq_offsets, no_candidates, causal=True, bias=bias)
        return self._finish(x_LD, u_LD, read)

    def read(self, candidates_CD: Tensor, x_LD: Tensor, uih: Uih, user_C: Tensor) -> Tensor:
        """The candidates' rows: each reads its user's events and itself, as of the user's cut."""
        u_CD, own_v, q, own_k = self._split(candidates_CD)
        _, v_LHE, _, k_LHE = self._split(x_LD)
        reader_M, row_MR, known_MR = chunks_of(uih.seq_offsets, user_C)
        user_M = user_C[reader_M].unsqueeze(1)
        times_us = uih.cut_us_B[user_M] - uih.time_us_L[row_MR]
        bias_MR1 = self.bias(uih.seq_offsets[1:][user_M] - row_MR, times_us).unsqueeze(2)
        score_MRH = (q.index_select(0, reader_M).unsqueeze(1) * rows_of(k_LHE, row_MR)).sum(-1)
        weight_MRH = F.silu(score_MRH + bias_MR1) * known_MR.unsqueeze(2)
        read_MHE = (weight_MRH.unsqueeze(-1) * rows_of(v_LHE, row_MR)).sum(1)
        here = torch.zeros_like(user_C)
        own_weight_CH = F.silu((q * own_k).sum(-1) + self.bias(here, here).unsqueeze(1))
        sum_CHE = segment_sum(read_MHE, reader_M, len(user_C)) + own_weight_CH.unsqueeze(-1) * own_v
        n_C = uih.seq_offsets.diff()[user_C].clamp(min=1)
        return self._finish(candidates_CD, u_CD, sum_CHE / n_C[:, None, None])

    def _split(self, x_ND: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        u_ND, *parts = self.uvqk(self.norm(x_ND)).chunk(4, dim=1)
        shape = (len(x_ND), self.heads, x_ND.shape[1] // self.heads)
        v, q, k = (part.reshape(shape) for part in parts)
        return F.silu(u_ND), v, q * shape[2] ** -0.5, k

    def _finish(self, x_ND: Tensor, u_ND: Tensor, read_NHE: Tensor) -> Tensor:
        read_ND = read_NHE.flatten(1)
        parts_N3D = torch.cat([u_ND, read_ND, self.read_norm(read_ND) * u_ND], dim=1)
        finished_ND: Tensor = x_ND + self.output(self.dropout(parts_N3D))
        return finished_ND


class Hstu(HistoryModule):
    """The layers over [uih ; candidates]: events causally, candidates beside one another."""

    def __init__(self, config: ModelConfig, spec: FeatureSpec, item_width: int) -> None:
        super().__init__()
        self.project = nn.Linear(item_width, config.width, bias=False)
        self.entry = SRMSNorm()
        self.layers = nn.ModuleList(HstuLayer(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.width = config.width + num_length_features(len(spec.actions))

    def forward(self, uih: Uih, candidates_CI: Tensor, user_C: Tensor) -> Tensor:
        x_LD = self.entry(uih.tokens_LD)
        candidates_CD = self.entry(self.project(candidates_CI))
        for depth, layer in enumerate(self.layers, start=1):
            assert isinstance(layer, HstuLayer)
            candidates_CD = layer.read(candidates_CD, x_LD, uih, user_C)
            if depth < len(self.layers):
                x_LD = layer(x_LD, uih)
        return torch.cat([self.norm(candidates_CD), length_features(uih)[user_C]], dim=1)
