"""Ragged inputs that the tests of the ops share: users as (sources, candidates)."""

import torch
from torch import Tensor

RAGGED = [(3, 2), (1, 0), (0, 2), (0, 0), (2, 1), (1, 1)]
ACROSS_CHUNKS = [(31, 1), (33, 3), (0, 40), (70, 0), (32, 0)]
NO_CANDIDATES = [(2, 0), (4, 0)]


def inputs(users: list[tuple[int, int]], *, seed: int = 0) -> tuple[Tensor, ...]:
    """q, k, v in float64 that want gradients, offsets and candidate counts; 2 heads, D 3, E 2."""
    draw = torch.Generator().manual_seed(seed)
    sizes = torch.tensor([sources + candidates for sources, candidates in users])
    rows = int(sizes.sum())
    q, k, v = (
        torch.randn(rows, 2, width, generator=draw, dtype=torch.float64, requires_grad=True)
        for width in (3, 3, 2)
    )
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)])
    return q, k, v, offsets, torch.tensor([candidates for _, candidates in users])


def assert_same_with_gradients(found: Tensor, wanted: Tensor, inputs: tuple[Tensor, ...]) -> None:
    """Equal but for the order of summation in fp64, the gradients of a weighted sum in `inputs` too."""
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    weights = torch.randn(found.shape, dtype=found.dtype, generator=torch.Generator().manual_seed(1))
    pairs = zip(
        torch.autograd.grad(found, inputs, weights), torch.autograd.grad(wanted, inputs, weights), strict=True
    )
    for gradient, expected in pairs:
        torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-12)
