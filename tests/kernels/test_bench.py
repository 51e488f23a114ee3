"""The bench measures nothing behind a red gate, and judges what it measured."""

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kernels import bench
from kernels.bench import Verdict
from kernels.peers import Op, Shape, our_qla, our_silu_attention, qla_equation, sdpa


def _one_percent_off(q: Tensor, k: Tensor, v: Tensor, shape: Shape) -> Tensor:
    return our_qla(q, k, v, shape) * 1.01


def _gradient_is_nan(q: Tensor, k: Tensor, v: Tensor, shape: Shape) -> Tensor:
    return our_qla(q, k, v + 0.0 * v.detach().square().sub(v.square()).sqrt(), shape)


def _wrong_when_long(q: Tensor, k: Tensor, v: Tensor, shape: Shape) -> Tensor:
    return our_qla(q, k, v, shape) * (1.01 if shape.rows_per_user > 4_096 else 1.0)


@pytest.mark.parametrize(
    ("op", "said"),
    [
        (_one_percent_off, "gate qla, 3 x 700 rows, 2 heads of 16: largest error 1.0e-02"),
        (_gradient_is_nan, "gate qla, 3 x 700 rows, 2 heads of 16: largest error nan"),
        (_wrong_when_long, "gate qla, 2 x 9,000 rows, 2 heads of 64: largest error 1.0e-02"),
    ],
)
def test_nothing_is_timed_behind_a_red_gate(capsys: pytest.CaptureFixture[str], op: Op, said: str) -> None:
    ops: dict[str, Op] = {"qla": op, "compiled": qla_equation, "silu": our_silu_attention, "sdpa": sdpa}
    assert bench.run(ops, [], torch.device("cpu")) == 1
    printed = capsys.readouterr().out
    assert said in printed
    assert printed.endswith("the gate is red: no speed is measured\n")
    assert "ns a row" not in printed


def test_what_was_measured_is_written_with_its_losses(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On one small shape: where the figures are from, times, and the claims that were missed."""

    def small(measured: bench.Bench) -> None:
        slow = measured.time("sdpa", Shape(2, 100, 1, 8))
        measured.judge("at most nothing", slow.both_ms, 0.0)

    monkeypatch.setattr(bench, "cpu_cases", small)
    monkeypatch.setattr(bench, "OUT", tmp_path)
    ops = {"qla": our_qla, "compiled": qla_equation, "silu": our_silu_attention, "sdpa": sdpa}
    assert bench.run(ops, ["fla: needs a GPU"], torch.device("cpu")) == 0
    assert "MISSED at most nothing" in capsys.readouterr().out
    report = json.loads((tmp_path / "cpu.json").read_text())
    assert report["machine"]["figures_from"] == "CPU"
    assert report["not_run"] == ["fla: needs a GPU"]
    assert len(report["gate"]) == 11
    assert {"torch", "triton", "cuda", "fla-core"} <= report["machine"].keys()
    assert report["timings"][0]["both_ms"] > 0
    assert report["verdicts"][0]["measured"] > report["verdicts"][0]["limit"]
    assert (tmp_path / "cpu.png").read_bytes().startswith(b"\x89PNG")
    assert "sdpa" in (tmp_path / "cpu.svg").read_text()


@pytest.mark.parametrize("arguments", [[], ["gpu"], ["cpu", "cuda"]])
def test_it_says_what_to_say(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["bench", *arguments])
    assert bench.main() == 2
    assert "say one of cpu and cuda" in capsys.readouterr().out


def test_a_missed_claim_is_shown_as_missed() -> None:
    assert str(Verdict("qla / sdpa", 0.5, 0.25)) == "MISSED qla / sdpa: 0.5, at most 0.25"
    assert str(Verdict("qla / sdpa", 0.2, 0.25)) == "holds  qla / sdpa: 0.2, at most 0.25"
