"""Quasi-linear attention in which a source reads itself and what came before it: for the ablation.

No chunked matrix product exists once phi_out is not linear, since every row has a state of its own.

Shape suffixes: B users, L packed rows, N chunks, R rows of a chunk, H heads, D width of queries and keys,
E width of values.
"""

from typing import Any

import torch
from torch import Tensor

from kernels.activations import PHI, PHI_BACKWARD, Phi
from kernels.chunks import Block, Chunks

CHUNK_ROWS = 32
BLOCK_CHUNKS = 32
"""A state per row is D / 2 times the size of its key and value: only those of 1,024 rows exist at a time."""


def qla_causal(
    q_LHD: Tensor,
    k_LHD: Tensor,
    v_LHE: Tensor,
    seq_offsets: Tensor,
    num_candidates: Tensor,
    *,
    phi: Phi,
    phi_out: Phi,
) -> Tensor:
    """A source reads its user's sources up to itself; a candidate reads all sources and itself.

    Arguments as for `qla`; returns out_LHE. With n_i the number of sources up to row i, at least 1:

        Z_i = sum over sources j <= i of phi(k_j)^T v_j / n_i      o_i = phi(q_i) phi_out(Z_i)
        candidates add <phi(q_i), phi(k_i)> / n_i * v_i
    """
    out_LHE: Tensor = _Causal.apply(q_LHD, k_LHD, v_LHE, seq_offsets, num_candidates, phi, phi_out)  # type: ignore[no-untyped-call]
    return out_LHE


