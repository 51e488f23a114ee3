"""What a candidate reads of itself: phi(q) . phi(k) v / n. Nobody else reads it, so it is no part of a state.

Shape suffixes: L packed rows, T candidates, H heads, D width of queries and keys, E width of values.
"""

from torch import Tensor

from kernels.activations import PHI, PHI_BACKWARD, Phi
from kernels.chunks import candidate_rows, wide


def add_own_term(
    out_LHE: Tensor,
    q_LHD: Tensor,
    k_LHD: Tensor,
    v_LHE: Tensor,
    seq_offsets: Tensor,
    num_candidates: Tensor,
    phi: Phi,
) -> None:
    """Add the term to the candidates' rows of `out_LHE`."""
    rows_T, n_T = candidate_rows(seq_offsets, num_candidates)
    q_THD, k_THD, v_THE = (wide(x[rows_T]) for x in (q_LHD, k_LHD, v_LHE))
    y_TH1 = (PHI[phi](q_THD) * PHI[phi](k_THD)).sum(-1, keepdim=True) / n_T[:, None, None]
    out_LHE.index_add_(0, rows_T, (y_TH1 * v_THE).to(out_LHE.dtype))


def put_own_gradients(
    gradients: tuple[Tensor, Tensor, Tensor],
    d_out_LHE: Tensor,
    q_LHD: Tensor,
    k_LHD: Tensor,
    v_LHE: Tensor,
    seq_offsets: Tensor,
    num_candidates: Tensor,
    phi: Phi,
) -> None:
    """Complete dq_LHD, dk_LHD and dv_LHE, which lack the term: a candidate's query reads the history too, its
    key and value are read by this term alone."""
    dq_LHD, dk_LHD, dv_LHE = gradients
    rows_T, n_T = candidate_rows(seq_offsets, num_candidates)
    d_out_THE, q_THD, k_THD, v_THE = (wide(x[rows_T]) for x in (d_out_LHE, q_LHD, k_LHD, v_LHE))
    x_TH1 = (d_out_THE * v_THE).sum(-1, keepdim=True) / n_T[:, None, None]
    y_TH1 = (PHI[phi](q_THD) * PHI[phi](k_THD)).sum(-1, keepdim=True) / n_T[:, None, None]
    dq_THD = PHI_BACKWARD[phi](x_TH1 * PHI[phi](k_THD), q_THD)
    dq_LHD.index_add_(0, rows_T, dq_THD.to(dq_LHD.dtype))
    dk_LHD[rows_T] = PHI_BACKWARD[phi](x_TH1 * PHI[phi](q_THD), k_THD).to(dk_LHD.dtype)
    dv_LHE[rows_T] = (y_TH1 * d_out_THE).to(dv_LHE.dtype)
