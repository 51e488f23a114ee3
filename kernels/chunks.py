"""Packed rows as chunks of equal size, none of which holds rows of two users.

Shape suffixes: B users, L packed rows, T candidates, N chunks, R rows of a chunk, H heads, D width.
"""

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor


def source_count(seq_offsets: Tensor, num_candidates: Tensor) -> Tensor:
    """n_B = max(1, sources)."""
    return (seq_offsets.diff() - num_candidates).clamp(min=1)


def candidate_rows(seq_offsets: Tensor, num_candidates: Tensor) -> tuple[Tensor, Tensor]:
    """The candidates' packed rows_T, and n_T of each one's user."""
    n_T = source_count(seq_offsets, num_candidates).repeat_interleave(num_candidates)
    return _ranges(seq_offsets[1:] - num_candidates, num_candidates), n_T


class Chunks:
    """Every user's rows in chunks of R, so that one batched matrix product does many users.

    R is fixed per op: it is the order of summation, so that a user's result does not depend on who shares
    its batch, but for the last bit of the narrowest heads, whose batched product differs with its size.
    """

    def __init__(self, seq_offsets: Tensor, num_candidates: Tensor, rows: int) -> None:
        lengths_B = seq_offsets.diff()
        chunks_B = (lengths_B + rows - 1) // rows
        self.rows = rows
        self.user_N = _arange(lengths_B).repeat_interleave(chunks_B)
        self.first_chunk_N = (chunks_B.cumsum(0) - chunks_B)[self.user_N]
        self.first_row_N = seq_offsets[self.user_N] + (_arange(self.user_N) - self.first_chunk_N) * rows
        self.end_N = seq_offsets[1:][self.user_N]
        self.source_end_N = self.end_N - num_candidates[self.user_N]

    def blocks(self, chunks: int, heads: int) -> list["Block"]:
        """All chunks, `chunks` at a time; one empty block if nobody has a row."""
        chunks = max(1, chunks)
        number_N = _arange(self.user_N)
        first_chunk_N = number_N // chunks * chunks  # of the chunk's block
        rows_N = (self.end_N - self.first_row_N).clamp(max=self.rows)
        sources_N = (self.source_end_N - self.first_row_N).clamp(0, self.rows)
        # Rows and slots count from their block's first, since only a block's tensors exist at a time.
        first_row_N = self.first_row_N - self.first_row_N[first_chunk_N]
        first_slot_N = (number_N - first_chunk_N) * self.rows
        slots_R, heads_H = (torch.arange(n, device=number_N.device) for n in (self.rows, heads))
        row_NR = (first_row_N[:, None] + slots_R.minimum(rows_N[:, None] - 1)).int()
        block_ends = tuple(range(chunks, number_N.numel(), chunks))

        def by_block(slots: Tensor, count_N: Tensor) -> tuple[Tensor, ...]:
            """`slots`, of which each chunk has `count_N`."""
            ends = count_N.cumsum(0)[chunks - 1 :: chunks].tolist()
            return slots.tensor_split(ends[: len(block_ends)])

        def without(count_N: Tensor) -> tuple[Tensor, ...]:
            """The slots of each chunk after its first `count_N`, counted without heads."""
            rest_N = self.rows - count_N
            return by_block(_ranges(first_slot_N + count_N, rest_N), rest_N)

        slot_LH = _ranges(first_slot_N * heads, rows_N)[:, None] + heads_H * self.rows
        filled = by_block(slot_LH, rows_N)
        row_ends = [0, *itertools.accumulate(map(len, filled))]
        return [
            Block(slice(row, row_end), slice(chunk, chunk + chunks), *tensors)
            for row, row_end, chunk, *tensors in zip(
                row_ends[:-1],
                row_ends[1:],
                [0, *block_ends],
                self.user_N.tensor_split(block_ends),
                row_NR.tensor_split(block_ends),
                filled,
                without(rows_N),
                without(sources_N),
                strict=True,
            )
        ]


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive chunks and the consecutive packed rows that they hold."""

    rows: slice
    chunks: slice
    user_N: Tensor
    row_NR: Tensor  # of the block's rows
    slot_LH: Tensor  # of the block's chunks x heads x rows
    empty: Tensor  # slots without a row, of the block's chunks x rows
    unread: Tensor  # slots without a source

    def split(self, x_LHD: Tensor, zero: Tensor | None = None) -> Tensor:
        """The block's rows as x_NHRD, wide; slots without a row repeat the user's last one, `zero` are 0."""
        # Whole rows are gathered before heads come apart: 16 floats at a time cost half as much again.
        x_SF = wide(x_LHD[self.rows]).flatten(1).index_select(0, self.row_NR.flatten())
        if zero is not None:
            x_SF.index_fill_(0, zero, 0.0)
        return x_SF.view(*self.row_NR.shape, *x_LHD.shape[1:]).transpose(1, 2).contiguous()

    def split_filled(self, x_LHD: Tensor) -> Tensor:
        """The same with zero in slots without a row."""
        return self.split(x_LHD, self.empty)

    def split_sources(self, x_LHD: Tensor) -> Tensor:
        """The same with zero in slots without a source: nobody reads a candidate."""
        return self.split(x_LHD, self.unread)

    def join(self, x_NHRD: Tensor) -> Tensor:
        """The inverse of `split`: the block's rows of x_LHD."""
        x_SD = x_NHRD.flatten(0, 2).index_select(0, self.slot_LH.flatten())
        return x_SD.view(*self.slot_LH.shape, x_SD.shape[1])

    def write(self, x_NHRD: Tensor, to_LHD: Tensor) -> None:
        """`to_LHD[rows] = join(x_NHRD)`."""
        if to_LHD.dtype != x_NHRD.dtype:
            to_LHD[self.rows] = self.join(x_NHRD)
        else:
            rows_SD = to_LHD[self.rows].view(-1, to_LHD.shape[2])
            torch.index_select(x_NHRD.flatten(0, 2), 0, self.slot_LH.flatten(), out=rows_SD)


def wide(x: Tensor) -> Tensor:
    """Half precision is computed in float32: a half accumulator loses a tenth of a long history."""
    return x.to(torch.promote_types(x.dtype, torch.float32)).contiguous()


def _ranges(first_N: Tensor, count_N: Tensor) -> Tensor:
    """first, first + 1 .. of each, `count` of them, one after the other."""
    shift = (first_N - (count_N.cumsum(0) - count_N)).repeat_interleave(count_N)
    return _arange(shift) + shift


def _arange(like: Tensor) -> Tensor:
    return torch.arange(like.numel(), device=like.device)