class _Causal(torch.autograd.Function):
    """Saves its inputs only: the backward pass computes the states of each block again."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, candidates: Tensor, phi: Phi, phi_out: Phi
    ) -> Tensor:
        ctx.save_for_backward(q, k, v, offsets, candidates)
        ctx.phis = phi, phi_out
        rows = _Rows(q, k, v, offsets, candidates, phi)
        before_NHDE = rows.states_before_chunks()
        out_LHE = torch.empty_like(v)
        for block in rows.chunks.blocks(BLOCK_CHUNKS):
            p_NHRDE = PHI[phi_out](rows.states(block, before_NHDE))
            q_NHRD = rows.chunks.pad(PHI[phi](q[block.rows]), block)
            out_LHE[block.rows] = rows.chunks.unpad((q_NHRD.unsqueeze(-2) @ p_NHRDE).squeeze(-2), block)
        at = rows.candidates
        y = (PHI[phi](q[at]) * PHI[phi](k[at])).sum(-1, keepdim=True) / rows.count(at)
        return out_LHE.index_add_(0, at, y * v[at])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (d_out,) = gradients
        q, k, v, offsets, candidates = ctx.saved_tensors
        phi, phi_out = ctx.phis
        rows = _Rows(q, k, v, offsets, candidates, phi)
        chunks = rows.chunks
        before_NHDE = rows.states_before_chunks()
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        d_sum_NHDE = torch.empty_like(before_NHDE)
        for block in chunks.blocks(BLOCK_CHUNKS):
            z_NHRDE = rows.states(block, before_NHDE)
            d_out_NHRE = chunks.pad(d_out[block.rows], block)
            dq_NHRD = (PHI[phi_out](z_NHRDE) @ d_out_NHRE.unsqueeze(-1)).squeeze(-1)
            dq[block.rows] = chunks.unpad(dq_NHRD, block)
            d_sum_NHDE[block.chunks] = rows.d_states(block, z_NHRDE, d_out, phi_out).sum(2)
        after_NHDE = _scan(d_sum_NHDE.flip(0), chunks.user_N.flip(0)).flip(0)
        for block in chunks.blocks(BLOCK_CHUNKS):
            d_z_NHRDE = rows.d_states(block, rows.states(block, before_NHDE), d_out, phi_out)
            g_NHRDE = d_z_NHRDE.flip(2).cumsum(2).flip(2) + after_NHDE[block.chunks].unsqueeze(2)
            k_NHRD, v_NHRE = rows.sources(block)
            dk[block.rows] = chunks.unpad((g_NHRDE @ v_NHRE.unsqueeze(-1)).squeeze(-1), block)
            dv[block.rows] = chunks.unpad((k_NHRD.unsqueeze(-2) @ g_NHRDE).squeeze(-2), block)
        at = rows.candidates
        x = (d_out[at] * v[at]).sum(-1, keepdim=True) / rows.count(at)
        y = (PHI[phi](q[at]) * PHI[phi](k[at])).sum(-1, keepdim=True) / rows.count(at)
        dq.index_add_(0, at, x * PHI[phi](k[at]))
        dk[at] = x * PHI[phi](q[at])
        dv[at] = y * d_out[at]
        return PHI_BACKWARD[phi](dq, q), PHI_BACKWARD[phi](dk, k), dv, None, None, None, None


class _Rows:
    """The rows of one call, and the states that they see."""

    def __init__(
        self, q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, candidates: Tensor, phi: Phi
    ) -> None:
        self.q_LHD, self.k_LHD, self.v_LHE, self.phi = q, k, v, phi
        self.chunks = Chunks(offsets, candidates, CHUNK_ROWS)
        self.candidates = self.chunks.candidate_L.nonzero().squeeze(1)

    def count(self, rows: Tensor | slice) -> Tensor:
        """n_i, of the shape [rows, 1, 1]."""
        sources_L = self.chunks.sources_B[self.chunks.user_L[rows]]
        count_L = torch.minimum(self.chunks.position_L[rows] + 1, sources_L).clamp(min=1)
        return count_L.to(self.k_LHD.dtype)[:, None, None]

    def sources(self, block: Block) -> tuple[Tensor, Tensor]:
        """phi(k)_NHRD and v_NHRE; a candidate's phi(k) is zero, since nobody reads it."""
        phi_k = PHI[self.phi](self.k_LHD[block.rows])
        phi_k = phi_k.masked_fill(self.chunks.candidate_L[block.rows, None, None], 0.0)
        return self.chunks.pad(phi_k, block), self.chunks.pad(self.v_LHE[block.rows], block)

    def states_before_chunks(self) -> Tensor:
        """The sum of phi(k)^T v over the user's chunks before each chunk."""
        kv_NHDE = [
            k_NHRD.transpose(-1, -2) @ v_NHRE
            for k_NHRD, v_NHRE in map(self.sources, self.chunks.blocks(BLOCK_CHUNKS))
        ]
        heads, widths = self.k_LHD.shape[1], (self.k_LHD.shape[2], self.v_LHE.shape[2])
        return _scan(torch.cat([*kv_NHDE, self.k_LHD.new_zeros(0, heads, *widths)]), self.chunks.user_N)

    def states(self, block: Block, before_NHDE: Tensor) -> Tensor:
        """Z_i of the block's rows."""
        k_NHRD, v_NHRE = self.sources(block)
        sum_NHRDE = (k_NHRD.unsqueeze(-1) * v_NHRE.unsqueeze(-2)).cumsum(2)
        return (sum_NHRDE + before_NHDE[block.chunks].unsqueeze(2)) / self._count_of_slots(block)

    def d_states(self, block: Block, z_NHRDE: Tensor, d_out: Tensor, phi_out: Phi) -> Tensor:
        """The gradient in the sum of row i alone: phi_out'(Z_i) * phi(q_i)^T dO_i / n_i."""
        q_NHRD = self.chunks.pad(PHI[self.phi](self.q_LHD[block.rows]), block)
        d_out_NHRE = self.chunks.pad(d_out[block.rows], block)
        d_p_NHRDE = q_NHRD.unsqueeze(-1) * d_out_NHRE.unsqueeze(-2)
        return PHI_BACKWARD[phi_out](d_p_NHRDE, z_NHRDE) / self._count_of_slots(block)

    def _count_of_slots(self, block: Block) -> Tensor:
        count_NHR = self.chunks.pad(self.count(block.rows), block).clamp(min=1)
        return count_NHR.unsqueeze(-1)


def _scan(x_NHDE: Tensor, user_N: Tensor) -> Tensor:
    """The sum of a user's chunks before each chunk, by doubling: the same order for the same position."""
    step = 1
    sum_NHDE = x_NHDE
    while step < user_N.numel() and bool((user_N[step:] == user_N[:-step]).any()):
        same_N = (user_N[step:] == user_N[:-step])[:, None, None, None]
        sum_NHDE = torch.cat([sum_NHDE[:step], sum_NHDE[step:] + sum_NHDE[:-step] * same_N])
        step *= 2
    first_N = torch.ones_like(user_N, dtype=torch.bool)
    first_N[1:] = user_N[1:] != user_N[:-1]
    return sum_NHDE.roll(1, 0).masked_fill(first_N[:, None, None, None], 0.0)
