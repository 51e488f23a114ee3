"""The generative reconstruction loss: the summary must retain the history (section 3.2.3).

Shape suffixes: B users, L packed history rows, G users of one group, W rows of its longest user, S seeds,
H heads, D width, E width of a head.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vista.config import ModelConfig
from vista.model.blocks import SGLU, SRMSNorm
from vista.model.inputs import Uih
from vista.model.padding import PaddedGroups


class Reconstruction(nn.Module):
    """A causal softmax block over [summary ; uih] predicts each event's token from those before it."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.window = config.reconstruction_window
        self.norm = SRMSNorm()
        self.query_key_value = nn.Linear(config.width, 3 * config.width, bias=False)
        self.attended = nn.Linear(config.width, config.width, bias=False)
        self.sglu = SGLU(config.width)
        self.output = nn.Linear(config.width, config.width)

    def forward(self, summary_BSD: Tensor, ordered_LD: Tensor, uih: Uih) -> Tensor:
        """Mean over users and positions i < M of |v_i - u_{i + 1}|^2, within the newest `window` events.

        `ordered_LD` are the tokens with their positions, which the decoder reads. The target u is the
        normalised token without position, and takes no gradient: embeddings could collapse onto it.
        """
        read_LD, target_LD, seq_offsets = self._newest(ordered_LD, uih)
        padded = PaddedGroups(seq_offsets)
        total = ordered_LD.new_zeros(())
        parts = zip(padded.groups, padded.pad(read_LD), padded.pad(target_LD), strict=True)
        for group, read_GWD, target_GWD in parts:
            v_GWD = self.decode(summary_BSD[group.users_G], read_GWD)
            squared_GW = (v_GWD[:, :-1] - target_GWD[:, 1:]).square().sum(-1)
            total = total + squared_GW.masked_fill(~group.known_GW[:, 1:], 0.0).sum()
        predictions = (seq_offsets.diff() - 1).clamp(min=0).sum()
        return total / predictions.clamp(min=1)

    def _newest(self, ordered_LD: Tensor, uih: Uih) -> tuple[Tensor, Tensor, Tensor]:
        """The rows of the newest `window` events of each user, their targets, and their offsets."""
        lengths_B = uih.seq_offsets.diff()
        kept_B = lengths_B.clamp(max=self.window)
        seq_offsets = torch.cat([kept_B.new_zeros(1), kept_B.cumsum(0)])
        tokens_LD = uih.tokens_LD.detach()
        if bool((lengths_B > self.window).any()):
            shift_B = uih.seq_offsets[1:] - seq_offsets[1:]
            rows_L = torch.arange(int(seq_offsets[-1]), device=shift_B.device)
            rows_L = rows_L + shift_B.repeat_interleave(kept_B)
            ordered_LD, tokens_LD = ordered_LD.index_select(0, rows_L), tokens_LD.index_select(0, rows_L)
        return ordered_LD, self.norm(tokens_LD), seq_offsets

    def decode(self, summary_GSD: Tensor, tokens_GWD: Tensor) -> Tensor:
        """v_GWD: position i has read the summary and tokens 0 .. i."""
        x = torch.cat([summary_GSD, tokens_GWD], dim=1)
        q, k, v = self.query_key_value(self.norm(x)).chunk(3, dim=-1)
        shape = (*x.shape[:-1], self.heads, x.shape[-1] // self.heads)
        q, k, v = (part.reshape(shape).transpose(1, 2) for part in (q, k, v))
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(-2)
        x = (x + self.attended(attended))[:, summary_GSD.shape[1] :]
        x = x + self.sglu(self.norm(x))
        decoded_GWD: Tensor = self.output(self.norm(x))
        return decoded_GWD
