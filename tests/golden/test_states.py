"""Golden bytes of the state: what was written once must be readable for ever.

`make golden` (VISTA_GOLDEN=write) rewrites them; docs/FORMAT.md quotes them and must then follow.
"""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from model_batches import golden_state

from vista.errors import RecordError
from vista.summary.record import space_id
from vista.summary.state import decode_states, encode_states, inspect_state

GOLDEN = Path(__file__).parent / "state.bin"
FORMAT = Path(__file__).parents[2] / "docs" / "FORMAT.md"


def encoded() -> bytes:
    space = space_id("generated-0a1b2c")
    (data,) = encode_states(golden_state(), space_id=space, epoch=7, user_id_B=np.array([42]))
    return data


@pytest.fixture
def data() -> bytes:
    if os.environ.get("VISTA_GOLDEN") == "write":
        GOLDEN.write_bytes(encoded())
    return GOLDEN.read_bytes()


def test_golden_bytes_are_read_and_written_as_ever(data: bytes) -> None:
    assert encoded() == data
    _, state = decode_states([data], space_id=space_id("generated-0a1b2c"), epoch=7)
    assert torch.equal(state.kv_BHDE, golden_state().kv_BHDE)


def test_the_format_document_quotes_the_golden_bytes(data: bytes) -> None:
    rows = [data[start : start + 16].hex(" ") for start in range(0, len(data), 16)]
    assert "\n".join(rows) in FORMAT.read_text(encoding="utf-8")


def test_every_single_bit_flip_is_caught(data: bytes) -> None:
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(RecordError):
            inspect_state(bytes(flipped))
