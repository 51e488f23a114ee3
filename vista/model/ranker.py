"""The whole model: embeddings, one slot for the user's history, and an MLP with one output per task.

Shape suffixes: B users, S seeds, C candidates, I item features, D width, E what a slot gives, T tasks.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vista.config import ModelConfig
from vista.data.schema import FeatureSpec
from vista.model.baselines.din import Din
from vista.model.baselines.hstu import Hstu
from vista.model.baselines.pooled import MeanPool, TwoTower
from vista.model.baselines.transformer import Mha, SasRec
from vista.model.blocks import mlp
from vista.model.embeddings import CandidateFeatures, ItemTables, UihTokens
from vista.model.history import HistoryModule
from vista.model.inputs import TensorBatch, Uih
from vista.model.reconstruction import Reconstruction
from vista.model.summariser import Summariser
from vista.model.target_attention import TargetAttention

SlotName = Literal["vista", "vista_hstu", "no_history", "mean_pool", "ttsn", "din", "mha", "sasrec", "hstu"]


@dataclass(frozen=True, slots=True)
class RankerOutput:
    """Logits of every candidate and task; the reconstruction loss in training, where the model has one."""

    logits_CT: Tensor
    reconstruction_loss: Tensor | None = None


def loss(output: RankerOutput, labels_CT: Tensor, task_weights: tuple[float, ...] = ()) -> Tensor:
    """Binary cross-entropy, summed over candidates and, weighted, over tasks (the caller divides by the
    global count of candidates). No weights: 1 each."""
    weights_T = labels_CT.new_tensor(task_weights) if task_weights else None
    return F.binary_cross_entropy_with_logits(output.logits_CT, labels_CT, weights_T, reduction="sum")


class Scorer(nn.Module):
    """What all models share around the history: the candidates' features and the MLP."""

    def __init__(self, config: ModelConfig, spec: FeatureSpec) -> None:
        super().__init__()
        self.items = ItemTables(config, spec)
        self.features = CandidateFeatures(config, spec, self.items.width)

    def add_mlp(self, config: ModelConfig, spec: FeatureSpec, history_width: int) -> None:
        """The last part: its width depends on the slot's, whose width depends on the items'."""
        self.mlp = mlp(
            self.features.width + history_width,
            config.mlp,
            len(spec.tasks),
            config.dropout,
            batch_norm=config.mlp_batch_norm,
        )

    def embed(self, batch: TensorBatch) -> Tensor:
        """candidates_CI."""
        embedded_CI: Tensor = self.items(batch.candidate_item_C, batch.candidate_category_C)
        return embedded_CI

    def logits(self, candidates_CI: Tensor, history_CE: Tensor, batch: TensorBatch) -> Tensor:
        """logits_CT."""
        features_CG = self.features(candidates_CI, batch)
        scored_CT: Tensor = self.mlp(torch.cat([features_CG, history_CE], dim=1))
        return scored_CT


class VistaHistory(HistoryModule):
    """Both stages: the summary of the history, and each candidate's view of it."""

    def __init__(self, config: ModelConfig, spec: FeatureSpec, item_width: int) -> None:
        super().__init__()
        self.summariser = Summariser(config, len(spec.actions))
        self.target_attention = TargetAttention(config, item_width)
        self.reconstruction = Reconstruction(config) if config.reconstruction_weight else None
        self.width = config.width

    def forward(self, uih: Uih, candidates_CI: Tensor, user_C: Tensor) -> Tensor:
        history_CD: Tensor = self.target_attention(candidates_CI, self.summariser(uih), uih, user_C)
        return history_CD

    def with_reconstruction(
        self, uih: Uih, candidates_CI: Tensor, user_C: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """history_CD, and the reconstruction loss unless its weight is 0."""
        ordered_LD = self.summariser.order(uih)
        summary_BSD = self.summariser.summarise(ordered_LD, uih)
        history_CD = self.target_attention(candidates_CI, summary_BSD, uih, user_C)
        if self.reconstruction is None:
            return history_CD, None
        return history_CD, self.reconstruction(summary_BSD, ordered_LD, uih)


class CoTrained(VistaHistory):
    """VISTA beside HSTU over the same embeddings (table 3): the MLP reads what both give, VISTA's first."""

    def __init__(self, config: ModelConfig, spec: FeatureSpec, item_width: int) -> None:
        super().__init__(config, spec, item_width)
        self.hstu = Hstu(config, spec, item_width)
        self.width = config.width + self.hstu.width

    def forward(self, uih: Uih, candidates_CI: Tensor, user_C: Tensor) -> Tensor:
        vista_CD = super().forward(uih, candidates_CI, user_C)
        return torch.cat([vista_CD, self.hstu(uih, candidates_CI, user_C)], dim=1)

    def with_reconstruction(
        self, uih: Uih, candidates_CI: Tensor, user_C: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        vista_CD, reconstruction_loss = super().with_reconstruction(uih, candidates_CI, user_C)
        return torch.cat([vista_CD, self.hstu(uih, candidates_CI, user_C)], dim=1), reconstruction_loss


SLOTS: dict[SlotName, Callable[[ModelConfig, FeatureSpec, int], HistoryModule]] = {
    "vista": VistaHistory,
    "vista_hstu": CoTrained,
    "mean_pool": MeanPool,
    "ttsn": TwoTower,
    "din": Din,
    "mha": Mha,
    "sasrec": SasRec,
    "hstu": Hstu,
}
"""All but `no_history`, which has nothing in it."""


class Ranker(nn.Module):
    """A model that reads the raw history: VISTA's foundation model, or a baseline in the same slot."""

    def __init__(self, config: ModelConfig, spec: FeatureSpec, slot: SlotName) -> None:
        super().__init__()
        self.config, self.spec, self.slot = config, spec, slot
        self.scorer = Scorer(config, spec)
        item_width = self.scorer.items.width
        self.history: HistoryModule | None = None
        if slot != "no_history":
            self.tokens = UihTokens(config, spec, item_width)
            self.history = SLOTS[slot](config, spec, item_width)
        self.scorer.add_mlp(config, spec, self.history.width if self.history else 0)

    def forward(self, batch: TensorBatch) -> RankerOutput:
        """Logits of the candidates; in training the reconstruction loss too."""
        candidates_CI = self.scorer.embed(batch)
        reconstruction_loss = None
        if self.history is None:
            history_CE = candidates_CI[:, :0]
        elif self.training and isinstance(self.history, VistaHistory):
            history_CE, reconstruction_loss = self.history.with_reconstruction(
                self.uih(batch), candidates_CI, batch.candidate_user_C
            )
        else:
            history_CE = self.history(self.uih(batch), candidates_CI, batch.candidate_user_C)
        return RankerOutput(self.scorer.logits(candidates_CI, history_CE, batch), reconstruction_loss)

    def uih(self, batch: TensorBatch) -> Uih:
        """The embedded histories."""
        embedded: Uih = self.tokens(self.scorer.items(batch.uih_item_L, batch.uih_category_L), batch)
        return embedded

    def summarise(self, batch: TensorBatch) -> Tensor:
        """summary_BSD of the batch's histories (slots "vista" and "vista_hstu"); candidates are not read."""
        assert isinstance(self.history, VistaHistory), f"slot {self.slot!r} has no summaries"
        summary_BSD: Tensor = self.history.summariser(self.uih(batch))
        return summary_BSD
