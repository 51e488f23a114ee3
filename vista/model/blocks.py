"""Layers that several modules share: norm, gated unit, MLP.

Shape suffixes: N any rows, D width, T tasks.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

EPSILON = 1e-12
"""Far below the square of 1e-4 embeddings."""


class SRMSNorm(nn.Module):
    """x / rms(x), without parameters (TransNormerLLM)."""

    def forward(self, x_ND: Tensor) -> Tensor:
        normal_ND: Tensor = _Normal.apply(x_ND)  # type: ignore[no-untyped-call]
        return normal_ND


class _Normal(torch.autograd.Function):
    """y = x r with r = (mean(x^2) + eps)^-1/2, so dx = (dy - y mean(dy * y)) r: half the time of the chain of
    operations, of which the model has many."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor) -> Tensor:
        r_N1 = (torch.linalg.vecdot(x_ND, x_ND) / x_ND.shape[-1] + EPSILON).rsqrt().unsqueeze(-1)
        y_ND: Tensor = x_ND * r_N1
        ctx.save_for_backward(y_ND, r_N1)
        return y_ND

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (dy_ND,) = gradients
        y_ND, r_N1 = ctx.saved_tensors
        mean_N1 = (torch.linalg.vecdot(dy_ND, y_ND) / y_ND.shape[-1]).unsqueeze(-1)
        dx_ND: Tensor = torch.addcmul(dy_ND, y_ND, mean_N1, value=-1).mul_(r_N1)
        return dx_ND


class SGLU(nn.Module):
    """Channel mixer without activation: (x W_v * x W_u) W_o (TransNormerLLM)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.values_and_gates = nn.Linear(width, 4 * width, bias=False)
        self.output = nn.Linear(2 * width, width, bias=False)

    def forward(self, x_ND: Tensor) -> Tensor:
        value, gate = self.values_and_gates(x_ND).chunk(2, dim=-1)
        mixed: Tensor = self.output(value * gate)
        return mixed


class BatchNorm(nn.BatchNorm1d):
    """A batch of one row, which has no variance, is normalised by the running statistics."""

    def forward(self, x_ND: Tensor) -> Tensor:
        if self.training and len(x_ND) < 2:
            return F.batch_norm(
                x_ND, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        return super().forward(x_ND)


def mlp(
    width: int, hidden: tuple[int, ...], outputs: int, dropout: float, *, batch_norm: bool = False
) -> nn.Sequential:
    """Linear, batch norm if it is asked for, ReLU and dropout per hidden width, and a linear output."""
    layers: list[nn.Module] = []
    for size in hidden:
        norm = [BatchNorm(size)] if batch_norm else []
        layers += [nn.Linear(width, size), *norm, nn.ReLU(), nn.Dropout(dropout)]
        width = size
    return nn.Sequential(*layers, nn.Linear(width, outputs))
