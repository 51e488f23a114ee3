"""Embedding tables, and the tokens and features made from them.

Shape suffixes: L packed history rows, C candidates, N any rows, I item features (item, and category), D
width, A actions, G all features of a candidate, F dense features.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vista.config import ModelConfig
from vista.data.schema import UNSEEN_ROW, FeatureSpec
from vista.model.inputs import TensorBatch, Uih
from vista.model.recompute import by_rows


def _table(rows: int, width: int, init: float) -> nn.Embedding:
    table = nn.Embedding(rows, width)
    nn.init.normal_(table.weight, std=init)
    return table


def known_rows(row_N: Tensor, count: int) -> Tensor:
    """Rows that a table of `count` rows does not have become the unseen row."""
    return row_N.where(row_N < count, UNSEEN_ROW)


class IdTable(nn.Module):
    """Embeddings of ids. Ids newer than the table, and in training a random share, take the unseen row."""

    def __init__(self, rows: int, config: ModelConfig) -> None:
        super().__init__()
        self.table = _table(rows, config.width, config.embedding_init)
        self.id_dropout = config.id_dropout

    def forward(self, row_N: Tensor) -> Tensor:
        row_N = known_rows(row_N, self.table.num_embeddings)
        if self.training and self.id_dropout:
            dropped_N = torch.rand(row_N.shape, device=row_N.device) < self.id_dropout
            row_N = row_N.masked_fill(dropped_N, UNSEEN_ROW)
        # not self.table(row_N): on a CPU the gradient of an embedding takes three times that of index_select
        return self.table.weight.index_select(0, row_N)


class ItemTables(nn.Module):
    """What is known of an item, the same for candidates and history: its id, and its category."""

    def __init__(self, config: ModelConfig, spec: FeatureSpec) -> None:
        super().__init__()
        self.item = IdTable(spec.num_items, config)
        self.category = IdTable(spec.num_categories, config) if config.use_side_features else None
        self.width = config.width * (1 + config.use_side_features)

    def forward(self, item_N: Tensor, category_N: Tensor) -> Tensor:
        """Rows of both tables -> features_NI."""
        item_ND: Tensor = self.item(item_N)
        if self.category is None:
            return item_ND
        return torch.cat([item_ND, self.category(category_N)], dim=-1)


class UihTokens(nn.Module):
    """One token per event: item, category, action bits and value bucket, projected to the width.

    Without bias: it would drown 1e-4 embeddings, and make the reconstruction's target a constant.
    """

    action_bits: Tensor

    def __init__(self, config: ModelConfig, spec: FeatureSpec, item_width: int) -> None:
        super().__init__()
        self.register_buffer("action_bits", torch.arange(len(spec.actions)))
        self.action = nn.Parameter(torch.randn(len(spec.actions), config.width) * config.embedding_init)
        self.value = _table(spec.num_value_buckets, config.width, config.embedding_init)
        self.project = nn.Linear(item_width + 2 * config.width, config.width, bias=False)

    def forward(self, item_LI: Tensor, batch: TensorBatch) -> Uih:
        bits_LA = (batch.uih_action_L[:, None] >> self.action_bits) & 1
        actions_LA = bits_LA.to(item_LI.dtype)
        return Uih(
            tokens_LD=by_rows(self._tokens, self, item_LI, actions_LA, batch.uih_value_L),
            actions_LA=actions_LA,
            time_us_L=batch.uih_time_us_L,
            user_L=batch.uih_user_L,
            seq_offsets=batch.seq_offsets,
            user_row_B=batch.user_row_B,
            cut_us_B=batch.cut_us_B,
        )

    def _tokens(self, item_LI: Tensor, actions_LA: Tensor, value_L: Tensor) -> Tensor:
        """The projection of [item ; actions ; value]; that of the few actions and values is done once."""
        width = self.action.shape[1]
        of_item, of_action, of_value = self.project.weight.split_with_sizes(
            [item_LI.shape[1], width, width], 1
        )
        actions_LD = actions_LA @ (self.action @ of_action.T)
        return (
            F.linear(item_LI, of_item)
            + actions_LD
            + (self.value.weight @ of_value.T).index_select(0, value_L)
        )


class DenseFeatures(nn.Module):
    """Dense features at about unit scale by fixed transforms: nothing is fitted, so nothing can leak.

    Rates and shares (by name) become log-odds, in which .01 and .02 differ; residuals lie
    closely around 0; the rest are logs already.
    """

    fraction_F: Tensor

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__()
        fractions = [any(kind in name for kind in ("_rate_", "_share_")) for name in names]
        self.register_buffer("fraction_F", torch.tensor(fractions))
        scales = [2.0 if "_residual_" in name else 0.5 if fraction else 0.25
                  for name, fraction in zip(names, fractions, strict=True)]  # fmt: skip
        self.scale_F = nn.Parameter(torch.tensor(scales))

    def forward(self, x_CF: Tensor) -> Tensor:
        odds_CF = x_CF.clamp(0.0, 1.0).logit(eps=1e-3)
        scaled_CF: Tensor = odds_CF.where(self.fraction_F, x_CF) * self.scale_F
        return scaled_CF


class CandidateFeatures(nn.Module):
    """What the MLP sees of a candidate beside the history: user, item, category, context, dense features."""

    def __init__(self, config: ModelConfig, spec: FeatureSpec, item_width: int) -> None:
        super().__init__()
        self.user = IdTable(spec.num_users, config) if config.use_user_id else None
        columns = spec.context if config.use_side_features else ()
        self.context = nn.ModuleList(
            _table(column.cardinality, config.width, config.embedding_init) for column in columns
        )
        self.dense = DenseFeatures(spec.dense) if config.use_dense_features and spec.dense else None
        tables = config.use_user_id + len(columns)
        self.width = item_width + tables * config.width + (len(spec.dense) if self.dense is not None else 0)

    def forward(self, item_CI: Tensor, batch: TensorBatch) -> Tensor:
        """item_CI -> features_CG."""
        parts = [item_CI]
        if self.user is not None:
            parts.append(self.user(batch.user_row_B[batch.candidate_user_C]))
        parts += [table(batch.candidate_context_CK[:, k]) for k, table in enumerate(self.context)]
        if self.dense is not None:
            parts.append(self.dense(batch.candidate_dense_CF))
        return torch.cat(parts, dim=1)
