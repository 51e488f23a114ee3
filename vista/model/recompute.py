"""Row-wise parts of the model over very many rows, in memory for a few of them.

Shape suffixes: N rows, R rows of a part.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

PART_NUMBERS = 2**20
"""Numbers of the first input that are worked on at once: 4 MiB of float32, so that a part stays near the
core, and four times as wide an intermediate result below the 32 MiB from which malloc asks the kernel for
fresh pages each time."""


def by_rows(function: Callable[..., Tensor], module: nn.Module, *inputs_N: Tensor) -> Tensor:
    """`function(*inputs_N)`, which treats each row alone and reads no parameters but those of `module`.

    Many rows are worked on part by part, and backward computes a part's intermediate results again
    instead of keeping them. `function` must not draw random numbers. Not torch.utils.checkpoint: calling it
    imports torch._dynamo, 4 s of CPU in every process.
    """
    if inputs_N[0].shape[0] <= _part_rows(inputs_N[0]):
        return function(*inputs_N)
    out_N: Tensor = _ByRows.apply(function, len(inputs_N), *inputs_N, *module.parameters())  # type: ignore[no-untyped-call]
    return out_N


def _part_rows(x_N: Tensor) -> int:
    return max(1, PART_NUMBERS // x_N.shape[1:].numel())


def _parts(x_N: Tensor) -> Iterator[slice]:
    part_rows = _part_rows(x_N)
    return (slice(first, first + part_rows) for first in range(0, x_N.shape[0], part_rows))


class _ByRows(torch.autograd.Function):
    """Keeps its inputs only."""

    @staticmethod
    def forward(ctx: Any, function: Callable[..., Tensor], inputs: int, *tensors: Tensor) -> Tensor:
        inputs_N = tensors[:inputs]
        ctx.function, ctx.parameters = function, tensors[inputs:]
        ctx.save_for_backward(*inputs_N)
        out_N: Tensor | None = None
        for rows in _parts(inputs_N[0]):
            out_R = function(*(x_N[rows] for x_N in inputs_N))
            if out_N is None:
                out_N = out_R.new_empty(inputs_N[0].shape[0], *out_R.shape[1:])
            out_N[rows] = out_R
        assert out_N is not None
        return out_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (d_out_N,) = gradients
        inputs_N, needed = ctx.saved_tensors, ctx.needs_input_grad[2:]
        d_inputs_N = [
            torch.empty_like(x_N) if need else None for x_N, need in zip(inputs_N, needed, strict=False)
        ]
        d_parameters = [torch.zeros_like(x) if x.requires_grad else None for x in ctx.parameters]
        for rows in _parts(inputs_N[0]):
            inputs_R = [
                x_N[rows].detach().requires_grad_(need) for x_N, need in zip(inputs_N, needed, strict=False)
            ]
            with torch.enable_grad():
                out_R = ctx.function(*inputs_R)
            leaves = [x for x in (*inputs_R, *ctx.parameters) if x.requires_grad]
            found = iter(torch.autograd.grad(out_R, leaves, d_out_N[rows], materialize_grads=True))
            for d_x_N in d_inputs_N:
                if d_x_N is not None:
                    d_x_N[rows] = next(found)
            for d_x in d_parameters:
                if d_x is not None:
                    d_x += next(found)
        return None, None, *d_inputs_N, *d_parameters
