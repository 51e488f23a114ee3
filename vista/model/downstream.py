"""The downstream model: stage 2 and the MLP on cached summaries, without the long raw history.

Shape suffixes: B users, S seeds, C candidates, D width.
"""

from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from vista.config import ModelConfig
from vista.data.schema import Batch, FeatureSpec
from vista.model.embeddings import UihTokens
from vista.model.inputs import TensorBatch, device_of, tensors
from vista.model.ranker import Ranker, RankerOutput, Scorer, VistaHistory
from vista.model.target_attention import TargetAttention


class Downstream(nn.Module):
    """Scores candidates from `summary_BSD` and the `recent_tail` newest raw events, by default none.

    `fallback_summary_SD` stands in for a missing summary.
    """

    fallback_summary_SD: Tensor

    def __init__(self, config: ModelConfig, spec: FeatureSpec) -> None:
        super().__init__()
        self.config, self.spec = config, spec
        self.scorer = Scorer(config, spec)
        self.tokens = UihTokens(config, spec, self.scorer.items.width) if config.recent_tail else None
        self.target_attention = TargetAttention(config, self.scorer.items.width)
        self.scorer.add_mlp(config, spec, config.width)
        self.register_buffer("fallback_summary_SD", torch.zeros(config.seeds, config.width))

    @classmethod
    def from_foundation(cls, foundation: Ranker) -> Self:
        """A copy of the foundation's embeddings, stage 2 and MLP; the fallback is its summary of no
        events."""
        assert isinstance(foundation.history, VistaHistory), f"slot {foundation.slot!r} has no stage 2"
        model = cls(foundation.config, foundation.spec)
        scorer = foundation.scorer.state_dict()
        # a co-trained foundation's MLP reads more than stage 2 gives, after it
        scorer["mlp.0.weight"] = scorer["mlp.0.weight"][:, : model.scorer.mlp[0].in_features]
        model.scorer.load_state_dict(scorer)
        model.target_attention.load_state_dict(foundation.history.target_attention.state_dict())
        if model.tokens is not None:
            model.tokens.load_state_dict(foundation.tokens.state_dict())
        device = device_of(foundation)
        was_training = foundation.training
        foundation.eval()
        with torch.no_grad():
            summary_BSD = foundation.summarise(tensors(_nobody(foundation.spec), device))
        foundation.train(was_training)
        model.to(device)
        model.fallback_summary_SD.copy_(summary_BSD[0])
        return model

    def forward(self, batch: TensorBatch, summary_BSD: Tensor) -> RankerOutput:
        """Logits of the batch's candidates; of its histories only the recent tail is read."""
        candidates_CI = self.scorer.embed(batch)
        uih = None
        if self.tokens is not None:
            uih = self.tokens(self.scorer.items(batch.uih_item_L, batch.uih_category_L), batch)
        history_CD = self.target_attention(candidates_CI, summary_BSD, uih, batch.candidate_user_C)
        return RankerOutput(self.scorer.logits(candidates_CI, history_CD, batch))

    def with_fallback(self, summary_BSD: Tensor, found_B: Tensor) -> Tensor:
        """`summary_BSD` with the fallback in place of the rows that were not found."""
        return summary_BSD.where(found_B[:, None, None], self.fallback_summary_SD)


def _nobody(spec: FeatureSpec) -> Batch:
    """One user without events and candidates."""
    none, zero = np.zeros(0, np.int64), np.zeros(1, np.int64)
    return Batch(
        user_id_B=zero,
        user_row_B=zero,
        cut_us_B=zero,
        seq_offsets=np.zeros(2, np.int64),
        uih_item_L=none,
        uih_category_L=none,
        uih_action_L=none,
        uih_value_L=none,
        uih_time_us_L=none,
        num_candidates=zero,
        candidate_item_C=none,
        candidate_category_C=none,
        candidate_context_CK=np.zeros((0, len(spec.context)), np.int64),
        candidate_dense_CF=np.zeros((0, len(spec.dense)), np.float32),
        candidate_id_C=none,
        labels_CT=np.zeros((0, len(spec.tasks)), np.float32),
    )
