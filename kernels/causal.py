"""Quasi-linear attention in which a source reads itself and what came before it: for the ablation.

No chunked matrix product exists once phi_out is not linear, since every row has a state of its own.

Shape suffixes: B users, L packed rows, N chunks, R rows of a chunk, H heads, D width of queries and keys,
E width of values.
"""

from typing import Any

import torch
from torch import Tensor

from kernels.activations import PHI, PHI_BACKWARD, Phi
from kernels.arguments import check_bounds, check_phi, check_queries, check_sources
from kernels.chunks import Block, Chunks, wide
from kernels.own_term import add_own_term, put_own_gradients

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

    Arguments, errors and result as for `qla`. With n_i the number of sources up to row i, at least 1:

        Z_i = sum over sources j <= i of phi(k_j)^T v_j / n_i      o_i = phi(q_i) phi_out(Z_i)
        candidates add <phi(q_i), phi(k_i)> / n_i * v_i
    """
    check_sources(k_LHD, v_LHE, seq_offsets, num_candidates)
    check_queries(q_LHD, k_LHD)
    check_phi(phi=phi, phi_out=phi_out)
    check_bounds(seq_offsets, num_candidates, len(k_LHD))
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
        out_LHE = v.new_empty(v.shape)
        for block in rows.blocks():
            p_NHRDE = PHI[phi_out](rows.states(block, before_NHDE))
            q_NHRD = PHI[phi](block.split(q))
            block.write((q_NHRD.unsqueeze(-2) @ p_NHRDE).squeeze(-2), out_LHE)
        add_own_term(out_LHE, q, k, v, offsets, candidates, phi)
        return out_LHE

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise NotImplementedError("qla_causal has no second derivative: leave out create_graph")
        (d_out,) = gradients
        q, k, v, offsets, candidates = ctx.saved_tensors
        phi, phi_out = ctx.phis
        rows = _Rows(q, k, v, offsets, candidates, phi)
        before_NHDE = rows.states_before_chunks()
        dq, dk, dv = (x.new_empty(x.shape) for x in (q, k, v))
        d_sum_NHDE = torch.empty_like(before_NHDE)
        for block in rows.blocks():
            z_NHRDE = rows.states(block, before_NHDE)
            d_out_NHRE = block.split(d_out)
            d_phi_q_NHRD = (PHI[phi_out](z_NHRDE) @ d_out_NHRE.unsqueeze(-1)).squeeze(-1)
            block.write(PHI_BACKWARD[phi](d_phi_q_NHRD, block.split(q)), dq)
            d_sum_NHDE[block.chunks] = rows.d_sums(block, z_NHRDE, d_out, phi_out).sum(2)
        after_NHDE = _scan(d_sum_NHDE.flip(0), rows.chunks.user_N.flip(0)).flip(0)
        for block in rows.blocks():
            d_sum_NHRDE = rows.d_sums(block, rows.states(block, before_NHDE), d_out, phi_out)
            g_NHRDE = d_sum_NHRDE.flip(2).cumsum(2).flip(2) + after_NHDE[block.chunks].unsqueeze(2)
            k_NHRD, v_NHRE = rows.sources(block)
            d_phi_k_NHRD = (g_NHRDE @ v_NHRE.unsqueeze(-1)).squeeze(-1)
            block.write(PHI_BACKWARD[phi](d_phi_k_NHRD, block.split(k)), dk)
            block.write((k_NHRD.unsqueeze(-2) @ g_NHRDE).squeeze(-2), dv)
        put_own_gradients((dq, dk, dv), d_out, q, k, v, offsets, candidates, phi)
        return dq, dk, dv, None, None, None, None


class _Rows:
    """The rows of one call, and the states that they see."""

    def __init__(
        self, q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, candidates: Tensor, phi: Phi
    ) -> None:
        self.q_LHD, self.k_LHD, self.v_LHE, self.phi = q, k, v, phi
        self.chunks = Chunks(offsets, candidates, CHUNK_ROWS)

    def blocks(self) -> list[Block]:
        return self.chunks.blocks(BLOCK_CHUNKS, self.k_LHD.shape[1])

    def sources(self, block: Block) -> tuple[Tensor, Tensor]:
        """phi(k)_NHRD and v_NHRE, which is zero where no source is."""
        return PHI[self.phi](block.split_sources(self.k_LHD)), block.split_sources(self.v_LHE)

    def states_before_chunks(self) -> Tensor:
        """The sum of phi(k)^T v over the user's chunks before each chunk."""
        heads, widths = self.k_LHD.shape[1], (self.k_LHD.shape[2], self.v_LHE.shape[2])
        dtype = wide(self.k_LHD[:0]).dtype
        kv_NHDE = self.k_LHD.new_empty(self.chunks.user_N.numel(), heads, *widths, dtype=dtype)
        for block in self.blocks():
            k_NHRD, v_NHRE = self.sources(block)
            kv_NHDE[block.chunks] = k_NHRD.mT @ v_NHRE
        return _scan(kv_NHDE, self.chunks.user_N)

    def states(self, block: Block, before_NHDE: Tensor) -> Tensor:
        """Z_i of the block's rows."""
        k_NHRD, v_NHRE = self.sources(block)
        sum_NHRDE = (k_NHRD.unsqueeze(-1) * v_NHRE.unsqueeze(-2)).cumsum(2)
        return (sum_NHRDE + before_NHDE[block.chunks].unsqueeze(2)) / self._count(block)

    def d_sums(self, block: Block, z_NHRDE: Tensor, d_out: Tensor, phi_out: Phi) -> Tensor:
        """The gradient in row i's own sum: phi_out'(Z_i) * phi(q_i)^T dO_i / n_i."""
        q_NHRD, d_out_NHRE = PHI[self.phi](block.split(self.q_LHD)), block.split_filled(d_out)
        d_p_NHRDE = q_NHRD.unsqueeze(-1) * d_out_NHRE.unsqueeze(-2)
        return PHI_BACKWARD[phi_out](d_p_NHRDE, z_NHRDE) / self._count(block)

    def _count(self, block: Block) -> Tensor:
        """n_i of the block's slots, of the shape [N, 1, R, 1, 1]."""
        chunks, at = self.chunks, block.chunks
        rows_R = torch.arange(CHUNK_ROWS, device=block.user_N.device)
        read_NR = torch.minimum(chunks.first_row_N[at, None] + rows_R + 1, chunks.source_end_N[at, None])
        first_row_of_user_N = chunks.first_row_N[chunks.first_chunk_N[at]]
        return (read_NR - first_row_of_user_N[:, None]).clamp(min=1)[:, None, :, None, None]


def _scan(x_NHDE: Tensor, user_N: Tensor) -> Tensor:
    """The sum of a user's chunks before each chunk, by doubling: the same order for the same position."""
    sum_NHDE, step = x_NHDE, 1
    while bool((same_N := user_N[step:] == user_N[:-step]).any()):
        before_NHDE = sum_NHDE[:-step].where(same_N[:, None, None, None], 0.0)
        sum_NHDE = torch.cat([sum_NHDE[:step], sum_NHDE[step:] + before_NHDE])
        step *= 2
    first_N = torch.ones_like(user_N, dtype=torch.bool)
    first_N[1:] = user_N[1:] != user_N[:-1]
    return sum_NHDE.roll(1, 0).masked_fill(first_N[:, None, None, None], 0.0)
