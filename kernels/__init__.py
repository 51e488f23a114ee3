"""The operations that the model is built from; only torch (and triton, where there is one) is imported."""

from kernels.reference import PHI, Phi, qla, qla_read, qla_state

__all__ = ["PHI", "Phi", "qla", "qla_read", "qla_state"]
