"""Exponential decay: the weight of an event halves with every half-life that it is older than the newest one.

What is weighed are the sums that attention reads, Z and n. The length features count all events alike.

Shape suffixes: B users, L packed history rows, S seeds.
"""

import torch
from torch import Tensor

from vista.model.inputs import Uih, segment_sum


def fading(age_us: Tensor, half_life_s: float | None) -> Tensor:
    """What an event of this age weighs, float64; 1 without a half-life.

    >>> fading(torch.tensor([0, 3_000_000, 6_000_000]), 3.0).tolist()
    [1.0, 0.5, 0.25]
    """
    if half_life_s is None:
        return torch.ones_like(age_us, dtype=torch.float64)
    return torch.exp2(-age_us.double() / (1e6 * half_life_s))


def newest_us(uih: Uih, floor_us_B: Tensor) -> Tensor:
    """[B] the time of each user's newest event, at least `floor_us_B`."""
    return floor_us_B.scatter_reduce(0, uih.user_L, uih.time_us_L, "amax")


def source_weights(uih: Uih, seeds: int, half_life_s: float) -> tuple[Tensor, Tensor]:
    """Weights of the events [L] and of the seeds [B, S], which do not fade; their mean is 1 for every user.

    So attention over n sources, each value times its weight, is the weighted mean.
    """
    lengths_B = uih.seq_offsets.diff()
    newest_B = newest_us(uih, torch.zeros_like(lengths_B))
    weight_L = fading(newest_B[uih.user_L] - uih.time_us_L, half_life_s)
    sum_B = segment_sum(weight_L, uih.user_L, lengths_B.numel()) + seeds
    scale_B = (lengths_B + seeds) / sum_B
    kind = uih.tokens_LD.dtype
    return (weight_L * scale_B[uih.user_L]).to(kind), scale_B.to(kind).unsqueeze(1).expand(-1, seeds)
