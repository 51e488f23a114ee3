"""Adam on flat buffers: parameters and gradients are views of one vector each.

One all-reduce per step, and a few operations over long vectors. Not `torch.optim.Adam`: building it imports
`torch._dynamo`, 4 s of CPU in every worker of every training (torch 2.13).

N numbers in all parameters.
"""

import torch
from torch import Tensor, nn

FIRST_DECAY, SECOND_DECAY, EPSILON = 0.9, 0.999, 1e-8


class FlatAdam:
    """Kingma & Ba (2015), algorithm 1; `embedding_l2` adds an L2 term on whole embedding tables (half of
    the squared norm) to the gradient."""

    def __init__(self, model: nn.Module, embedding_l2: float) -> None:
        tables = {module.weight for module in model.modules() if isinstance(module, nn.Embedding)}
        parameters = sorted(model.parameters(), key=lambda parameter: parameter not in tables)
        self.table_numbers = sum(parameter.numel() for parameter in tables)
        self.embedding_l2 = embedding_l2
        self.values_N = torch.cat([parameter.detach().flatten() for parameter in parameters])
        self.gradient_N = torch.zeros_like(self.values_N)
        self.first_N = torch.zeros_like(self.values_N)
        self.second_N = torch.zeros_like(self.values_N)
        start = 0
        for parameter in parameters:
            end = start + parameter.numel()
            parameter.data = self.values_N[start:end].view_as(parameter)
            parameter.grad = self.gradient_N[start:end].view_as(parameter)
            start = end

    @torch.no_grad()
    def step(self, learning_rate: float, number: int) -> None:
        """Step `number` (from 1) along the gradient, which is zero afterwards."""
        if self.embedding_l2:
            tables = slice(0, self.table_numbers)
            self.gradient_N[tables].add_(self.values_N[tables], alpha=self.embedding_l2)
        self.first_N.lerp_(self.gradient_N, 1 - FIRST_DECAY)
        self.second_N.mul_(SECOND_DECAY).addcmul_(self.gradient_N, self.gradient_N, value=1 - SECOND_DECAY)
        size = learning_rate / (1 - FIRST_DECAY**number)
        root_N = self.second_N.div(1 - SECOND_DECAY**number).sqrt_().add_(EPSILON)
        self.values_N.addcdiv_(self.first_N, root_N, value=-size)
        self.gradient_N.zero_()

    def moments(self) -> dict[str, Tensor]:
        """What has to be kept to go on."""
        return {"first": self.first_N, "second": self.second_N}

    def restore(self, moments: dict[str, Tensor]) -> None:
        """Put back what `moments` gave."""
        self.first_N.copy_(moments["first"])
        self.second_N.copy_(moments["second"])
