"""Softmax attention over packed histories: of the events among themselves, and of candidates.

Shape suffixes: L packed history rows, B users, G users of one length group, W padded length, P padded rows of
all groups, C candidates, M chunks of R events beside a candidate, H heads, E width of a head.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from vista.model.baselines.chunks import chunks_of, rows_of
from vista.model.inputs import segment_sum


def softmax_attention(
    q_LHE: Tensor, k_LHE: Tensor, v_LHE: Tensor, seq_offsets: Tensor, *, causal: bool
) -> Tensor:
    """Every event reads all events of its user (`causal`: up to itself); returns out_LHE.

    Users of similar length (within a factor of two) are padded to the longest of them.
    """
    lengths_B = seq_offsets.diff()
    group_B = lengths_B.clamp(min=16).double().log2().ceil().long().where(lengths_B > 0, 0)
    lengths_in, rows_in, known_in = [], [], []
    for group in torch.unique(group_B[lengths_B > 0]).tolist():
        users_G = (group_B == group).nonzero().squeeze(1)
        lengths_G1 = lengths_B[users_G].unsqueeze(1)
        slots_W = torch.arange(int(lengths_G1.max()), device=users_G.device)
        known_in.append(slots_W < lengths_G1)
        rows_in.append((seq_offsets[users_G].unsqueeze(1) + slots_W).where(known_in[-1], 0))
        lengths_in.append(lengths_G1)
    if not rows_in:
        return v_LHE
    rows_P = torch.cat([rows_GW.flatten() for rows_GW in rows_in])
    known_P = torch.cat([known_GW.flatten() for known_GW in known_in])
    sizes = [rows_GW.numel() for rows_GW in rows_in]
    padded = [x_LHE.index_select(0, rows_P).split_with_sizes(sizes) for x_LHE in (q_LHE, k_LHE, v_LHE)]
    out = []
    for known_GW, *parts in zip(known_in, *padded, strict=True):
        q, k, v = (part.view(*known_GW.shape, *part.shape[1:]).transpose(1, 2) for part in parts)
        # in a causal read the padding, which is newest, is read by padding only
        reads = None if causal else known_GW[:, None, None]
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=reads, is_causal=causal)
        out.append(attended.transpose(1, 2).flatten(0, 1))
    place_L = torch.empty_like(rows_P[: len(v_LHE)])
    place_L[rows_P[known_P]] = known_P.nonzero().squeeze(1)
    return torch.cat(out).index_select(0, place_L)


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
