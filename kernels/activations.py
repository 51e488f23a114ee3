"""The activations phi and phi_out of quasi-linear attention (section 3.2.2, appendix B.1.5 and B.2)."""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Phi = Literal["silu", "shifted_elu", "identity", "relu"]

PHI: dict[Phi, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    # appendix B.1.5: x from 1 on, e^(x - 1) below; elu(x - 1) + 1 would cancel to 0 below -16
    "shifted_elu": lambda x: torch.where(x < 1, (x - 1).clamp(max=0).exp(), x),
    "identity": lambda x: x,
    "relu": F.relu,
}

PHI_BACKWARD: dict[Phi, Callable[[Tensor, Tensor], Tensor]] = {
    "silu": torch.ops.aten.silu_backward,
    "shifted_elu": lambda gradient, x: gradient * (x - 1).clamp(max=0).exp(),
    "identity": lambda gradient, x: gradient,
    "relu": lambda gradient, x: torch.ops.aten.threshold_backward(gradient, x, 0),
}
"""(gradient in phi(x), x) -> gradient in x: gradient * phi'(x)."""
