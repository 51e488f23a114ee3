"""Histories in chunks of equal size: ragged rows as dense batches, without a loop over users.

Shape suffixes: B users, L packed history rows, C readers of a history (candidates, or the users themselves),
M chunks of R events beside a reader, D width.
"""

import torch
from torch import Tensor

CHUNK_ROWS = 8
"""A history is padded to a multiple of this."""


def chunks_of(seq_offsets: Tensor, user_C: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Every reader beside every event of its user's history, CHUNK_ROWS events at a time.

    Returns the reader of each chunk, its rows of the packed history, and whether a row is an event (the rest
    is padding: the user's last row).
    """
    lengths_C = seq_offsets.diff()[user_C]
    chunks_C = (lengths_C + CHUNK_ROWS - 1) // CHUNK_ROWS
    reader_M = torch.arange(user_C.numel(), device=user_C.device).repeat_interleave(chunks_C)
    first_chunk_C = chunks_C.cumsum(0) - chunks_C
    chunk_M = torch.arange(reader_M.numel(), device=user_C.device) - first_chunk_C[reader_M]
    within_MR = chunk_M.unsqueeze(1) * CHUNK_ROWS + torch.arange(CHUNK_ROWS, device=user_C.device)
    known_MR = within_MR < lengths_C[reader_M].unsqueeze(1)
    first_M, end_M = seq_offsets[user_C][reader_M], seq_offsets[1:][user_C][reader_M]
    row_MR = (first_M.unsqueeze(1) + within_MR).minimum(end_M.unsqueeze(1) - 1)
    return reader_M, row_MR, known_MR


def rows_of(x_L: Tensor, row_MR: Tensor) -> Tensor:
    """x_L[row_MR]; the gradient of index_select is the faster one on a CPU."""
    return x_L.index_select(0, row_MR.flatten()).view(*row_MR.shape, *x_L.shape[1:])
