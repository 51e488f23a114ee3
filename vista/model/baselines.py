"""The slot that every model of a user's history fills, and the baselines in it (section 5.1.2).

Shape suffixes: B users, L packed history rows, C candidates, M chunks of R events beside a candidate,
I item features, D width, A actions, G 1 + A, U units, E what the slot gives, P length features.
"""

import torch
from torch import Tensor, nn

from vista.config import ModelConfig
from vista.data.schema import FeatureSpec
from vista.model.inputs import Uih, length_features, num_length_features, segment_sum

UNITS = 64
"""Hidden units of DIN's attention."""

CHUNK_ROWS = 16
"""A candidate's history is padded to a multiple of this."""


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

    One set of weights for all events and one per action, as FuxiCTR attends to one sequence per action. The
    first layer of [q, k, q - k, q * k] is linear in each part, so that only q * k is multiplied out per pair.
    """

    def __init__(self, config: ModelConfig, spec: FeatureSpec, item_width: int) -> None:
        super().__init__()
        actions = len(spec.actions)
        self.query = nn.Linear(item_width, config.width)
        self.of_query = nn.Linear(config.width, UNITS)
        self.of_token = nn.Linear(config.width, UNITS, bias=False)
        self.of_product = nn.Linear(config.width, UNITS, bias=False)
        self.weigh = nn.Linear(UNITS, 1 + actions)
        self.width = (1 + actions) * config.width + num_length_features(actions)

    def forward(self, uih: Uih, candidates_CI: Tensor, user_C: Tensor) -> Tensor:
        candidate_M, row_MR, known_MR = _chunks_of_pairs(uih.seq_offsets, user_C)
        query_CD = self.query(candidates_CI)
        token_MRD = uih.tokens_LD[row_MR]
        alone_MRU = self.of_query(query_CD)[candidate_M].unsqueeze(1) + self.of_token(uih.tokens_LD)[row_MR]
        product_MRU = self.of_product(query_CD[candidate_M].unsqueeze(1) * token_MRD)
        masks_MRG = torch.cat([known_MR.unsqueeze(2), uih.actions_LA[row_MR] * known_MR.unsqueeze(2)], dim=2)
        weights_MRG = self.weigh((alone_MRU + product_MRU).relu()) * masks_MRG
        interest_MGD = weights_MRG.transpose(1, 2) @ token_MRD
        interest_CGD = segment_sum(interest_MGD, candidate_M, user_C.numel())
        return torch.cat([interest_CGD.flatten(1), length_features(uih)[user_C]], dim=1)


def _chunks_of_pairs(seq_offsets: Tensor, user_C: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Every candidate beside every event of its user's history, CHUNK_ROWS events at a time.

    Returns the candidate of each chunk, its rows of the packed history, and 1.0 for rows that are the user's
    (the rest is padding).
    """
    lengths_C = seq_offsets.diff()[user_C]
    chunks_C = (lengths_C + CHUNK_ROWS - 1) // CHUNK_ROWS
    candidate_M = torch.arange(user_C.numel(), device=user_C.device).repeat_interleave(chunks_C)
    first_chunk_C = chunks_C.cumsum(0) - chunks_C
    chunk_M = torch.arange(candidate_M.numel(), device=user_C.device) - first_chunk_C[candidate_M]
    within_MR = chunk_M.unsqueeze(1) * CHUNK_ROWS + torch.arange(CHUNK_ROWS, device=user_C.device)
    known_MR = within_MR < lengths_C[candidate_M].unsqueeze(1)
    row_MR = (seq_offsets[user_C][candidate_M].unsqueeze(1) + within_MR).where(known_MR, 0)
    return candidate_M, row_MR, known_MR.float()
