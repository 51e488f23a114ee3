"""What the public functions refuse, and what they hold in memory."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import triton
from ragged import inputs
from torch import Tensor

import kernels.triton_qla  # noqa: F401  # here, since what is imported without the interpreter stays without
from kernels import Impl, qla, qla_causal, qla_read, qla_state, silu_attention

ROOT = Path(__file__).parents[2]


OPS: dict[str, Callable[..., Tensor]] = {
    "qla": lambda *rows: qla(*rows, phi="silu", phi_out="silu"),
    "qla_state": lambda _, *rows: qla_state(*rows, phi="silu"),
    "qla_causal": lambda *rows: qla_causal(*rows, phi="silu", phi_out="silu"),
    "silu_attention": lambda *rows: silu_attention(*rows, causal=True),
}


def _refused(message: str, name: str, *changed: Tensor) -> None:
    with pytest.raises(ValueError, match=message):
        OPS[name](*changed)


@pytest.mark.parametrize("name", OPS)
def test_shapes_and_types_that_do_not_fit_are_named(name: str) -> None:
    q, k, v, offsets, candidates = inputs([(3, 1)])
    _refused(r"k is float64 \[4, 2, 3\] and v is float64 \[3, 2, 2\]", name, q, k, v[:3], offsets, candidates)
    _refused("k is float64 .* and v is float32", name, q, k, v.float(), offsets, candidates)
    _refused(r"v is float64 \[4, 2\]: give rows", name, q, k, v[..., 0], offsets, candidates)
    _refused(r"k is float64 \[4, 0, 3\]: give rows", name, q, k[:, :0], v[:, :0], offsets, candidates)
    _refused("k is int64 .* in a floating type", name, q, k.long(), v.long(), offsets, candidates)
    _refused("give int64", name, q, k, v, offsets.int(), candidates)
    _refused(r"give B \+ 1 and B", name, q, k, v, offsets, torch.cat([candidates, candidates]))
    _refused("v is on meta and k on cpu", name, q, k, v.to("meta"), offsets, candidates)
    if name != "qla_state":
        _refused("q is float32 .* and k is float64", name, q.float(), k, v, offsets, candidates)
        _refused(r"q is float64 \[4, 1, 3\] and k is", name, q[:, :1], k, v, offsets, candidates)


@pytest.mark.parametrize("name", OPS)
def test_bounds_that_do_not_fit_the_rows_are_named(name: str) -> None:
    """They would leave rows of the output as the allocator gave them, or read another user's."""
    q, k, v, *_ = inputs([(3, 2)])

    def refused(message: str, offsets: list[int], candidates: list[int]) -> None:
        _refused(message, name, q, k, v, torch.tensor(offsets), torch.tensor(candidates))

    refused("goes from 0 to 4: it must go from 0 to the 5 rows", [0, 3, 4], [0, 0])
    refused("goes from 0 to 9", [0, 3, 9], [0, 0])
    refused("goes from 1 to 5", [1, 3, 5], [0, 0])
    refused("user 1 has -1 rows, 0 of them candidates: offsets must not fall", [0, 4, 3, 5], [0, 0, 0])
    refused("user 0 has 3 rows, 4 of them candidates", [0, 3, 5], [4, 0])
    refused("user 1 has 2 rows, -1 of them candidates", [0, 3, 5], [0, -1])


@pytest.mark.parametrize("state", [(1, 2, 3, 5), (4, 1, 3, 5), (4, 2, 1, 5), (3, 5), (4, 2, 3, 5, 1)])
def test_a_state_of_other_users_heads_or_width_is_named(state: tuple[int, ...]) -> None:
    """One user's would silently be read by all."""
    with pytest.raises(
        ValueError, match=r"q is float32 \[4, 6, 2, 3\] and kv is float32 .*: give B x S x H x D"
    ):
        qla_read(torch.zeros(4, 6, 2, 3), torch.zeros(state), phi="silu", phi_out="silu")


