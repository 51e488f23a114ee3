"""How the rows of [uih ; seeds] read each other: one class per kernel that `ModelConfig.attention` names.

Shape suffixes: B users, M packed rows of [uih ; seeds], S seeds, H heads, E width of a head, G users of one
group, W rows of its longest user.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import qla, qla_causal, qla_read, qla_state, silu_attention
from vista.config import ModelConfig, Phi
from vista.model.padding import PaddedGroups

LOWEST = -40.0
"""Of the products of two features at this, float32 still has sums."""


@dataclass(frozen=True, slots=True)
class Packed:
    """Where the rows of [uih ; seeds] are."""

    seq_offsets: Tensor  # [B + 1] of the M rows
    num_candidates: Tensor  # [B] 0, or S where the seeds read and nobody reads them
    seed_rows_BS: Tensor
    weight_M: Tensor | None = None  # of the values, mean 1 over a user's rows; None for all alike


class Attention:
    """Every row reads the sources among its user's rows."""

    def rows(self, q_MHE: Tensor, k_MHE: Tensor, v_MHE: Tensor, packed: Packed) -> Tensor:
        """What every row reads: out_MHE."""
        raise NotImplementedError

    def seeds(self, q_BSHE: Tensor, k_MHE: Tensor, v_MHE: Tensor, packed: Packed) -> Tensor:
        """What the seeds read, which is all that a last layer needs: out_BSHE."""
        seed_rows = packed.seed_rows_BS.flatten()
        q_MHE = torch.zeros_like(k_MHE).index_copy_(0, seed_rows, q_BSHE.flatten(0, 1))
        out_MHE = self.rows(q_MHE, k_MHE, v_MHE, packed)
        return out_MHE.index_select(0, seed_rows).view_as(q_BSHE)


class QuasiLinear(Attention):
    """phi(Q) phi_out(phi(K)^T V / n) (section 3.2.2)."""

    def __init__(self, phi: Phi, phi_out: Phi) -> None:
        self.phi, self.phi_out = phi, phi_out

    def rows(self, q_MHE: Tensor, k_MHE: Tensor, v_MHE: Tensor, packed: Packed) -> Tensor:
        return qla(
            q_MHE, k_MHE, v_MHE, packed.seq_offsets, packed.num_candidates,
            phi=self.phi, phi_out=self.phi_out,
        )  # fmt: skip


class QuasiLinearSources(QuasiLinear):
    """The same with seeds that are sources: a last layer reads the state only for them.

    Only here events may be weighed: decay is for models of one layer.
    """

    def seeds(self, q_BSHE: Tensor, k_MHE: Tensor, v_MHE: Tensor, packed: Packed) -> Tensor:
        if packed.weight_M is not None:
            v_MHE = v_MHE * packed.weight_M[:, None, None]
        kv_BHDE = qla_state(k_MHE, v_MHE, packed.seq_offsets, packed.num_candidates, phi=self.phi)
        return qla_read(q_BSHE, kv_BHDE, phi=self.phi, phi_out=self.phi_out)


class CausalQuasiLinear(QuasiLinear):
    """The same, but a source reads the sources up to itself: the ablation of "full" (section 3.2.2)."""

    def rows(self, q_MHE: Tensor, k_MHE: Tensor, v_MHE: Tensor, packed: Packed) -> Tensor:
        return qla_causal(
            q_MHE, k_MHE, v_MHE, packed.seq_offsets, packed.num_candidates,
            phi=self.phi, phi_out=self.phi_out,
        )  # fmt: skip


class Linear(Attention):
    """Q (K^T V) / (Q ColSum(K)^T) with features elu + 1, which are positive (eq. 1).

    The op without activations, on values with a column of ones: that column is the denominator.
    """

    def __init__(self) -> None:
        self.sums = QuasiLinearSources("identity", "identity")

    def rows(self, q_MHE: Tensor, k_MHE: Tensor, v_MHE: Tensor, packed: Packed) -> Tensor:
        return _normalised(self.sums.rows(_positive(q_MHE), _positive(k_MHE), _with_one(v_MHE), packed))

    def seeds(self, q_BSHE: Tensor, k_MHE: Tensor, v_MHE: Tensor, packed: Packed) -> Tensor:
        return _normalised(self.sums.seeds(_positive(q_BSHE), _positive(k_MHE), _with_one(v_MHE), packed))


def _positive(x: Tensor) -> Tensor:
    """elu(x) + 1, which written so would be 0 below -17; never 0, and a denominator may be made of these."""
    return torch.where(x < 0, x.clamp(LOWEST, 0).exp(), x + 1)


def _with_one(v_MHE: Tensor) -> Tensor:
    return torch.cat([v_MHE, torch.ones_like(v_MHE[..., :1])], dim=-1)


def _normalised(sums: Tensor) -> Tensor:
    return sums[..., :-1] / sums[..., -1:]


class Softmax(Attention):
    """RowSoftmax(Q K^T / sqrt(E)) V (section 3.2.1): the model without quasi-linear attention."""

    def rows(self, q_MHE: Tensor, k_MHE: Tensor, v_MHE: Tensor, packed: Packed) -> Tensor:
        padded = PaddedGroups(packed.seq_offsets)
        parts = zip(padded.groups, *(padded.pad(x) for x in (q_MHE, k_MHE, v_MHE)), strict=True)
        return padded.unpad([_softmax(q, k, v, group.known_GW) for group, q, k, v in parts])

    def seeds(self, q_BSHE: Tensor, k_MHE: Tensor, v_MHE: Tensor, packed: Packed) -> Tensor:
        padded = PaddedGroups(packed.seq_offsets)
        parts = zip(padded.groups, padded.pad(k_MHE), padded.pad(v_MHE), strict=True)
        out = [_softmax(q_BSHE[group.users_G], k, v, group.known_GW) for group, k, v in parts]
        order_B = torch.cat([group.users_G for group in padded.groups])
        return torch.empty_like(q_BSHE).index_copy_(0, order_B, torch.cat(out))


def _softmax(q_GSHE: Tensor, k_GWHE: Tensor, v_GWHE: Tensor, known_GW: Tensor) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q_GSHE, k_GWHE, v_GWHE))
    out_GHSE = F.scaled_dot_product_attention(q, k, v, attn_mask=known_GW[:, None, None, :])
    return out_GHSE.transpose(1, 2)


class Silu(Attention):
    """silu(Q K^T) V / n, pointwise (HSTU)."""

    def rows(self, q_MHE: Tensor, k_MHE: Tensor, v_MHE: Tensor, packed: Packed) -> Tensor:
        return silu_attention(q_MHE, k_MHE, v_MHE, packed.seq_offsets, packed.num_candidates, causal=False)


def attention_of(config: ModelConfig) -> Attention:
    """The kernel that a model's blocks use."""
    match config.attention:
        case "linear":
            return Linear()
        case "softmax":
            return Softmax()
        case "silu":
            return Silu()
    if config.causal:
        return CausalQuasiLinear(config.phi, config.phi_out)
    if config.seeds_as == "candidates":
        return QuasiLinear(config.phi, config.phi_out)
    return QuasiLinearSources(config.phi, config.phi_out)
