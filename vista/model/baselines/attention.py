"""Softmax attention over packed histories: of the events among themselves, and of candidates.

Shape suffixes: L packed history rows, G users of one group, W rows of its longest user, C candidates,
M chunks of R events beside a candidate, H heads, E width of a head.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from vista.model.baselines.chunks import chunks_of, rows_of
from vista.model.inputs import segment_sum
from vista.model.padding import PaddedGroups


def softmax_attention(
    q_LHE: Tensor, k_LHE: Tensor, v_LHE: Tensor, seq_offsets: Tensor, *, causal: bool
) -> Tensor:
    """Every event reads all events of its user (`causal`: up to itself); returns out_LHE."""
    padded = PaddedGroups(seq_offsets)
    out = []
    for group, *parts in zip(padded.groups, *(padded.pad(x) for x in (q_LHE, k_LHE, v_LHE)), strict=True):
        q, k, v = (x_GWHE.transpose(1, 2) for x_GWHE in parts)
        # the padding is newest: in a causal read only padding reads it
        reads = None if causal else group.known_GW[:, None, None]
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=reads, is_causal=causal)
        out.append(attended.transpose(1, 2))
    return padded.unpad(out)


def softmax_read(
    q_CHE: Tensor,
    own_k_CHE: Tensor,
    own_v_CHE: Tensor,
    k_LHE: Tensor,
    v_LHE: Tensor,
    seq_offsets: Tensor,
    user_C: Tensor,
) -> Tensor:
    """Every candidate reads all events of its user, and itself; returns out_CHE."""
    reader_M, row_MR, known_MR = chunks_of(seq_offsets, user_C)
    q_CHE = q_CHE * q_CHE.shape[-1] ** -0.5
    k_MRHE, v_MRHE = (rows_of(x_LHE, row_MR) for x_LHE in (k_LHE, v_LHE))
    score_MRH = (q_CHE.index_select(0, reader_M).unsqueeze(1) * k_MRHE).sum(-1)
    score_MRH = score_MRH.masked_fill(~known_MR.unsqueeze(2), -torch.inf)
    own_CH = (q_CHE * own_k_CHE).sum(-1)
    reader_MH = reader_M.unsqueeze(1).expand(-1, own_CH.shape[1])
    highest_CH = own_CH.detach().scatter_reduce(0, reader_MH, score_MRH.detach().amax(1), "amax")
    weight_MRH = (score_MRH - highest_CH.index_select(0, reader_M).unsqueeze(1)).exp()
    own_weight_CH = (own_CH - highest_CH).exp()
    total_CH = segment_sum(weight_MRH.sum(1), reader_M, len(user_C)) + own_weight_CH
    read_MHE = (weight_MRH.unsqueeze(-1) * v_MRHE).sum(1)
    read_CHE = segment_sum(read_MHE, reader_M, len(user_C)) + own_weight_CH.unsqueeze(-1) * own_v_CHE
    return read_CHE / total_CH.unsqueeze(-1)
