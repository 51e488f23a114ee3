"""Baselines that pool the history: no candidate sees a single event.

Shape suffixes: B users, L packed history rows, M chunks of R events, C candidates, I item features, D width,
A actions, G 1 + A, E what the slot gives, P length features.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from vista.config import ModelConfig
from vista.data.schema import FeatureSpec
from vista.model.baselines.chunks import chunks_of, rows_of
from vista.model.blocks import mlp
from vista.model.embeddings import IdTable
from vista.model.history import HistoryModule
from vista.model.inputs import Uih, length_features, num_length_features, segment_sum

TOWER = (128,)
"""Hidden units of each tower."""


def pooled(uih: Uih) -> Tensor:
    """pooled_BE, E = (1 + A) D + P: the mean token of the history, and of the events with each action, beside
    the length features."""
    users_B = torch.arange(uih.seq_offsets.numel() - 1, device=uih.user_L.device)
    user_M, row_MR, known_MR = chunks_of(uih.seq_offsets, users_B)
    masks_LG = F.pad(uih.actions_LA, (1, 0), value=1.0)
    masks_MGR = (rows_of(masks_LG, row_MR) * known_MR.unsqueeze(2)).transpose(1, 2)
    sums_BGD = segment_sum(masks_MGR @ rows_of(uih.tokens_LD, row_MR), user_M, users_B.numel())
    counts_BG = segment_sum(masks_LG, uih.user_L, users_B.numel()).clamp(min=1)
    means_BD = (sums_BGD / counts_BG.unsqueeze(2)).flatten(1)
    return torch.cat([means_BD, length_features(uih)], dim=1)


def pooled_width(config: ModelConfig, spec: FeatureSpec) -> int:
    """E of `pooled`."""
    actions = len(spec.actions)
    return (1 + actions) * config.width + num_length_features(actions)


class MeanPool(HistoryModule):
    """The pooled history, the same for all candidates of a user."""

    def __init__(self, config: ModelConfig, spec: FeatureSpec, item_width: int) -> None:
        super().__init__()
        self.width = pooled_width(config, spec)

    def forward(self, uih: Uih, candidates_CI: Tensor, user_C: Tensor) -> Tensor:
        return pooled(uih)[user_C]


class TwoTower(HistoryModule):
    """A tower of the user (id and pooled history) and one of the item, which meet in their dot product only
    (Covington et al., 2016). Gives both ends and their products, whose sum is the dot product.
    """

    def __init__(self, config: ModelConfig, spec: FeatureSpec, item_width: int) -> None:
        super().__init__()
        self.user = IdTable(spec.num_users, config) if config.use_user_id else None
        id_width = config.width if self.user is not None else 0
        self.user_tower = mlp(pooled_width(config, spec) + id_width, TOWER, config.width, config.dropout)
        self.item_tower = mlp(item_width, TOWER, config.width, config.dropout)
        self.width = 3 * config.width

    def forward(self, uih: Uih, candidates_CI: Tensor, user_C: Tensor) -> Tensor:
        user_BE = pooled(uih)
        if self.user is not None:
            user_BE = torch.cat([user_BE, self.user(uih.user_row_B)], dim=1)
        user_CD = self.user_tower(user_BE)[user_C]
        item_CD = self.item_tower(candidates_CI)
        return torch.cat([user_CD, item_CD, user_CD * item_CD], dim=1)
