"""Quasi-linear attention in plain PyTorch: the specification of the op (section 3.2.2, appendix B).

The equations of README.md, line by line, a block of chunks at a time: only the inputs, the outputs and the
states exist in full.

Shape suffixes: B users, L packed rows, T candidates, H heads, D width of queries and keys, E width of values,
N chunks, R rows of a chunk. Rows of a user are [sources ; candidates], oldest first.
"""

import torch
from torch import Tensor

from kernels.activations import PHI, PHI_BACKWARD, Phi
from kernels.chunks import Block, Chunks, candidate_rows, source_count, wide
from kernels.own_term import add_own_term, put_own_gradients

CHUNK_ROWS = 32
BLOCK_ELEMENTS = 2**18
"""Of one of a block's tensors, for each thread: a few of them fit a core's cache."""


def forward(
    q_LHD: Tensor,
    k_LHD: Tensor,
    v_LHE: Tensor,
    seq_offsets: Tensor,
    num_candidates: Tensor,
    phi: Phi,
    phi_out: Phi,
) -> tuple[Tensor, Tensor]:
    """out_LHE, and the state kv_BHDE that the backward pass needs."""
    blocks = _blocks(k_LHD, v_LHE, seq_offsets, num_candidates)
    kv_BHDE = _state(k_LHD, v_LHE, blocks, source_count(seq_offsets, num_candidates), phi)
    p_BHDE = PHI[phi_out](kv_BHDE)
    out_LHE = v_LHE.new_empty(v_LHE.shape)
    for block in blocks:
        q_NHRD, p_NHDE = block.split(q_LHD), p_BHDE.index_select(0, block.user_N)
        block.write(PHI[phi](q_NHRD) @ p_NHDE, out_LHE)
    add_own_term(out_LHE, q_LHD, k_LHD, v_LHE, seq_offsets, num_candidates, phi)
    return out_LHE, kv_BHDE


def backward(
    d_out_LHE: Tensor,
    q_LHD: Tensor,
    k_LHD: Tensor,
    v_LHE: Tensor,
    kv_BHDE: Tensor,
    seq_offsets: Tensor,
    num_candidates: Tensor,
    phi: Phi,
    phi_out: Phi,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients in q, k and v."""
    p_BHED = PHI[phi_out](kv_BHDE).mT.contiguous()
    w_BHDE = torch.zeros_like(kv_BHDE)
    dq_LHD = q_LHD.new_empty(q_LHD.shape)
    blocks = _blocks(k_LHD, v_LHE, seq_offsets, num_candidates)
    for block in blocks:
        q_NHRD, d_out_NHRE = block.split(q_LHD), block.split_filled(d_out_LHE)
        p_NHED = p_BHED.index_select(0, block.user_N)
        w_BHDE.index_add_(0, block.user_N, PHI[phi](q_NHRD).mT @ d_out_NHRE)
        block.write(PHI_BACKWARD[phi](d_out_NHRE @ p_NHED, q_NHRD), dq_LHD)
    n_B = source_count(seq_offsets, num_candidates)
    g_BHDE = PHI_BACKWARD[phi_out](w_BHDE, kv_BHDE) / n_B[:, None, None, None]
    dk_LHD, dv_LHE = _state_backward(g_BHDE, k_LHD, v_LHE, blocks, phi)
    gradients = dq_LHD, dk_LHD, dv_LHE
    put_own_gradients(gradients, d_out_LHE, q_LHD, k_LHD, v_LHE, seq_offsets, num_candidates, phi)
    return gradients


def state(k_LHD: Tensor, v_LHE: Tensor, seq_offsets: Tensor, num_candidates: Tensor, phi: Phi) -> Tensor:
    """kv_BHDE = phi(K_S)^T V_S / n, in float32 at least."""
    n_B = source_count(seq_offsets, num_candidates)
    return _state(k_LHD, v_LHE, _blocks(k_LHD, v_LHE, seq_offsets, num_candidates), n_B, phi)


def state_backward(
    d_kv_BHDE: Tensor, k_LHD: Tensor, v_LHE: Tensor, seq_offsets: Tensor, num_candidates: Tensor, phi: Phi
) -> tuple[Tensor, Tensor]:
    """The gradients in k and v; zero for candidates."""
    g_BHDE = d_kv_BHDE / source_count(seq_offsets, num_candidates)[:, None, None, None]
    blocks = _blocks(k_LHD, v_LHE, seq_offsets, num_candidates)
    dk_LHD, dv_LHE = _state_backward(g_BHDE, k_LHD, v_LHE, blocks, phi)
    rows_T, _ = candidate_rows(seq_offsets, num_candidates)
    return dk_LHD.index_fill_(0, rows_T, 0.0), dv_LHE.index_fill_(0, rows_T, 0.0)


def _blocks(k_LHD: Tensor, v_LHE: Tensor, seq_offsets: Tensor, num_candidates: Tensor) -> list[Block]:
    row_elements = max(x.shape[1] * x.shape[2] for x in (k_LHD, v_LHE))
    chunks = max(1, BLOCK_ELEMENTS * torch.get_num_threads() // (CHUNK_ROWS * row_elements))
    return Chunks(seq_offsets, num_candidates, CHUNK_ROWS).blocks(chunks, heads=k_LHD.shape[1])


def _state(k_LHD: Tensor, v_LHE: Tensor, blocks: list[Block], n_B: Tensor, phi: Phi) -> Tensor:
    dtype = wide(k_LHD[:0]).dtype
    kv_BHDE = k_LHD.new_zeros(n_B.numel(), k_LHD.shape[1], k_LHD.shape[2], v_LHE.shape[2], dtype=dtype)
    for block in blocks:
        k_NHRD, v_NHRE = block.split_sources(k_LHD), block.split_sources(v_LHE)
        kv_BHDE.index_add_(0, block.user_N, PHI[phi](k_NHRD).mT @ v_NHRE)
    return kv_BHDE.div_(n_B[:, None, None, None])


def _state_backward(
    g_BHDE: Tensor, k_LHD: Tensor, v_LHE: Tensor, blocks: list[Block], phi: Phi
) -> tuple[Tensor, Tensor]:
    """For sources; what it writes for candidates is nothing."""
    dk_LHD, dv_LHE = k_LHD.new_empty(k_LHD.shape), v_LHE.new_empty(v_LHE.shape)
    g_BHED = g_BHDE.mT.contiguous()
    for block in blocks:
        k_NHRD, v_NHRE = block.split(k_LHD), block.split(v_LHE)
        g_NHDE, g_NHED = (g.index_select(0, block.user_N) for g in (g_BHDE, g_BHED))
        block.write(PHI_BACKWARD[phi](v_NHRE @ g_NHED, k_NHRD), dk_LHD)
        block.write(PHI[phi](k_NHRD) @ g_NHDE, dv_LHE)
    return dk_LHD, dv_LHE