def test_names_that_do_not_exist_are_refused() -> None:
    q, k, v, offsets, candidates = inputs([(3, 1)])
    with pytest.raises(ValueError, match="impl is 'tritn'"):
        qla_state(k, v, offsets, candidates, phi="silu", impl="tritn")
    with pytest.raises(ValueError, match="phi is 'gelu': give one of silu, shifted_elu, identity, relu"):
        qla_state(k, v, offsets, candidates, phi="gelu")
    for op in (qla, qla_causal):
        with pytest.raises(ValueError, match="phi_out is 'gelu'"):
            op(q, k, v, offsets, candidates, phi="silu", phi_out="gelu")
    for phi, phi_out in (("gelu", "silu"), ("silu", "gelu")):
        with pytest.raises(ValueError, match="is 'gelu': give one of silu"):
            qla_read(torch.zeros(1, 1, 2, 3), torch.zeros(1, 2, 3, 2), phi=phi, phi_out=phi_out)


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("wants", [[0], [1], [2], [1, 2]])
def test_a_gradient_does_not_depend_on_which_others_are_wanted(name: str, wants: list[int]) -> None:
    q, k, v, offsets, candidates = inputs([(33, 2), (0, 0), (2, 0)])
    wants = [one for one in wants if one > 0 or name != "qla_state"]
    alone = [x.detach().requires_grad_(one in wants) for one, x in enumerate((q, k, v))]
    out, every = OPS[name](*alone, offsets, candidates), OPS[name](q, k, v, offsets, candidates)
    d_out = torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(1))
    if wants:
        found = torch.autograd.grad(out, [alone[one] for one in wants], d_out)
        for one, gradient in zip(wants, found, strict=True):
            assert torch.equal(
                gradient, torch.autograd.grad(every, (q, k, v)[one], d_out, retain_graph=True)[0]
            )


@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_a_second_derivative_is_refused(impl: Impl, device: str) -> None:
    """Of the Triton op it would be zero."""
    q, k, v, *ragged = (x.detach().to(device) for x in inputs([(3, 2)]))
    q, k, v = (x.float().requires_grad_() for x in (q, k, v))
    outs = [
        qla(q, k, v, *ragged, phi="silu", phi_out="silu", impl=impl),
        qla_state(k, v, *ragged, phi="silu", impl=impl),
    ]
    for out in outs:
        (dk,) = torch.autograd.grad(out.sum(), k, create_graph=True)
        with pytest.raises(NotImplementedError, match="qla has no second derivative"):
            torch.autograd.grad(dk.square().sum(), k)


def test_a_second_derivative_of_the_causal_op_is_refused() -> None:
    q, k, v, *ragged = inputs([(3, 2)])
    out = qla_causal(q, k, v, *ragged, phi="silu", phi_out="silu")
    with pytest.raises(NotImplementedError, match="qla_causal has no second derivative"):
        torch.autograd.grad(out.sum(), k, create_graph=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to move the tensors to")
def test_triton_without_gpu_and_interpreter_says_what_to_do() -> None:
    _, k, v, offsets, candidates = (x.detach() for x in inputs([(3, 1)]))
    with triton.knobs.runtime.scope():
        triton.knobs.runtime.interpret = False
        with pytest.raises(ValueError, match="tensors on cpu: move them to a GPU, set TRITON_INTERPRET=1"):
            qla_state(k.float(), v.float(), offsets, candidates, phi="silu", impl="triton")


def test_a_long_history_holds_little_beside_its_tensors() -> None:
    """Autograd over all rows at once would hold as much again as inputs, output and gradients."""
    code = """
import torch
from kernels import bench
from kernels.peers import Shape, our_qla
measured = bench.Bench({"qla": our_qla}, torch.float32, torch.device("cpu"))
measured.judge_memory(Shape(1, 300_000, 4, 16), 0.25)
print(measured.verdicts[0].measured)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=300
    )
    assert 0.0 < float(done.stdout) <= 0.25, done.stdout
