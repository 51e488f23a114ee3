"""The slot that every model of a user's history fills, and the baselines in it (section 5.1.2).

Shape suffixes: B users, L packed history rows, C candidates, N pairs of a candidate and an event of its
user's history, I item features, D width, A actions, E what the slot gives, P length features.
"""

import torch
from torch import Tensor, nn

from vista.config import ModelConfig
from vista.data.schema import FeatureSpec
from vista.model.inputs import Uih, length_features, num_length_features, segment_sum


class HistoryModule(nn.Module):
    """What a candidate is told about its user's history: (uih, candidates, whose they are) -> history_CE."""

    width: int
    """E, the width of what it gives."""

    def forward(self, uih: Uih, candidates_CI: Tensor, user_C: Tensor) -> Tensor:
        raise NotImplementedError


class MeanPool(HistoryModule):
    """The mean token of the history, and of the events with each action, beside the length features."""

    def __init__(self, config: ModelConfig, spec: FeatureSpec, item_width: int) -> None:
        super().__init__()
        actions = len(spec.actions)
        self.width = (1 + actions) * config.width + num_length_features(actions)

    def forward(self, uih: Uih, candidates_CI: Tensor, user_C: Tensor) -> Tensor:
        users = uih.seq_offsets.numel() - 1
        ones_L1 = torch.ones_like(uih.tokens_LD[:, :1])
        masks_LG = torch.cat([ones_L1, uih.actions_LA], dim=1)
        sums_BGD = segment_sum(masks_LG.unsqueeze(2) * uih.tokens_LD.unsqueeze(1), uih.user_L, users)
        counts_BG = segment_sum(masks_LG, uih.user_L, users).clamp(min=1)
        means_BD = (sums_BGD / counts_BG.unsqueeze(2)).flatten(1)
        return torch.cat([means_BD, length_features(uih)], dim=1)[user_C]


class Din(HistoryModule):
    """Deep Interest Network: each candidate weighs each event by an MLP of both, and sums, unnormalised.

    One set of weights for all events and one per action, as FuxiCTR attends to one sequence per action.
    """

    def __init__(self, config: ModelConfig, spec: FeatureSpec, item_width: int) -> None:
        super().__init__()
        actions = len(spec.actions)
        self.query = nn.Linear(item_width, config.width)
        self.unit = nn.Sequential(
            nn.Linear(4 * config.width, 64), nn.ReLU(), nn.Linear(64, 1 + actions)
        )  # fmt: skip
        self.width = (1 + actions) * config.width + num_length_features(actions)

    def forward(self, uih: Uih, candidates_CI: Tensor, user_C: Tensor) -> Tensor:
        candidate_N, row_N = _pairs(uih.seq_offsets, user_C)
        query_ND, token_ND = self.query(candidates_CI)[candidate_N], uih.tokens_LD[row_N]
        both = torch.cat([query_ND, token_ND, query_ND - token_ND, query_ND * token_ND], dim=1)
        masks_NG = torch.cat([torch.ones_like(both[:, :1]), uih.actions_LA[row_N]], dim=1)
        weights_NG = self.unit(both) * masks_NG
        weighted_NGD = weights_NG.unsqueeze(2) * token_ND.unsqueeze(1)
        interest_CGD = segment_sum(weighted_NGD, candidate_N, user_C.numel())
        return torch.cat([interest_CGD.flatten(1), length_features(uih)[user_C]], dim=1)


def _pairs(seq_offsets: Tensor, user_C: Tensor) -> tuple[Tensor, Tensor]:
    """Every (candidate, event of its user's history): the candidates' and the events' rows."""
    lengths_C = seq_offsets.diff()[user_C]
    candidate_N = torch.arange(user_C.numel(), device=user_C.device).repeat_interleave(lengths_C)
    first_pair_C = lengths_C.cumsum(0) - lengths_C
    within_N = torch.arange(candidate_N.numel(), device=user_C.device) - first_pair_C[candidate_N]
    return candidate_N, seq_offsets[user_C][candidate_N] + within_N
