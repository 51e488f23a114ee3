"""Stage 2: softmax attention of each candidate over its user's summary (section 3.3).

Shape suffixes: B users, S seeds, C candidates, I item features, H heads, D width, E width of a head.
"""

import torch
from torch import Tensor, nn

from vista.config import ModelConfig
from vista.model.blocks import SRMSNorm


class TargetBlock(nn.Module):
    """One transformer block over [summary ; candidate] of each candidate.

    A candidate reads its user's summaries and itself, never another candidate. The summaries read
    themselves, once per user.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.norm = nn.RMSNorm(config.width)
        self.query = nn.Linear(config.width, config.width)
        self.key = nn.Linear(config.width, config.width)
        self.value = nn.Linear(config.width, config.width)
        self.output = nn.Linear(config.width, config.width)
        self.feed_forward = nn.Sequential(
            nn.RMSNorm(config.width),
            nn.Linear(config.width, 4 * config.width),
            nn.ReLU(),
            nn.Linear(4 * config.width, config.width),
        )

    def _split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], self.heads, x.shape[-1] // self.heads)

    def _finish(self, x: Tensor, attended: Tensor) -> Tensor:
        x = x + self.output(attended.flatten(-2))
        finished: Tensor = x + self.feed_forward(x)
        return finished

    def candidates(self, x_CD: Tensor, summary_BSD: Tensor, user_C: Tensor) -> Tensor:
        """The candidates' rows."""
        own_CD, shared_BSD = self.norm(x_CD), self.norm(summary_BSD)
        q_CHE, k_CHE, v_CHE = (self._split(p(own_CD)) for p in (self.query, self.key, self.value))
        k_CSHE = self._split(self.key(shared_BSD))[user_C]
        v_CSHE = self._split(self.value(shared_BSD))[user_C]
        scale = q_CHE.shape[-1] ** -0.5
        scores_CSH = (q_CHE.unsqueeze(1) * k_CSHE).sum(-1) * scale
        self_score_C1H = ((q_CHE * k_CHE).sum(-1) * scale).unsqueeze(1)
        weights = torch.cat([scores_CSH, self_score_C1H], dim=1).softmax(dim=1).unsqueeze(-1)
        attended_CHE = (weights[:, :-1] * v_CSHE).sum(1) + weights[:, -1] * v_CHE
        return self._finish(x_CD, attended_CHE)

    def summaries(self, summary_BSD: Tensor) -> Tensor:
        """The summaries' rows, for the next layer."""
        normal_BSD = self.norm(summary_BSD)
        q, k, v = (
            self._split(p(normal_BSD)).transpose(1, 2) for p in (self.query, self.key, self.value)
        )  # each BHSE
        weights_BHSS = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
        return self._finish(summary_BSD, (weights_BHSS @ v).transpose(1, 2))


class TargetAttention(nn.Module):
    """The blocks of stage 2 and a final norm: a candidate's view of its user's summary.

    The candidate enters normalised, without bias: beside its 1e-4 embedding anything else would drown it, and
    training would stay on a plateau.
    """

    def __init__(self, config: ModelConfig, item_width: int) -> None:
        super().__init__()
        self.project = nn.Linear(item_width, config.width, bias=False)
        self.entry = SRMSNorm()
        self.blocks = nn.ModuleList(TargetBlock(config) for _ in range(config.target_layers))
        self.norm = nn.RMSNorm(config.width)

    def forward(self, candidates_CI: Tensor, summary_BSD: Tensor, user_C: Tensor) -> Tensor:
        """candidates_CI, summary_BSD, the candidates' users -> history_CD."""
        candidates_CD = self.entry(self.project(candidates_CI))
        below: TargetBlock | None = None
        for block in self.blocks:
            assert isinstance(block, TargetBlock)
            if below is not None:
                summary_BSD = below.summaries(summary_BSD)
            candidates_CD = block.candidates(candidates_CD, summary_BSD, user_C)
            below = block
        history_CD: Tensor = self.norm(candidates_CD)
        return history_CD
