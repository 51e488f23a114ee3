"""The generative reconstruction loss: the summary must retain the history (section 3.2.3).

Shape suffixes: B users, G users of one length group, L packed history rows, S seeds, W window, H heads, D
width, E width of a head.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vista.config import ModelConfig
from vista.model.blocks import SGLU, SRMSNorm
from vista.model.inputs import Uih


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
        target_LD = self.norm(uih.tokens_LD).detach()
        total = ordered_LD.new_zeros(())
        predictions = 0
        lengths_B = uih.seq_offsets.diff().clamp(max=self.window)
        for users_G, width in _length_groups(lengths_B):
            slots_W = torch.arange(width, device=users_G.device)
            lengths_G1 = lengths_B[users_G].unsqueeze(1)
            known_GW = slots_W < lengths_G1
            oldest_G1 = uih.seq_offsets[1:][users_G].unsqueeze(1) - lengths_G1
            rows_GW = (oldest_G1 + slots_W).where(known_GW, 0)
            v_GWD = self.decode(summary_BSD[users_G], ordered_LD[rows_GW])
            squared_GW = (v_GWD[:, :-1] - target_LD[rows_GW[:, 1:]]).square().sum(-1)
            total = total + squared_GW.masked_fill(~known_GW[:, 1:], 0.0).sum()
            predictions += int(known_GW[:, 1:].sum())
        return total / max(1, predictions)

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


def _length_groups(lengths_B: Tensor) -> Iterator[tuple[Tensor, int]]:
    """Users with at least two events by power-of-two length, so that padding at most doubles the work.

    Without any such user there is one empty group: every parameter must take part in every step of a
    distributed training.
    """
    exponents_B = lengths_B.clamp(min=2).double().log2().ceil().long().clamp(min=4)
    usable_B = lengths_B >= 2
    found = torch.unique(exponents_B[usable_B]).tolist()
    for exponent in found or [4]:
        users_G = (usable_B & (exponents_B == exponent)).nonzero().squeeze(1)
        longest = int(lengths_B[users_G].max()) if users_G.numel() else 2
        yield users_G, longest
