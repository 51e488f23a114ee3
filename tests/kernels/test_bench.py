"""The bench measures nothing behind a red gate, and judges what it measured."""

import pytest
import torch
from torch import Tensor

from kernels import bench
from kernels.bench import Verdict
from kernels.peers import Shape, our_qla, our_silu_attention, qla_equation, sdpa


def _one_percent_off(q: Tensor, k: Tensor, v: Tensor, shape: Shape) -> Tensor:
    return our_qla(q, k, v, shape) * 1.01


def test_nothing_is_timed_behind_a_red_gate(capsys: pytest.CaptureFixture[str]) -> None:
    ops = {"qla": _one_percent_off, "compiled": qla_equation, "silu": our_silu_attention, "sdpa": sdpa}
    assert bench.run(ops, [], torch.device("cpu")) == 1
    printed = capsys.readouterr().out
    assert "gate qla, draw 0: largest error 1.0e-02" in printed
    assert printed.endswith("the gate is red: no speed is measured\n")
    assert "ns a row" not in printed


def test_a_missed_claim_is_shown_as_missed() -> None:
    assert str(Verdict("qla / sdpa", 0.5, 0.25)) == "MISSED qla / sdpa: 0.5, at most 0.25"
    assert str(Verdict("qla / sdpa", 0.2, 0.25)) == "holds  qla / sdpa: 0.2, at most 0.25"
