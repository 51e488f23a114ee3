"""torch.compile and torch.export keep the ops whole, and torch's own checks of a registered op pass."""

import pytest
import torch
from ragged import inputs
from torch import Tensor, nn

from kernels import qla, qla_read, qla_state

USERS = [(3, 2), (0, 1), (40, 0)]
IMPLS = ["reference", "triton"]


def _inputs(device: str) -> tuple[list[Tensor], Tensor, Tensor]:
    q, k, v, offsets, candidates = inputs(USERS)
    qkv = [x.detach().float().to(device).requires_grad_() for x in (q, k, v)]
    return qkv, offsets.to(device), candidates.to(device)


@pytest.mark.parametrize("impl", IMPLS)
def test_torch_checks_the_registration(impl: str, device: str) -> None:
    (q, k, v), *ragged = _inputs(device)
    torch.library.opcheck(torch.ops.vista.qla, (q, k, v, *ragged, "silu", "silu", impl))
    torch.library.opcheck(torch.ops.vista.qla_state, (k, v, *ragged, "silu", impl))


class _Layer(nn.Module):
    """Attention over all rows, then one row of each user read from the state."""

    def __init__(self, impl: str) -> None:
        super().__init__()
        self.impl = impl
        self.project = nn.Linear(3, 3)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, candidates: Tensor) -> Tensor:
        q = self.project(q)
        rows = qla(q, k, v, offsets, candidates, phi="silu", phi_out="silu", impl=self.impl)
        state = qla_state(k, rows, offsets, candidates, phi="silu", impl=self.impl)
        return qla_read(q[offsets[1:] - 1].unsqueeze(1), state, phi="silu", phi_out="silu")


@pytest.mark.parametrize("impl", IMPLS)
def test_torch_compile_keeps_it_whole(impl: str, device: str) -> None:
    torch.manual_seed(0)
    layer = _Layer(impl).to(device)
    qkv, *ragged = _inputs(device)
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    out, expected = compiled(*qkv, *ragged), layer(*qkv, *ragged)
    torch.testing.assert_close(out, expected)
    gradients = torch.autograd.grad(out.sum(), qkv)
    for found, wanted in zip(gradients, torch.autograd.grad(expected.sum(), qkv), strict=True):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("impl", IMPLS)
def test_torch_export_keeps_it_whole(impl: str, device: str) -> None:
    torch.manual_seed(0)
    layer = _Layer(impl).to(device)
    qkv, *ragged = _inputs(device)
    rows, users = torch.export.Dim("rows", min=2), torch.export.Dim("users", min=2)
    shapes = (*({0: rows},) * 3, {0: users + 1}, {0: users})
    program = torch.export.export(layer, (*qkv, *ragged), dynamic_shapes=shapes)
    called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert {"vista.qla.default", "vista.qla_state.default"} <= called
    other = [x.detach()[:5] for x in qkv], torch.tensor([0, 2, 5]), torch.tensor([0, 1])
    more = [*other[0], *(x.to(device) for x in other[1:])]
    torch.testing.assert_close(program.module()(*more), layer(*more))
