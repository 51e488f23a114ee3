"""Row-wise parts of the model over very many rows, in memory for a few of them.

Shape suffixes: N rows, R rows of a part.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

PART_NUMBERS = 2**22
"""Numbers of the first input that are worked on at once: 16 MiB of float32."""


def by_rows(function: Callable[..., Tensor], module: nn.Module, *inputs_N: Tensor) -> Tensor:
    """`function(*inputs_N)`, which treats each row alone and reads no parameters but those of `module`.

    Many rows are worked on part by part, and backward computes a part's intermediate results again
    instead of keeping them. `function` must not draw random numbers. Not torch.utils.checkpoint: calling it
    imports torch._dynamo, 4 s of CPU in every process.
    """
    part_rows = max(1, PART_NUMBERS // inputs_N[0].shape[1:].numel())
    if inputs_N[0].shape[0] <= part_rows:
        return function(*inputs_N)
    parts = zip(*(torch.split(x_N, part_rows) for x_N in inputs_N), strict=True)
    parameters = tuple(module.parameters())
    outs: list[Tensor] = [
        _Recomputed.apply(function, len(part), *part, *parameters)  # type: ignore[no-untyped-call]
        for part in parts
    ]
    return torch.cat(outs)


class _Recomputed(torch.autograd.Function):
    """One part: keeps its inputs only."""

    @staticmethod
    def forward(ctx: Any, function: Callable[..., Tensor], inputs: int, *tensors: Tensor) -> Tensor:
        ctx.function, ctx.parameters = function, tensors[inputs:]
        ctx.save_for_backward(*tensors[:inputs])
        return function(*tensors[:inputs])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_R: Tensor) -> tuple[Tensor | None, ...]:
        saved = zip(ctx.saved_tensors, ctx.needs_input_grad[2:], strict=False)
        inputs = [x_R.detach().requires_grad_(needed) for x_R, needed in saved]
        with torch.enable_grad():
            out_R = ctx.function(*inputs)
        tensors = [*inputs, *ctx.parameters]
        wanted = [tensor for tensor in tensors if tensor.requires_grad]
        found = iter(torch.autograd.grad(out_R, wanted, gradient_R, allow_unused=True))
        return None, None, *(next(found) if tensor.requires_grad else None for tensor in tensors)
