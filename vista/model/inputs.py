"""Batches as tensors, and the user's history as the slots see it.

Shape suffixes: B users, L packed history rows, C candidates, D width, A actions, P length features,
K context columns, F dense features, T tasks.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from vista.data.schema import Batch


@dataclass(frozen=True, slots=True)
class TensorBatch:
    """`Batch` on a device; `uih_user_L` and `candidate_user_C` say whose each row is (0 .. B - 1)."""

    user_row_B: Tensor
    cut_us_B: Tensor
    seq_offsets: Tensor  # [B + 1]
    uih_user_L: Tensor
    uih_item_L: Tensor
    uih_category_L: Tensor
    uih_action_L: Tensor
    uih_value_L: Tensor
    uih_time_us_L: Tensor
    num_candidates: Tensor  # [B]
    candidate_user_C: Tensor
    candidate_item_C: Tensor
    candidate_category_C: Tensor
    candidate_context_CK: Tensor
    candidate_dense_CF: Tensor
    labels_CT: Tensor


@dataclass(frozen=True, slots=True)
class Uih:
    """The packed histories of a batch, embedded: what every slot may read. Oldest event first."""

    tokens_LD: Tensor  # without position
    actions_LA: Tensor  # 0 or 1
    time_us_L: Tensor
    user_L: Tensor
    seq_offsets: Tensor  # [B + 1]
    user_row_B: Tensor
    cut_us_B: Tensor  # when each history ends and its candidates are scored


def device_of(model: nn.Module) -> torch.device:
    """Where a model's weights are, all of them in one place."""
    return next(model.parameters()).device


def tensors(batch: Batch, device: torch.device | str) -> TensorBatch:
    """The arrays of `batch` as tensors on `device`; nothing is copied on the CPU if it is writable."""
    users = np.arange(len(batch.num_candidates))
    arrays = {
        "user_row_B": batch.user_row_B,
        "cut_us_B": batch.cut_us_B,
        "seq_offsets": batch.seq_offsets,
        "uih_user_L": np.repeat(users, np.diff(batch.seq_offsets)),
        "uih_item_L": batch.uih_item_L,
        "uih_category_L": batch.uih_category_L,
        "uih_action_L": batch.uih_action_L,
        "uih_value_L": batch.uih_value_L,
        "uih_time_us_L": batch.uih_time_us_L,
        "num_candidates": batch.num_candidates,
        "candidate_user_C": np.repeat(users, batch.num_candidates),
        "candidate_item_C": batch.candidate_item_C,
        "candidate_category_C": batch.candidate_category_C,
        "candidate_context_CK": batch.candidate_context_CK,
        "candidate_dense_CF": batch.candidate_dense_CF,
        "labels_CT": batch.labels_CT,
    }
    return TensorBatch(
        **{
            name: torch.from_numpy(np.require(x, requirements=["C", "W"])).to(device)
            for name, x in arrays.items()
        }
    )


def segment_sum(x_LD: Tensor, user_L: Tensor, users: int) -> Tensor:
    """Sums of each user's rows: x_LD -> sum_BD, zero for a user without rows."""
    return x_LD.new_zeros(users, *x_LD.shape[1:]).index_add(0, user_L, x_LD)


def length_features(uih: Uih) -> Tensor:
    """lengths_BP, P = 1 + 2A: log of the history's length, and of each action's count and its share.

    They matter more than which items were watched (README of the data: DIN .724 -> .728 on KuaiRand).
    """
    users = uih.seq_offsets.numel() - 1
    length_B1 = uih.seq_offsets.diff().to(uih.actions_LA.dtype).unsqueeze(1)
    return log_lengths(length_B1, segment_sum(uih.actions_LA, uih.user_L, users))


def log_lengths(length_B1: Tensor, count_BA: Tensor) -> Tensor:
    """`length_features` of a history of so many events, of which so many have each action."""
    share_BA = (count_BA + 1) / (length_B1 + 2)
    return torch.cat([length_B1.log1p(), count_BA.log1p(), share_BA], dim=1)


def num_length_features(actions: int) -> int:
    """P of `length_features`."""
    return 1 + 2 * actions
