"""The bytes that the Triton kernels move, counted in the interpreter: the op is bound by memory."""

import pytest
import torch
from triton.runtime import interpreter

from kernels import triton_qla
from kernels.triton_qla import CHUNK_ROWS

ROWS, WIDTH = 2 * CHUNK_ROWS, 64
SLACK = 1.05
"""States and the candidates' own term come on top of the passes over the tensors: at most a twentieth."""


class Traffic:
    """Bytes that loads and stores of the interpreter move while it is installed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.moved_bytes = 0
        builder = interpreter.interpreter_builder
        load, store = builder.create_masked_load, builder.create_masked_store

        def counted_load(pointers, mask, *rest):  # type: ignore[no-untyped-def]
            self.moved_bytes += int(mask.data.sum()) * pointers.get_element_ty().primitive_bitwidth // 8
            return load(pointers, mask, *rest)

        def counted_store(pointers, value, mask, *rest):  # type: ignore[no-untyped-def]
            self.moved_bytes += int(mask.data.sum()) * pointers.get_element_ty().primitive_bitwidth // 8
            return store(pointers, value, mask, *rest)

        monkeypatch.setattr(builder, "create_masked_load", counted_load)
        monkeypatch.setattr(builder, "create_masked_store", counted_store)


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU the bench measures the time instead")
def test_forward_moves_four_tensors_and_backward_seven(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v, d_out = (torch.randn(ROWS, 1, WIDTH, dtype=torch.float16) for _ in range(4))
    ragged = torch.tensor([0, ROWS]), torch.tensor([8])
    one_pass_bytes = ROWS * WIDTH * q.element_size()
    traffic = Traffic(monkeypatch)
    _, state = triton_qla.forward(q, k, v, *ragged, "silu", "silu")
    assert 4 * one_pass_bytes <= traffic.moved_bytes <= 4 * one_pass_bytes * SLACK
    traffic.moved_bytes = 0
    triton_qla.backward(d_out, q, k, v, state, *ragged, "silu", "silu")
    assert 7 * one_pass_bytes <= traffic.moved_bytes <= 7 * one_pass_bytes * SLACK
