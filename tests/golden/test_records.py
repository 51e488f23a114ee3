"""Golden bytes of the record: what was written once must be readable for ever.

`make golden` (VISTA_GOLDEN=write) rewrites them; docs/FORMAT.md quotes them and must then follow.
"""

import os
from dataclasses import replace
from pathlib import Path

import pytest
from delivery_samples import golden_records

from vista.errors import RecordError
from vista.summary.record import decode, encode, inspect

GOLDEN = Path(__file__).parent / "records"
FORMAT = Path(__file__).parents[2] / "docs" / "FORMAT.md"


@pytest.fixture(params=golden_records())
def name(request: pytest.FixtureRequest) -> str:
    if os.environ.get("VISTA_GOLDEN") == "write":
        GOLDEN.mkdir(exist_ok=True)
        (GOLDEN / f"{request.param}.bin").write_bytes(encode(golden_records()[request.param]))
    return str(request.param)


def test_golden_bytes_are_read_and_written_as_ever(name: str) -> None:
    record = golden_records()[name]
    data = (GOLDEN / f"{name}.bin").read_bytes()
    assert replace(decode(data), crc=0, raw_bytes=0) == record
    if not record.zstd:  # another zstd release may compress otherwise; any frame must be readable
        assert encode(record) == data


def test_the_format_document_quotes_the_golden_bytes(name: str) -> None:
    text = FORMAT.read_text(encoding="utf-8")
    data = (GOLDEN / f"{name}.bin").read_bytes()
    rows = [data[start : start + 16].hex(" ") for start in range(0, len(data), 16)]
    assert f"`{name}.bin`" in text
    assert "\n".join(rows) in text


def test_every_single_bit_flip_is_caught(name: str) -> None:
    data = (GOLDEN / f"{name}.bin").read_bytes()
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(RecordError):
            inspect(bytes(flipped))
