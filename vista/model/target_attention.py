"""Stage 2: softmax attention of each candidate over its user's summary (section 3.3).

Shape suffixes: B users, S summary vectors (and after them R rows of the recent tail), C candidates, L packed
history rows, I item features, H heads, D width, E width of a head.
"""

import torch
from torch import Tensor, nn

from vista.config import ModelConfig
from vista.model.blocks import SRMSNorm
from vista.model.inputs import Uih


class RecentTail(nn.Module):
    """The newest R events of each user, as rows beside the summary: what a summary of last night cannot know.

    A row is the event's normalised token plus an embedding of its place, counted from the newest.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.place = nn.Embedding(config.recent_tail, config.width)
        self.norm = SRMSNorm()
        nn.init.normal_(self.place.weight, std=config.embedding_init)

    def forward(self, uih: Uih) -> tuple[Tensor, Tensor]:
        """tail_BRD, newest first, and known_BR: False where a user has fewer events."""
        places_R = torch.arange(self.place.num_embeddings, device=uih.seq_offsets.device)
        known_BR = places_R < uih.seq_offsets.diff().unsqueeze(1)
        nothing_1D = uih.tokens_LD.new_zeros(1, uih.tokens_LD.shape[1])
        tokens_LD = uih.tokens_LD if len(uih.tokens_LD) else nothing_1D
        rows_BR = (uih.seq_offsets[1:].unsqueeze(1) - 1 - places_R).clamp(min=0)
        # Chosen first: normalised, all L rows would be kept for the backward pass.
        tail_BRD = self.norm(tokens_LD[rows_BR]).where(known_BR.unsqueeze(2), 0.0) + self.place(places_R)
        return tail_BRD, known_BR


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

    def candidates(
        self, x_CD: Tensor, summary_BSD: Tensor, known_BS: Tensor | None, user_C: Tensor
    ) -> Tensor:
        """The candidates' rows; `known_BS` is False for rows of the summary that are padding."""
        own_CD, shared_BSD = self.norm(x_CD), self.norm(summary_BSD)
        q_CHE, k_CHE, v_CHE = (self._split(p(own_CD)) for p in (self.query, self.key, self.value))
        k_CSHE = self._split(self.key(shared_BSD))[user_C]
        v_CSHE = self._split(self.value(shared_BSD))[user_C]
        scale = q_CHE.shape[-1] ** -0.5
        scores_CSH = (q_CHE.unsqueeze(1) * k_CSHE).sum(-1) * scale
        if known_BS is not None:
            scores_CSH = scores_CSH.masked_fill(~known_BS[user_C].unsqueeze(2), -torch.inf)
        self_score_C1H = ((q_CHE * k_CHE).sum(-1) * scale).unsqueeze(1)
        weights = torch.cat([scores_CSH, self_score_C1H], dim=1).softmax(dim=1).unsqueeze(-1)
        attended_CHE = (weights[:, :-1] * v_CSHE).sum(1) + weights[:, -1] * v_CHE
        return self._finish(x_CD, attended_CHE)

    def summaries(self, summary_BSD: Tensor, known_BS: Tensor | None) -> Tensor:
        """The summaries' rows, for the next layer."""
        normal_BSD = self.norm(summary_BSD)
        q, k, v = (
            self._split(p(normal_BSD)).transpose(1, 2) for p in (self.query, self.key, self.value)
        )  # each BHSE
        scores_BHSS = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        if known_BS is not None:
            scores_BHSS = scores_BHSS.masked_fill(~known_BS[:, None, None], -torch.inf)
        return self._finish(summary_BSD, (scores_BHSS.softmax(-1) @ v).transpose(1, 2))


class TargetAttention(nn.Module):
    """The blocks of stage 2 and a final norm: a candidate's view of its user's summary.

    The candidate enters normalised, without bias: beside its 1e-4 embedding anything else would drown it, and
    training would stay on a plateau.
    """

    def __init__(self, config: ModelConfig, item_width: int) -> None:
        super().__init__()
        self.project = nn.Linear(item_width, config.width, bias=False)
        self.entry = SRMSNorm()
        self.tail = RecentTail(config) if config.recent_tail else None
        self.blocks = nn.ModuleList(TargetBlock(config) for _ in range(config.target_layers))
        self.norm = nn.RMSNorm(config.width)

    def forward(self, candidates_CI: Tensor, summary_BSD: Tensor, uih: Uih | None, user_C: Tensor) -> Tensor:
        """candidates_CI, summary_BSD, the candidates' users -> history_CD. Of `uih` only the recent tail is
        read; None will do for a model that has none."""
        known_BS = None
        if self.tail is not None:
            assert uih is not None, "this model reads a recent tail"
            tail_BRD, known_BR = self.tail(uih)
            known_BS = torch.cat([known_BR.new_ones(summary_BSD.shape[:2]), known_BR], dim=1)
            summary_BSD = torch.cat([summary_BSD, tail_BRD], dim=1)
        candidates_CD = self.entry(self.project(candidates_CI))
        below: TargetBlock | None = None
        for block in self.blocks:
            assert isinstance(block, TargetBlock)
            if below is not None:
                summary_BSD = below.summaries(summary_BSD, known_BS)
            candidates_CD = block.candidates(candidates_CD, summary_BSD, known_BS, user_C)
            below = block
        history_CD: Tensor = self.norm(candidates_CD)
        return history_CD
