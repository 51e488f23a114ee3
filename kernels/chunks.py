"""Packed rows as chunks of equal size, none of which holds rows of two users.

Shape suffixes: B users, L packed rows, N chunks, R rows of a chunk, H heads, D width.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor


class Block(NamedTuple):
    """Consecutive chunks and the consecutive packed rows that they hold."""

    chunks: slice
    rows: slice


class Chunks:
    """Every user's rows, its last chunk filled up with zeros, so that one matrix product does many users.

    The size is fixed per op: it is the order of summation, so that a user's result does not depend on who
    shares its batch.
    """

    def __init__(self, seq_offsets: Tensor, num_candidates: Tensor, rows: int) -> None:
        device = seq_offsets.device
        lengths_B = seq_offsets.diff()
        chunks_B = (lengths_B + rows - 1) // rows
        users_B = torch.arange(lengths_B.numel(), device=device)
        self.rows = rows
        self.user_N = users_B.repeat_interleave(chunks_B)
        self.first_chunk_B = chunks_B.cumsum(0) - chunks_B
        self.user_L = users_B.repeat_interleave(lengths_B)
        self.position_L = torch.arange(self.user_L.numel(), device=device) - seq_offsets[self.user_L]
        self.slot_L = self.first_chunk_B[self.user_L] * rows + self.position_L
        self.chunk_of_user_N = (
            torch.arange(self.user_N.numel(), device=device) - self.first_chunk_B[self.user_N]
        )
        self.first_row_N = seq_offsets[self.user_N] + self.chunk_of_user_N * rows
        self.sources_B = lengths_B - num_candidates
        self.candidate_L = self.position_L >= self.sources_B[self.user_L]

    def blocks(self, chunks: int) -> Iterator[Block]:
        """All chunks, `chunks` at a time."""
        first_rows = [*self.first_row_N[::chunks].tolist(), self.user_L.numel()]
        for block, first_row in enumerate(first_rows[:-1]):
            first = block * chunks
            yield Block(slice(first, first + chunks), slice(first_row, first_rows[block + 1]))

    def pad(self, x_LHD: Tensor, block: Block) -> Tensor:
        """The block's rows `x_LHD[block.rows]` -> x_NHRD, zero in the slots that no row fills."""
        _, heads, width = x_LHD.shape
        chunks = self.user_N[block.chunks].numel()
        slots_L = self.slot_L[block.rows] - block.chunks.start * self.rows
        padded = x_LHD.new_zeros(chunks * self.rows, heads, width).index_copy_(0, slots_L, x_LHD)
        return padded.view(chunks, self.rows, heads, width).transpose(1, 2)

    def unpad(self, x_NHRD: Tensor, block: Block) -> Tensor:
        """The inverse of `pad`."""
        slots_L = self.slot_L[block.rows] - block.chunks.start * self.rows
        return x_NHRD.transpose(1, 2).flatten(0, 1)[slots_L]
