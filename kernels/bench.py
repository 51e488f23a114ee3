"""`python -m kernels.bench cpu|cuda`: the op beside its peers in one run, after a gate of correctness.

On a GPU it is the Triton op, on a CPU the reference on as many threads as OMP_NUM_THREADS says. Writes JSON
and a plot, and judges every claim, the missed ones too.
"""

import ctypes
import importlib.util
import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kernels.peers import Op, Shape, inputs, peers, qla_equation, silu_equation
from kernels.quasi_linear import qla

OUT = Path("build/bench")
BUDGET_S = 3.0
"""What the runs of one op on one shape may take on a CPU, at least three runs."""
PASSES = 4 + 7
"""Tensors that the op must move, forward and backward."""
COPY_SHARE = 0.65
"""Of the bandwidth of a copy in the same run, at which the op must move them."""
HSTU_H100_MS = {2048: 11.3, 16384: 572.0}
"""Published for HSTU's CUTLASS kernel, forward and backward, causal, 512 users, 4 heads of 64, one H100."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Medians of one op on one shape."""

    op: str
    shape: Shape
    forward_ms: float
    both_ms: float

    @property
    def ns_per_row(self) -> float:
        return self.both_ms * 1e6 / self.shape.rows

    def __str__(self) -> str:
        return (
            f"{self.op:9} {self.shape!s:40} forward {self.forward_ms:9.2f} ms, and backward "
            f"{self.both_ms:9.2f} ms, {self.ns_per_row:8.1f} ns a row"
        )


@dataclass(frozen=True, slots=True)
class Verdict:
    """A claim, and what was measured: at most `limit`."""

    claim: str
    measured: float
    limit: float

    def __str__(self) -> str:
        word = "holds " if self.measured <= self.limit else "MISSED"
        return f"{word} {self.claim}: {self.measured:.3g}, at most {self.limit:.3g}"


class Bench:
    """The ops on one device, and what was measured so far."""

    def __init__(self, ops: dict[str, Op], dtype: torch.dtype, device: torch.device) -> None:
        self.ops, self.dtype, self.device = ops, dtype, device
        self.timings: list[Timing] = []
        self.verdicts: list[Verdict] = []

    def time(self, name: str, shape: Shape, op: Op | None = None) -> Timing:
        op = op or self.ops[name]
        qkv, d_out = inputs(shape, self.dtype, self.device)

        def both() -> object:
            return torch.autograd.grad(_call(op, qkv, shape), qkv, d_out)

        both()
        forward, whole = self.seconds(lambda: _call(op, qkv, shape)), self.seconds(both)
        timing = Timing(name, shape, statistics.median(forward) * 1e3, statistics.median(whole) * 1e3)
        print(timing, flush=True)
        self.timings.append(timing)
        return timing

    def judge_memory(self, shape: Shape, limit: float) -> None:
        """What our op holds at its peak beyond inputs, output and gradients, as a share of them."""
        qkv, d_out = inputs(shape, self.dtype, self.device)

        def both() -> object:
            out = _call(self.ops["qla"], qkv, shape)
            return out, torch.autograd.grad(out, qkv, d_out)

        tensor_bytes = d_out.numel() * d_out.element_size()
        extra_bytes = _peak_bytes(both, self.device) - 4 * tensor_bytes
        self.judge(f"extra memory / tensors, {shape}", extra_bytes / (8 * tensor_bytes), limit)

    def judge(self, claim: str, measured: float, limit: float) -> None:
        self.verdicts.append(Verdict(claim, measured, limit))

    def seconds(self, run: Callable[[], object]) -> list[float]:
        if self.device.type == "cuda":
            from triton.testing import do_bench  # it empties the L2 cache between runs

            return [ms / 1e3 for ms in do_bench(run, return_mode="all")]
        times: list[float] = []
        while len(times) < 3 or (sum(times) < BUDGET_S and len(times) < 20):
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
        return times


def _call(op: Op, qkv: list[Tensor], shape: Shape) -> Tensor:
    q, k, v = qkv
    return op(q, k, v, shape)


