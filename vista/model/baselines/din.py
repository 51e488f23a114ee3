"""Deep Interest Network (Zhou et al., 2018).

Shape suffixes: L packed history rows, C candidates, M chunks of R events beside a candidate, I item features,
D width, P 2 D, A actions, G 1 + A, U units, E what the slot gives.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vista.config import ModelConfig
from vista.data.schema import FeatureSpec
from vista.model.baselines.chunks import chunks_of, rows_of
from vista.model.history import HistoryModule
from vista.model.inputs import Uih, length_features, num_length_features, segment_sum

UNITS = 64
"""Hidden units of the attention."""


class Din(HistoryModule):
    """Each candidate weighs each event by an MLP of both, and sums, unnormalised.

    One set of weights for all events and one per action, as FuxiCTR attends to one sequence per action. The
    first layer of [q, k, q - k, q * k] is linear in each part: q is multiplied out per candidate, k and
    q * k per pair, and q - k is in the other two.
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
        candidate_M, row_MR, known_MR = chunks_of(uih.seq_offsets, user_C)
        query_CD = self.query(candidates_CI)
        query_M1D = query_CD.index_select(0, candidate_M).unsqueeze(1)
        token_MRD = rows_of(uih.tokens_LD, row_MR)
        pair_MRP = torch.cat([token_MRD, query_M1D * token_MRD], dim=2)
        of_pair = torch.cat([self.of_token.weight, self.of_product.weight], dim=1)
        of_query_M1U = self.of_query(query_CD).index_select(0, candidate_M).unsqueeze(1)
        units_MRU = F.linear(pair_MRP, of_pair).add_(of_query_M1U).relu_()
        masks_LG = F.pad(uih.actions_LA, (1, 0), value=1.0)
        masks_MRG = rows_of(masks_LG, row_MR) * known_MR.unsqueeze(2)
        interest_MGD = (self.weigh(units_MRU) * masks_MRG).transpose(1, 2) @ token_MRD
        interest_CGD = segment_sum(interest_MGD, candidate_M, user_C.numel())
        return torch.cat([interest_CGD.flatten(1), length_features(uih)[user_C]], dim=1)
