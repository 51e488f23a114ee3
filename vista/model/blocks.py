"""Layers that several modules share: norm, gated unit, MLP.

Shape suffixes: N any rows, D width, T tasks.
"""

import torch
from torch import Tensor, nn


class SRMSNorm(nn.Module):
    """x / rms(x), without parameters (TransNormerLLM). `eps` is far below the square of 1e-4 embeddings."""

    def forward(self, x_ND: Tensor) -> Tensor:
        return x_ND * torch.rsqrt(x_ND.square().mean(-1, keepdim=True) + 1e-12)


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


def mlp(width: int, hidden: tuple[int, ...], outputs: int, dropout: float) -> nn.Sequential:
    """Linear, ReLU and dropout per hidden width, and a linear output."""
    layers: list[nn.Module] = []
    for size in hidden:
        layers += [nn.Linear(width, size), nn.ReLU(), nn.Dropout(dropout)]
        width = size
    return nn.Sequential(*layers, nn.Linear(width, outputs))