def gate(ops: dict[str, Op], dtype: torch.dtype, device: torch.device) -> list[dict[str, Any]]:
    """Relative errors of outputs and gradients against the equations in float64: three draws each, and of
    what is linear in its length also users of more than two chunks with wide heads, as is timed then."""
    rows = []
    for name, equation in (("qla", qla_equation), ("compiled", qla_equation), ("silu", silu_equation)):
        shapes = [Shape(3, 700 + seed, 2, 16) for seed in range(3)]
        shapes += [Shape(2, 9_000, 2, 64)] * (name != "silu")
        # As in the tests: rounding of operands and outputs. What is compiled rounds its states as well.
        limit = 1e-5 if dtype == torch.float32 else 2e-2 if name == "compiled" else 5e-3
        for seed, shape in enumerate(shapes):
            qkv, d_out = inputs(shape, dtype, device, seed)
            wide = [x.detach().double().requires_grad_() for x in qkv]
            out, expected = _call(ops[name], qkv, shape), _call(equation, wide, shape)
            found = [out, *torch.autograd.grad(out, qkv, d_out)]
            wanted = [expected, *torch.autograd.grad(expected, wide, d_out.double())]
            errors = [((x.double() - y).norm() / y.norm()).item() for x, y in zip(found, wanted, strict=True)]
            largest = max(errors, key=lambda error: error if error == error else math.inf)  # NaN is the worst
            print(f"gate {name}, {shape}: largest error {largest:.1e}, at most {limit:.0e}", flush=True)
            rows.append({"op": name, "shape": asdict(shape), "errors": errors, "limit": limit})
    return rows


def cpu_cases(bench: Bench) -> None:
    """The reference against attention of quadratic cost, its growth with length, and a million events."""
    for shape, limit in ((Shape(1024, 228, 4, 16), 0.25), (Shape(32, 2000, 4, 8), 0.05)):
        both_ms = {name: bench.time(name, shape).both_ms for name in bench.ops}
        bench.judge(f"qla / sdpa, {shape}", both_ms["qla"] / both_ms["sdpa"], limit)
        for peer in ("compiled", "silu"):
            bench.judge(f"qla / {peer}, {shape}", both_ms["qla"] / both_ms[peer], 1.0)
    shapes = [Shape(2**16 // length, length, 4, 16) for length in (2**power for power in range(11, 17))]
    ns_per_row = [bench.time("qla", shape).ns_per_row for shape in shapes]
    bench.judge("time per row, longest of 2k..64k / 2k", max(ns_per_row) / ns_per_row[0], 1.15)
    for shape in shapes[:2]:
        bench.time("sdpa", shape)
    million = Shape(1, 1_000_000, 4, 16)
    bench.judge_memory(million, 0.25)
    bench.time("qla", million)


def gpu_cases(bench: Bench) -> None:
    """The Triton op against the bandwidth of a copy, its peers and published figures."""
    copy_bytes_per_s = _copy_bytes_per_s(bench)
    print(f"copy: {copy_bytes_per_s / 1e12:.2f} TB/s")
    for users, length in ((512, 2048), (512, 16384), (1, 2**20)):
        shape = Shape(users, length, 4, 64)
        ours = bench.time("qla", shape)
        tensor_bytes = shape.rows * 4 * 64 * bench.dtype.itemsize
        floor_ms = PASSES * tensor_bytes / (COPY_SHARE * copy_bytes_per_s) * 1e3
        bench.judge(f"ms, {shape}", ours.both_ms, floor_ms)
        bench.judge_memory(shape, 0.05)
        least_times = {"compiled": 2.0} | ({"fla": 1.5} if "fla" in bench.ops else {})
        for peer, times in least_times.items():
            bench.judge(f"qla / {peer}, {shape}", ours.both_ms / bench.time(peer, shape).both_ms, 1 / times)
        if length in HSTU_H100_MS:
            times = 5 if length == 2048 else 30
            bench.judge(f"qla / published HSTU, {shape}", ours.both_ms / HSTU_H100_MS[length], 1 / times)
            bench.judge(f"qla / sdpa, {shape}", ours.both_ms / bench.time("sdpa", shape).both_ms, 1.0)
    uniform = Shape(512, 2048, 4, 64)
    bench.time("silu", uniform)
    ragged = _zipf(uniform, bench.device)
    zipf = bench.time(
        "qla, zipf", uniform, lambda q, k, v, _: qla(q, k, v, *ragged, phi="silu", phi_out="silu")
    )
    bench.judge("zipf / uniform lengths, 1M rows", zipf.both_ms / bench.timings[0].both_ms, 1.3)


def _zipf(shape: Shape, device: torch.device) -> tuple[Tensor, Tensor]:
    """As many rows and users, the lengths falling as 1 / rank."""
    share = 1.0 / torch.arange(1, shape.users + 1, dtype=torch.float64)
    ends = (share.cumsum(0) / share.sum() * shape.rows).round().long()
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), ends]).to(device)
    return offsets, torch.zeros(shape.users, dtype=torch.int64, device=device)


