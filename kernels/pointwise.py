"""HSTU's pointwise attention, for the baseline and as a peer: quadratic time, linear memory.

Shape suffixes: B users, L packed rows, N chunks, R rows of a chunk, P pairs of a chunk of queries and one of
keys, H heads, D width of queries and keys, E width of values.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from kernels.arguments import check_bounds, check_queries, check_sources
from kernels.chunks import Chunks, candidate_rows, source_count, wide

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
    Arguments, errors and result as for `qla`. Only blocks of pairs exist at a time, backward too.
    """
    check_sources(k_LHD, v_LHE, seq_offsets, num_candidates)
    check_queries(q_LHD, k_LHD)
    check_bounds(seq_offsets, num_candidates, len(k_LHD))
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
    before, offsets = offsets[0], offsets - offsets[0]
    chunks = Chunks(offsets, candidates, CHUNK_ROWS)
    (whole,) = chunks.blocks(chunks.user_N.numel(), q.shape[1])
    q_NHRD = whole.split(q)
    k_NHRD, v_NHRE = whole.split_sources(k), whole.split_sources(v)  # a value of zero is not read
    row_NR = before + chunks.first_row_N[:, None] + torch.arange(CHUNK_ROWS, device=q.device)
    row_NR = torch.minimum(row_NR, before + chunks.end_N[:, None] - 1)
    query_P, key_P = _pairs(chunks, causal)

    def read(query_P: Tensor, key_P: Tensor) -> Tensor:
        score_PHRR = q_NHRD[query_P] @ k_NHRD[key_P].mT
        query_row, key_row = row_NR[query_P][:, :, None], row_NR[key_P][:, None, :]
        if bias is not None:
            score_PHRR = score_PHRR + bias(query_row, key_row).movedim(-1, 1)
        weight_PHRR = F.silu(score_PHRR)
        if causal:
            weight_PHRR = weight_PHRR.masked_fill((key_row > query_row).unsqueeze(1), 0.0)
        return weight_PHRR @ v_NHRE[key_P]

    out_NHRE = torch.zeros_like(v_NHRE)
    for first in range(0, query_P.numel(), BLOCK_PAIRS):
        block = slice(first, first + BLOCK_PAIRS)
        part_PHRE = checkpoint(read, query_P[block], key_P[block], use_reentrant=False)
        out_NHRE.index_add_(0, query_P[block], part_PHRE)
    at, _ = candidate_rows(offsets, candidates)
    q_THD, k_THD, v_THE = (wide(x[at]) for x in (q, k, v))
    score_TH = (q_THD * k_THD).sum(-1)
    if bias is not None:
        score_TH = score_TH + bias(at + before, at + before)
    out_LHE = whole.join(out_NHRE).index_add(0, at, F.silu(score_TH).unsqueeze(-1) * v_THE)
    n_L = source_count(offsets, candidates).repeat_interleave(offsets.diff())
    return (out_LHE / n_L[:, None, None]).to(v.dtype)


def _pairs(chunks: Chunks, causal: bool) -> tuple[Tensor, Tensor]:
    """Which chunk of queries reads which chunk of keys, as query_P and key_P."""
    source_rows_N = chunks.source_end_N - chunks.first_row_N[chunks.first_chunk_N]
    keys_N = (source_rows_N + CHUNK_ROWS - 1) // CHUNK_ROWS
    chunk_N = torch.arange(keys_N.numel(), device=keys_N.device)
    if causal:
        keys_N = torch.minimum(keys_N, chunk_N - chunks.first_chunk_N + 1)
    query_P = chunk_N.repeat_interleave(keys_N)
    key_of_query_P = (
        torch.arange(query_P.numel(), device=keys_N.device) - (keys_N.cumsum(0) - keys_N)[query_P]
    )
    return query_P, chunks.first_chunk_N[query_P] + key_of_query_P
