"""HSTU's pointwise attention, for the baseline and as a peer: quadratic time, linear memory.

Shape suffixes: B users, L packed rows, N chunks, R rows of a chunk, P pairs of a chunk of queries and one of
keys, H heads, D width of queries and keys, E width of values.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from kernels.chunks import Block, Chunks

PairBias = Callable[[Tensor, Tensor], Tensor]
"""(packed rows of queries, packed rows of keys), which broadcast -> bias [..., H]; may hold parameters."""

CHUNK_ROWS = 64
BLOCK_PAIRS = 128
GROUP_ROWS = 4096
"""Users whose first rows lie in one window of this size are cut out together."""


def silu_attention(
    q_LHD: Tensor,
    k_LHD: Tensor,
    v_LHE: Tensor,
    seq_offsets: Tensor,
    num_candidates: Tensor,
    *,
    causal: bool,
    bias: PairBias | None = None,
) -> Tensor:
    """out_i = sum over read rows j of silu(<q_i, k_j> + bias_ij) v_j / n, with n = max(1, sources).

    A source reads its user's sources (`causal`: up to itself), a candidate reads all sources and itself.
    Arguments as for `qla`; returns out_LHE. Only blocks of pairs exist at a time, also in the backward pass.
    """
    window_B = seq_offsets[:-1] // GROUP_ROWS
    _, users = torch.unique_consecutive(window_B, return_counts=True)
    ends_B = users.cumsum(0)
    rows = seq_offsets[ends_B].diff(prepend=seq_offsets[:1]).tolist()
    groups = zip(
        q_LHD.split_with_sizes(rows), k_LHD.split_with_sizes(rows), v_LHE.split_with_sizes(rows),
        (ends_B - users).tolist(), ends_B.tolist(), strict=True,
    )  # fmt: skip
    outs = [
        _group(q, k, v, seq_offsets[first : last + 1], num_candidates[first:last], causal, bias)
        for q, k, v, first, last in groups
    ]
    return torch.cat([*outs, v_LHE[:0]])


def _group(
    q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, candidates: Tensor, causal: bool, bias: PairBias | None
) -> Tensor:
    """A few whole users."""
    chunks = Chunks(offsets - offsets[0], candidates, CHUNK_ROWS)
    whole = Block(slice(0, chunks.user_N.numel()), slice(0, q.shape[0]))
    # A value of zero is not read: neither are candidates, nor the slots that no row fills.
    source_v = v.masked_fill(chunks.candidate_L[:, None, None], 0.0)
    q_NHRD, k_NHRD, v_NHRE = (chunks.pad(x, whole).contiguous() for x in (q, k, source_v))
    rows_R = torch.arange(CHUNK_ROWS, device=q.device)
    row_NR = (chunks.first_row_N[:, None] + rows_R).clamp(max=q.shape[0] - 1) + offsets[0]
    out_NHRE = torch.zeros_like(v_NHRE)
    query_P, key_P = _pairs(chunks, causal)

    def read(query_P: Tensor, key_P: Tensor) -> Tensor:
        score_PHRR = q_NHRD[query_P] @ k_NHRD[key_P].transpose(-1, -2)
        query_row, key_row = row_NR[query_P][:, :, None], row_NR[key_P][:, None, :]
        if bias is not None:
            score_PHRR = score_PHRR + bias(query_row, key_row).movedim(-1, 1)
        weight_PHRR = F.silu(score_PHRR)
        if causal:
            weight_PHRR = weight_PHRR.masked_fill((key_row > query_row).unsqueeze(1), 0.0)
        return weight_PHRR @ v_NHRE[key_P]

    for first in range(0, query_P.numel(), BLOCK_PAIRS):
        block = slice(first, first + BLOCK_PAIRS)
        part_PHRE = checkpoint(read, query_P[block], key_P[block], use_reentrant=False)
        out_NHRE.index_add_(0, query_P[block], part_PHRE)
    at = chunks.candidate_L.nonzero().squeeze(1)
    score = (q[at] * k[at]).sum(-1)
    own = F.silu(score if bias is None else score + bias(at + offsets[0], at + offsets[0]))
    out_LHE = chunks.unpad(out_NHRE, whole).index_add(0, at, own.unsqueeze(-1) * v[at])
    return out_LHE / chunks.sources_B.clamp(min=1).to(v.dtype)[chunks.user_L, None, None]


def _pairs(chunks: Chunks, causal: bool) -> tuple[Tensor, Tensor]:
    """Which chunk of queries reads which chunk of keys, as query_P and key_P."""
    keys_N = ((chunks.sources_B + CHUNK_ROWS - 1) // CHUNK_ROWS)[chunks.user_N]
    if causal:
        keys_N = torch.minimum(keys_N, chunks.chunk_of_user_N + 1)
    query_P = torch.arange(keys_N.numel(), device=keys_N.device).repeat_interleave(keys_N)
    key_of_query_P = (
        torch.arange(query_P.numel(), device=keys_N.device) - (keys_N.cumsum(0) - keys_N)[query_P]
    )
    return query_P, chunks.first_chunk_B[chunks.user_N[query_P]] + key_of_query_P
