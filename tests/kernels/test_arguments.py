"""What the public functions refuse, and what they hold in memory."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import triton
from ragged import inputs

from kernels import qla, qla_state

ROOT = Path(__file__).parents[2]


def test_shapes_and_types_that_do_not_fit_are_named() -> None:
    q, k, v, offsets, candidates = inputs([(3, 1)])
    with pytest.raises(ValueError, match=r"q is float32 .* and k is float64"):
        qla(q.float(), k, v, offsets, candidates, phi="silu", phi_out="silu")
    with pytest.raises(ValueError, match=r"k is float64 \[4, 2, 3\] and v is float64 \[3, 2, 2\]"):
        qla_state(k, v[:3], offsets, candidates, phi="silu")
    with pytest.raises(ValueError, match="give int64"):
        qla_state(k, v, offsets.int(), candidates, phi="silu")
    with pytest.raises(ValueError, match=r"give B \+ 1 and B"):
        qla_state(k, v, offsets, torch.cat([candidates, candidates]), phi="silu")
    with pytest.raises(ValueError, match="impl is 'tritn'"):
        qla_state(k, v, offsets, candidates, phi="silu", impl="tritn")


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