def _copy_bytes_per_s(bench: Bench) -> float:
    x = torch.empty(2**30, dtype=torch.uint8, device=bench.device)
    y = torch.empty_like(x)
    return 2 * x.numel() / statistics.median(bench.seconds(lambda: y.copy_(x)))


def _peak_bytes(run: Callable[[], object], device: torch.device) -> int:
    """How much more memory than before `run` holds at its peak."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    ctypes.CDLL(None).malloc_trim(0)  # what is free but kept would hide what `run` takes
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # Linux: forget the peak
    before = _status_bytes("VmRSS")
    run()
    return _status_bytes("VmHWM") - before


def _status_bytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":"))


def _machine(device: torch.device) -> dict[str, str | int]:
    on_gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name() if on_gpu else platform.processor() or platform.machine(),
        "figures_from": "GPU" if on_gpu else "CPU",
        "threads": torch.get_num_threads(),
        "huge_pages": os.environ.get("THP_MEM_ALLOC_ENABLE", "0"),
        "keeps_freed_memory": str("MALLOC_TRIM_THRESHOLD_" in os.environ),
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "none",
        "triton": version("triton"),
        "fla-core": version("fla-core") if importlib.util.find_spec("fla") else "none",
        "python": platform.python_version(),
    }


def _plot(bench: Bench, title: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for name in dict.fromkeys(timing.op for timing in bench.timings):
        found = sorted((x.shape.rows_per_user, x.ns_per_row) for x in bench.timings if x.op == name)
        axes.plot(*zip(*found, strict=True), "o-", label=name)
    axes.set(xscale="log", yscale="log", xlabel="rows per user", ylabel="ns per row, forward + backward")
    axes.set_title(title, fontsize=9)
    axes.legend()
    for suffix in ("svg", "png"):
        figure.savefig(OUT / f"{bench.device.type}.{suffix}", dpi=150)


def run(ops: dict[str, Op], not_run: list[str], device: torch.device) -> int:
    """0, or 1 after a red gate, behind which nothing is timed."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    report: dict[str, Any] = {"machine": _machine(device), "not_run": not_run}
    print(f"{report['machine']}\nnot run: {not_run or 'nothing'}", flush=True)
    report["gate"] = gate(ops, dtype, device)
    if not all(error <= row["limit"] for row in report["gate"] for error in row["errors"]):
        print("the gate is red: no speed is measured")
        return 1
    bench = Bench(ops, dtype, device)
    (gpu_cases if device.type == "cuda" else cpu_cases)(bench)
    print(*bench.verdicts, sep="\n")
    report["timings"] = [asdict(x) | {"ns_per_row": x.ns_per_row} for x in bench.timings]
    report["verdicts"] = [asdict(x) for x in bench.verdicts]
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / f"{device.type}.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    print(f"written: {OUT}/{device.type}.json, then .svg and .png")
    _plot(bench, ", ".join(f"{name} {value}" for name, value in report["machine"].items()))
    return 0


def main() -> int:
    if sys.argv[1:] not in (["cpu"], ["cuda"]):
        print(f"python -m kernels.bench {' '.join(sys.argv[1:])}: say one of cpu and cuda")
        return 2
    device = torch.device(sys.argv[1])
    if device.type == "cuda" and not torch.cuda.is_available():
        print(f"torch {torch.__version__} finds no GPU: run it on one, or `python -m kernels.bench cpu`")
        return 2
    return run(*peers(device), device)


if __name__ == "__main__":
    sys.exit(main())
