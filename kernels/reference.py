"""Quasi-linear attention in plain PyTorch: the specification of the op (section 3.2.2, appendix B).

Shape suffixes: B users, L packed rows, H heads, D width of queries and keys, E width of values, N chunks,
R rows of a chunk, S rows read per user. Rows of a user are [sources ; candidates], oldest first.
"""

import torch
from torch import Tensor

from kernels.activations import PHI, Phi

CHUNK_ROWS = 32
"""Rows are padded per user to a multiple of this. Fixed: it is the order of summation, so that a user's
result does not depend on who shares its batch."""


def qla(
    q_LHD: Tensor,
    k_LHD: Tensor,
    v_LHE: Tensor,
    seq_offsets: Tensor,
    num_candidates: Tensor,
    *,
    phi: Phi,
    phi_out: Phi,
) -> Tensor:
    """Every row reads its user's sources; a candidate reads itself too, and no other candidate.

    `seq_offsets` [B + 1] int64 bounds the users' rows, the last `num_candidates` [B] of each are candidates.
    Returns out_LHE. With n the user's own number of sources:

        Z = phi(K_S)^T V_S / n        O = phi(Q) phi_out(Z)        candidates add <phi(Q), phi(K)> / n * V
    """
    chunks = _Chunks(seq_offsets)
    candidate_L, n_L = _candidates(seq_offsets, num_candidates)
    kv_BHDE = qla_state(k_LHD, v_LHE, seq_offsets, num_candidates, phi=phi)
    z_BHDE = PHI[phi_out](kv_BHDE)
    q_NHRD = chunks.pad(PHI[phi](q_LHD))
    out_LHE = chunks.unpad(q_NHRD @ z_BHDE[chunks.user_N])
    rows = candidate_L.nonzero().squeeze(1)
    rowwise_dot = (PHI[phi](q_LHD[rows]) * PHI[phi](k_LHD[rows])).sum(-1, keepdim=True)
    self_term = rowwise_dot / n_L[rows, None, None] * v_LHE[rows]
    return out_LHE.index_add(0, rows, self_term)


def qla_state(
    k_LHD: Tensor, v_LHE: Tensor, seq_offsets: Tensor, num_candidates: Tensor, *, phi: Phi
) -> Tensor:
    """The state that a user's sources leave: kv_BHDE = phi(K_S)^T V_S / n, with n = max(1, sources).

    It is zero for a user without sources. Arguments as for `qla`.
    """
    chunks = _Chunks(seq_offsets)
    candidate_L, _ = _candidates(seq_offsets, num_candidates)
    source_k_LHD = PHI[phi](k_LHD).masked_fill(candidate_L[:, None, None], 0.0)
    kv_NHDE = chunks.pad(source_k_LHD).transpose(-1, -2) @ chunks.pad(v_LHE)
    users = seq_offsets.numel() - 1
    kv_BHDE = kv_NHDE.new_zeros(users, *kv_NHDE.shape[1:]).index_add(0, chunks.user_N, kv_NHDE)
    return kv_BHDE / _source_count(seq_offsets, num_candidates).to(kv_BHDE.dtype)[:, None, None, None]


def qla_read(q_BSHD: Tensor, kv_BHDE: Tensor, *, phi: Phi, phi_out: Phi) -> Tensor:
    """What S rows of every user read from the user's state: out_BSHE = phi(Q) phi_out(Z).

    The last layer of a summariser needs only its seeds' rows: `qla_state` over all, this over the seeds.
    """
    out_BHSE = PHI[phi](q_BSHD).transpose(1, 2) @ PHI[phi_out](kv_BHDE)
    return out_BHSE.transpose(1, 2)


def _source_count(seq_offsets: Tensor, num_candidates: Tensor) -> Tensor:
    return (seq_offsets.diff() - num_candidates).clamp(min=1)


def _candidates(seq_offsets: Tensor, num_candidates: Tensor) -> tuple[Tensor, Tensor]:
    """Which rows are candidates, and the number of sources of each row's user."""
    lengths_B = seq_offsets.diff()
    first_candidate_B = seq_offsets[1:] - num_candidates
    rows_L = torch.arange(int(seq_offsets[-1]), device=seq_offsets.device)
    candidate_L = rows_L >= first_candidate_B.repeat_interleave(lengths_B)
    return candidate_L, _source_count(seq_offsets, num_candidates).repeat_interleave(lengths_B)


class _Chunks:
    """Packed rows as chunks of `CHUNK_ROWS`, none of which holds rows of two users."""

    def __init__(self, seq_offsets: Tensor) -> None:
        lengths_B = seq_offsets.diff()
        chunks_B = (lengths_B + CHUNK_ROWS - 1) // CHUNK_ROWS
        users = torch.arange(lengths_B.numel(), device=seq_offsets.device)
        self.user_N = users.repeat_interleave(chunks_B)
        first_slot_B = (chunks_B.cumsum(0) - chunks_B) * CHUNK_ROWS
        shift_L = (first_slot_B - seq_offsets[:-1]).repeat_interleave(lengths_B)
        self.slot_L = torch.arange(shift_L.numel(), device=seq_offsets.device) + shift_L

    def pad(self, x_LHD: Tensor) -> Tensor:
        """x_LHD -> x_NHRD, zero in the slots that no row fills."""
        _, heads, width = x_LHD.shape
        slots = self.user_N.numel() * CHUNK_ROWS
        padded = x_LHD.new_zeros(slots, heads, width).index_copy(0, self.slot_L, x_LHD)
        return padded.view(-1, CHUNK_ROWS, heads, width).transpose(1, 2)

    def unpad(self, x_NHRE: Tensor) -> Tensor:
        """The inverse of `pad`."""
        return x_NHRE.transpose(1, 2).flatten(0, 1)[self.slot_L]
