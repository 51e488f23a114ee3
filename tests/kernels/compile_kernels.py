"""Compile the Triton kernels for a chip that need not be here: python compile_kernels.py sm_90 prints JSON.

A program of its own, since in the tests' process triton may be its interpreter.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kernels import triton_kernels
from kernels.triton_qla import CHUNK_ROWS, PARTS, TILE, block_rows

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
INDICES = ("offsets", "candidates", "chunk_user", "first_chunk", "first_part")
STATES = ("kv", "parts", "g")


def cases(target: str) -> Iterator[dict[str, Any]]:
    """Every kernel and type at width 64; for one chip other widths (8 is padded), stages and a phi too."""
    for name in ("state", "output", "query_backward", "source_backward"):
        kernel = getattr(triton_kernels, f"{name}_kernel")
        for dtype in TYPES:
            yield {"kernel": name, "dtype": dtype, "width": 64, "stages": kernel.configs[0].num_stages}
        if target == "sm_90":
            for config in kernel.configs[1:]:
                yield {"kernel": name, "dtype": "bf16", "width": 64, "stages": config.num_stages}
            usual = {"kernel": name, "dtype": "bf16", "stages": kernel.configs[0].num_stages}
            for width in (8, 16, 128):
                yield usual | {"width": width}
            yield usual | {"width": 64, "phi": "shifted_elu"}  # the others are parts of these two
            if "ZERO_CANDIDATES" in kernel.fn.arg_names:
                yield usual | {"width": 64, "zero_candidates": False}
    for backward in (True, False):
        yield {"kernel": "reduce", "dtype": "fp32", "width": 64, "stages": 3, "backward": backward}


def compiled(target: GPUTarget, case: dict[str, Any]) -> Any:
    kernel = getattr(triton_kernels, f"{case['kernel']}_kernel")
    function = kernel.fn if case["kernel"] != "reduce" else kernel
    warps = triton_kernels.THREADS // target.warp_size if case["kernel"] != "reduce" else 4
    width, dtype, phi = case["width"], case["dtype"], case.get("phi", "silu")
    padded = max(16, width)
    constants = {
        "H": 4, "D": width, "DP": padded, "E": width, "EP": padded, "CHUNK": CHUNK_ROWS,
        "BLOCK": block_rows(TYPES[dtype], padded), "PHI": phi, "PHI_OUT": phi,
        "TANH": dtype != "fp32" and target.backend == "cuda",
        "ZERO_CANDIDATES": case.get("zero_candidates", True), "STATE": width * width,
        "PARTS": PARTS, "TILE": TILE, "BACKWARD": case.get("backward", True),
    }  # fmt: skip
    signature, aligned = {}, {}
    for position, name in enumerate(function.arg_names):
        if name in constants:
            signature[name] = "constexpr"
        elif name == "users":
            signature[name] = "i32"
        else:  # pointers, and strides of rows and heads: all multiples of 16, but for heads of 8
            pointer = "*i64" if name in INDICES else "*fp32" if name in STATES else f"*{dtype}"
            signature[name] = "i32" if name.endswith(("_row", "_head")) else pointer
            if width % 16 == 0 or not name.endswith("_head"):
                aligned[(position,)] = [["tt.divisibility", 16]]
    used = {name: value for name, value in constants.items() if name in function.arg_names}
    source = ASTSource(function, signature, used, aligned)
    return triton.compile(source, target=target, options={"num_warps": warps, "num_stages": case["stages"]})


def resources(target: GPUTarget, binary: Any) -> dict[str, int]:
    """Bytes of shared memory, what spills to local memory, and instructions of note."""
    found = {"shared_bytes": binary.metadata.shared}
    if target.backend == "hip":
        code = binary.asm["amdgcn"]
        spilled = [
            int(n) for n in re.findall(r"\.(?:[sv]gpr_spill_count|private_segment_fixed_size):\s+(\d+)", code)
        ]
        return found | {"spilled": max(spilled), "matrix_instructions": code.count("v_mfma")}
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        cuobjdump = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        usage = subprocess.run(
            [cuobjdump, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    sizes = {name: int(size) for name, size in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    code = binary.asm["ptx"]
    names = ("wgmma.mma_async", "tcgen05.mma", "mma.sync", "cp.async.cg")
    instructions = {name: code.count(name) for name in names}
    return found | {"registers": sizes["REG"], "spilled": sizes["STACK"] + sizes["LOCAL"], **instructions}


def main() -> None:
    target = TARGETS[sys.argv[1]]
    rows = [case | resources(target, compiled(target, case)) for case in cases(sys.argv[1])]
    sys.stdout.write(json.dumps(rows))


if __name__ == "__main__":
    main()
