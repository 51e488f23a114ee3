"""Packed rows as chunks of equal size, none of which holds rows of two users.

Shape suffixes: B users, L packed rows, T candidates, N chunks, R rows of a chunk, H heads, D width.
"""

from collections.abc import Iterator

import torch
from torch import Tensor


def source_count(seq_offsets: Tensor, num_candidates: Tensor) -> Tensor:
    """n_B = max(1, sources)."""
    return (seq_offsets.diff() - num_candidates).clamp(min=1)


def candidate_rows(seq_offsets: Tensor, num_candidates: Tensor) -> tuple[Tensor, Tensor]:
    """The candidates' packed rows_T, and n_T of each one's user."""
    first_B = seq_offsets[1:] - num_candidates
    shift_B = first_B - (num_candidates.cumsum(0) - num_candidates)
    shift_T = shift_B.repeat_interleave(num_candidates)
    n_T = source_count(seq_offsets, num_candidates).repeat_interleave(num_candidates)
    return _arange(shift_T) + shift_T, n_T


class Chunks:
    """Every user's rows in chunks of R, so that one batched matrix product does many users.

    R is fixed per op: it is the order of summation, so that a user's result does not depend on who shares
    its batch.
    """

    def __init__(self, seq_offsets: Tensor, num_candidates: Tensor, rows: int) -> None:
        lengths_B = seq_offsets.diff()
        chunks_B = (lengths_B + rows - 1) // rows
        first_chunk_B = chunks_B.cumsum(0) - chunks_B
        shift_L = (first_chunk_B * rows - seq_offsets[:-1]).repeat_interleave(lengths_B)
        self.rows = rows
        self.slot_L = _arange(shift_L) + shift_L
        self.user_N = _arange(lengths_B).repeat_interleave(chunks_B)
        self.first_chunk_N = first_chunk_B[self.user_N]
        self.first_row_N = seq_offsets[self.user_N] + (_arange(self.user_N) - self.first_chunk_N) * rows
        self.end_N = seq_offsets[1:][self.user_N]
        self.source_end_N = self.end_N - num_candidates[self.user_N]

    def blocks(self, chunks: int, heads: int) -> Iterator["Block"]:
        """All chunks, `chunks` at a time."""
        first_rows = [*self.first_row_N[::chunks].tolist(), self.slot_L.numel()]
        for number, first_row in enumerate(first_rows[:-1]):
            rows = slice(first_row, first_rows[number + 1])
            yield Block(self, slice(number * chunks, (number + 1) * chunks), rows, heads)


class Block:
    """Consecutive chunks and the consecutive packed rows that they hold."""

    def __init__(self, all_chunks: Chunks, chunks: slice, rows: slice, heads: int) -> None:
        self.chunks, self.rows = chunks, rows
        self.user_N = all_chunks.user_N[chunks]
        size, end_N1 = all_chunks.rows, all_chunks.end_N[chunks, None]
        self._shape_NHR = self.user_N.numel(), heads, size
        heads_H = torch.arange(heads, device=end_N1.device)
        row_NR = all_chunks.first_row_N[chunks, None] + torch.arange(size, device=end_N1.device)
        kept_row_NR = row_NR.minimum(end_N1 - 1) - rows.start
        self._row_NHR = (kept_row_NR[:, None, :] * heads + heads_H[:, None]).flatten()
        self._empty = self._slots_where(row_NR >= end_N1)
        self._unread = self._slots_where(row_NR >= all_chunks.source_end_N[chunks, None])
        slot_L = all_chunks.slot_L[rows] - chunks.start * size
        first_head_slot_L = slot_L + slot_L // size * ((heads - 1) * size)
        self._slot_LH = (first_head_slot_L[:, None] + heads_H * size).flatten()

    def split(self, x_LHD: Tensor) -> Tensor:
        """The block's rows as x_NHRD; a slot without a row repeats the user's last row."""
        return x_LHD.flatten(0, 1).index_select(0, self._row_NHR).view(*self._shape_NHR, -1)

    def split_filled(self, x_LHD: Tensor) -> Tensor:
        """The same with zero in slots without a row."""
        return self._with_zeros(self.split(x_LHD), self._empty)

    def split_sources(self, x_LHD: Tensor) -> Tensor:
        """The same with zero in slots without a source: nobody reads a candidate."""
        return self._with_zeros(self.split(x_LHD), self._unread)

    def join(self, x_NHRD: Tensor) -> Tensor:
        """The inverse of `split`: x_LHD."""
        _, heads, _, width = x_NHRD.shape
        return x_NHRD.flatten(0, 2).index_select(0, self._slot_LH).view(-1, heads, width)

    def _slots_where(self, where_NR: Tensor) -> Tensor:
        return where_NR[:, None, :].expand(self._shape_NHR).flatten().nonzero().squeeze(1)

    def _with_zeros(self, x_NHRD: Tensor, slots: Tensor) -> Tensor:
        x_NHRD.flatten(0, 2).index_fill_(0, slots, 0.0)
        return x_NHRD


def _arange(like: Tensor) -> Tensor:
    return torch.arange(like.numel(), device=like.device)
