"""What every op refuses, before it computes anything: a ValueError that names what does not fit.

Shape suffixes: B users, L packed rows, H heads, D width of queries and keys, E width of values.
"""

import torch
from torch import Tensor

from kernels.activations import PHI


def check_sources(k_LHD: Tensor, v_LHE: Tensor, seq_offsets: Tensor, num_candidates: Tensor) -> None:
    """Keys, values and the bounds of users fit each other; the values of the bounds are not looked at."""
    for name, x in (("k", k_LHD), ("v", v_LHE)):
        if x.dim() != 3 or 0 in x.shape[1:] or not x.is_floating_point():
            raise ValueError(f"{name} is {_kind(x)}: give rows x heads x width, in a floating type")
    if k_LHD.shape[:2] != v_LHE.shape[:2] or k_LHD.dtype != v_LHE.dtype:
        raise ValueError(f"k is {_kind(k_LHD)} and v is {_kind(v_LHE)}: give the same rows, heads and type")
    if seq_offsets.dtype != torch.int64 or num_candidates.dtype != torch.int64:
        raise ValueError(
            f"seq_offsets is {seq_offsets.dtype} and num_candidates {num_candidates.dtype}: give int64"
        )
    if num_candidates.dim() != 1 or seq_offsets.shape != (num_candidates.numel() + 1,):
        raise ValueError(
            f"seq_offsets is {_kind(seq_offsets)}, num_candidates {_kind(num_candidates)}: give B + 1 and B"
        )
    for name, x in (("v", v_LHE), ("seq_offsets", seq_offsets), ("num_candidates", num_candidates)):
        if x.device != k_LHD.device:
            raise ValueError(f"{name} is on {x.device} and k on {k_LHD.device}: move one of them")


def check_queries(q_LHD: Tensor, k_LHD: Tensor) -> None:
    """Every row has a query like its key."""
    if q_LHD.shape != k_LHD.shape or q_LHD.dtype != k_LHD.dtype or q_LHD.device != k_LHD.device:
        raise ValueError(f"q is {_kind(q_LHD)} and k is {_kind(k_LHD)}: they must be alike")


def check_read(q_BSHD: Tensor, kv_BHDE: Tensor) -> None:
    """Every user whose rows read has a state, as wide as they are."""
    if q_BSHD.dim() != 4 or kv_BHDE.dim() != 4 or kv_BHDE.shape[:3] != (q_BSHD.shape[0], *q_BSHD.shape[2:]):
        raise ValueError(
            f"q is {_kind(q_BSHD)} and kv is {_kind(kv_BHDE)}: give B x S x H x D and B x H x D x E"
        )


def check_phi(**names: str) -> None:
    """Activations by the names of their arguments."""
    for name, phi in names.items():
        if phi not in PHI:
            raise ValueError(f"{name} is {phi!r}: give one of {', '.join(PHI)}")


def check_bounds(seq_offsets: Tensor, num_candidates: Tensor, rows: int) -> None:
    """Users lie one behind the other and hold all rows, candidates included.

    Only on a CPU: a GPU would have to be waited for.
    """
    if seq_offsets.device.type != "cpu":
        return
    first, last = int(seq_offsets[0]), int(seq_offsets[-1])
    if (first, last) != (0, rows):
        raise ValueError(f"seq_offsets goes from {first} to {last}: it must go from 0 to the {rows} rows")
    lengths_B = seq_offsets.diff()
    wrong_B = (num_candidates < 0) | (num_candidates > lengths_B)
    if bool(wrong_B.any()):
        user = int(wrong_B.nonzero()[0])
        raise ValueError(
            f"user {user} has {int(lengths_B[user])} rows, {int(num_candidates[user])} of them candidates: "
            "offsets must not fall, candidates are 0 up to all rows"
        )


def _kind(x: Tensor) -> str:
    return f"{x.dtype} {list(x.shape)}".removeprefix("torch.")
