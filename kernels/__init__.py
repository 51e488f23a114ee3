"""The operations that the model is built from; only torch (and triton, where there is one) is imported."""

from kernels.activations import PHI, Phi
from kernels.causal import qla_causal
from kernels.pointwise import PairBias, silu_attention
from kernels.quasi_linear import Impl, qla, qla_read, qla_state

__all__ = ["PHI", "Impl", "PairBias", "Phi", "qla", "qla_causal", "qla_read", "qla_state", "silu_attention"]
