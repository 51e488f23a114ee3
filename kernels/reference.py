"""Quasi-linear attention in plain PyTorch: the specification of the op (section 3.2.2, appendix B).

The equations of README.md, line by line, a block of chunks at a time: only the inputs, the outputs and the
states exist in full.

Shape suffixes: B users, L packed rows, T candidates, H heads, D width of queries and keys, E width of values,
N chunks, R rows of a chunk. Rows of a user are [sources ; candidates], oldest first.
"""

import torch
from torch import Tensor

from kernels.activations import PHI, PHI_BACKWARD, Phi
from kernels.chunks import Chunks, candidate_rows, source_count

CHUNK_ROWS = 32
BLOCK_CHUNKS = 128
"""A block's tensors fit a core's cache."""


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
    kv_BHDE = state(k_LHD, v_LHE, seq_offsets, num_candidates, phi)
    p_BHDE = PHI[phi_out](kv_BHDE)
    out_LHE = _empty_like(v_LHE)
    for block in Chunks(seq_offsets, num_candidates, CHUNK_ROWS).blocks(BLOCK_CHUNKS, q_LHD.shape[1]):
        q_NHRD = block.split(PHI[phi](_wide(q_LHD[block.rows])))
        out_LHE[block.rows] = block.join(q_NHRD @ p_BHDE[block.user_N])
    rows_T, n_T = candidate_rows(seq_offsets, num_candidates)
    q_THD, k_THD, v_THE = (_wide(x[rows_T]) for x in (q_LHD, k_LHD, v_LHE))
    y_TH1 = (PHI[phi](q_THD) * PHI[phi](k_THD)).sum(-1, keepdim=True) / n_T[:, None, None]
    out_LHE.index_add_(0, rows_T, (y_TH1 * v_THE).to(out_LHE.dtype))
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
    p_BHDE = PHI[phi_out](kv_BHDE)
    w_BHDE = torch.zeros_like(kv_BHDE)
    dq_LHD = _empty_like(q_LHD)
    for block in Chunks(seq_offsets, num_candidates, CHUNK_ROWS).blocks(BLOCK_CHUNKS, q_LHD.shape[1]):
        block_q_LHD = _wide(q_LHD[block.rows])
        q_NHRD = block.split_filled(PHI[phi](block_q_LHD))
        d_out_NHRE = block.split(_wide(d_out_LHE[block.rows]))
        w_BHDE.index_add_(0, block.user_N, q_NHRD.mT @ d_out_NHRE)
        dq_NHRD = d_out_NHRE @ p_BHDE[block.user_N].mT
        dq_LHD[block.rows] = PHI_BACKWARD[phi](block.join(dq_NHRD), block_q_LHD)
    d_kv_BHDE = PHI_BACKWARD[phi_out](w_BHDE, kv_BHDE)
    dk_LHD, dv_LHE = state_backward(d_kv_BHDE, k_LHD, v_LHE, seq_offsets, num_candidates, phi)
    rows_T, n_T = candidate_rows(seq_offsets, num_candidates)
    d_out_THE, q_THD, k_THD, v_THE = (_wide(x[rows_T]) for x in (d_out_LHE, q_LHD, k_LHD, v_LHE))
    x_TH1 = (d_out_THE * v_THE).sum(-1, keepdim=True) / n_T[:, None, None]
    y_TH1 = (PHI[phi](q_THD) * PHI[phi](k_THD)).sum(-1, keepdim=True) / n_T[:, None, None]
    own_dq_THD = PHI_BACKWARD[phi](x_TH1 * PHI[phi](k_THD), q_THD)
    dq_LHD.index_add_(0, rows_T, own_dq_THD.to(dq_LHD.dtype))
    dk_LHD[rows_T] = PHI_BACKWARD[phi](x_TH1 * PHI[phi](q_THD), k_THD).to(dk_LHD.dtype)
    dv_LHE[rows_T] = (y_TH1 * d_out_THE).to(dv_LHE.dtype)
    return dq_LHD, dk_LHD, dv_LHE


def state(k_LHD: Tensor, v_LHE: Tensor, seq_offsets: Tensor, num_candidates: Tensor, phi: Phi) -> Tensor:
    """kv_BHDE = phi(K_S)^T V_S / n, in float32 at least."""
    n_B = source_count(seq_offsets, num_candidates)
    heads, dtype = k_LHD.shape[1], _wide(k_LHD[:0]).dtype
    kv_BHDE = k_LHD.new_zeros(n_B.numel(), heads, k_LHD.shape[2], v_LHE.shape[2], dtype=dtype)
    for block in Chunks(seq_offsets, num_candidates, CHUNK_ROWS).blocks(BLOCK_CHUNKS, heads):
        k_NHRD = block.split_sources(PHI[phi](_wide(k_LHD[block.rows])))
        v_NHRE = block.split(_wide(v_LHE[block.rows]))
        kv_BHDE.index_add_(0, block.user_N, k_NHRD.mT @ v_NHRE)
    return kv_BHDE.div_(n_B[:, None, None, None])


def state_backward(
    d_kv_BHDE: Tensor, k_LHD: Tensor, v_LHE: Tensor, seq_offsets: Tensor, num_candidates: Tensor, phi: Phi
) -> tuple[Tensor, Tensor]:
    """The gradients in k and v; zero for candidates."""
    g_BHDE = d_kv_BHDE / source_count(seq_offsets, num_candidates)[:, None, None, None]
    dk_LHD, dv_LHE = _empty_like(k_LHD), _empty_like(v_LHE)
    for block in Chunks(seq_offsets, num_candidates, CHUNK_ROWS).blocks(BLOCK_CHUNKS, k_LHD.shape[1]):
        block_k_LHD = _wide(k_LHD[block.rows])
        k_NHRD = block.split_sources(PHI[phi](block_k_LHD))
        v_NHRE = block.split_sources(_wide(v_LHE[block.rows]))
        g_NHDE = g_BHDE[block.user_N]
        dk_LHD[block.rows] = PHI_BACKWARD[phi](block.join(v_NHRE @ g_NHDE.mT), block_k_LHD)
        dv_LHE[block.rows] = block.join(k_NHRD @ g_NHDE)
    return dk_LHD, dv_LHE


def _wide(x: Tensor) -> Tensor:
    """Half precision is computed in float32: a half accumulator loses a tenth of a long history."""
    return x.to(torch.promote_types(x.dtype, torch.float32)).contiguous()


def _empty_like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)
