"""Packed rows as padded groups of users, for kernels that want rectangles.

Shape suffixes: B users, L packed rows, G users of one group, W rows of its longest user.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

SMALLEST_GROUP = 16
"""Users of up to so many rows form one group."""


@dataclass(frozen=True, slots=True)
class Group:
    """Users of similar length: which they are, and which of their padded rows exist."""

    users_G: Tensor
    known_GW: Tensor


class PaddedGroups:
    """Users by power-of-two length, so that padding at most doubles the work. There is at least one group,
    though it may be empty: every parameter must take part in every step of a distributed training."""

    def __init__(self, seq_offsets: Tensor) -> None:
        lengths_B = seq_offsets.diff()
        exponents_B = lengths_B.clamp(min=SMALLEST_GROUP).double().log2().ceil().long()
        self.groups: list[Group] = []
        slot_B = torch.zeros_like(lengths_B)
        slots = 0
        for exponent in torch.unique(exponents_B).tolist() or [0]:
            users_G = (exponents_B == exponent).nonzero().squeeze(1)
            lengths_G = lengths_B[users_G]
            width = max(2, *lengths_G.tolist(), 0)
            places_W = torch.arange(width, device=lengths_B.device)
            self.groups.append(Group(users_G, places_W < lengths_G.unsqueeze(1)))
            slot_B[users_G] = slots + width * torch.arange(users_G.numel(), device=lengths_B.device)
            slots += width * users_G.numel()
        shift_L = (slot_B - seq_offsets[:-1]).repeat_interleave(lengths_B)
        self.slot_L = torch.arange(shift_L.numel(), device=lengths_B.device) + shift_L
        self.slots = slots

    def pad(self, x_L: Tensor) -> list[Tensor]:
        """Rows of any shape -> [G, W, ...] for each group, zero where a user has no row."""
        padded = x_L.new_zeros(self.slots, *x_L.shape[1:]).index_copy_(0, self.slot_L, x_L)
        parts = padded.split_with_sizes([group.known_GW.numel() for group in self.groups])
        return [
            part.view(*group.known_GW.shape, *x_L.shape[1:])
            for part, group in zip(parts, self.groups, strict=True)
        ]

    def unpad(self, parts: list[Tensor]) -> Tensor:
        """The inverse of `pad`."""
        return torch.cat([part.flatten(0, 1) for part in parts]).index_select(0, self.slot_L)
