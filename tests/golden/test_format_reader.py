"""docs/FORMAT.md is enough to write a reader: this one is made of its tables, and reads the bytes it shows.

Nothing of ours is imported. zstd is a format of its own, read by its library.
"""

import hashlib
import json
import re
import struct
from pathlib import Path

import pytest
import zstandard

DOCUMENT = (Path(__file__).parents[2] / "docs" / "FORMAT.md").read_text(encoding="utf-8")
RECORDS, STATES = DOCUMENT.split("# The state of a summary, version 1")
TYPES = {"u8": "B", "u16": "H", "u32": "I", "u64": "Q", "i64": "q", "f64": "d", "bytes": "4s"}

Field = tuple[int, int, str, str, str]
"""Place, length, type, name and meaning."""
Header = dict[str, int]


def fields_of(text: str) -> list[Field]:
    rows = re.findall(r"^\| (\d+) \| (\d+) \| (\w+) \| ([^|]+) \| ([^|]*)\|$", text, re.MULTILINE)
    return [(int(at), int(size), kind, name.strip(), meaning) for at, size, kind, name, meaning in rows]


def shown(name: str) -> bytes:
    """The bytes that the document shows of a golden file."""
    found = re.search(rf"^`{name}\.bin`: .*?\n\n```\n(.*?)```", DOCUMENT, re.MULTILINE | re.DOTALL)
    assert found, name
    return bytes.fromhex(found[1])


def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def header_of(data: bytes, text: str) -> Header:
    """The header, if the checks pass that both formats share."""
    found = {
        name: struct.unpack_from(f"<{TYPES[kind]}", data, at)[0] for at, _, kind, name, _ in fields_of(text)
    }
    (meaning,) = (meaning for *_, name, meaning in fields_of(text) if name == "magic")
    shown_magic = re.search(r"`([0-9a-f ]+)`, ASCII \"(\w+)\"", meaning)
    assert shown_magic
    assert found["magic"] == bytes.fromhex(shown_magic[1]) == shown_magic[2].encode()
    assert found["version"] == 1
    assert found["crc32c"] == crc32c(data[:60] + data[64:])
    return found


def numbered(name: str) -> dict[str, int]:
    """The words of a field whose meaning begins "0 none, 1 ...", and their numbers."""
    (meaning,) = (meaning for *_, field, meaning in fields_of(RECORDS) if field == name)
    return {word: int(number) for number, word in re.findall(r"(\d) (\w+)", meaning.partition(";")[0])}


def payload_of(data: bytes, header: Header) -> bytes:
    payload = data[64:]
    if header["flags"] & numbered("flags")["zstd"]:
        payload = zstandard.ZstdDecompressor().decompress(payload)
    assert len(payload) == header["raw length"]
    return payload


def vectors_of(data: bytes) -> list[list[float]]:
    header = header_of(data, RECORDS)
    payload, seeds, width = payload_of(data, header), header["seeds"], header["width"]
    if header["codec"] == numbered("codec")["int8"]:
        scales = struct.unpack_from(f"<{seeds}e", payload)
        body = struct.unpack_from(f"<{seeds * width}b", payload, 2 * seeds)
        numbers = [scales[at // width] * number for at, number in enumerate(body)]
    else:
        assert header["codec"] == numbered("codec")["bf16"]
        upper = struct.unpack(f"<{seeds * width}H", payload)
        numbers = [struct.unpack("<f", struct.pack("<I", number << 16))[0] for number in upper]
    return [numbers[first : first + width] for first in range(0, len(numbers), width)]


@pytest.mark.parametrize("text", [RECORDS, STATES], ids=["record", "state"])
def test_the_fields_fill_the_header(text: str) -> None:
    end = 0
    for at, size, kind, *_ in fields_of(text):
        assert (at, size) == (end, struct.calcsize(f"<{TYPES[kind]}"))
        end += size
    assert end == 64


COMMON = {
    "space_id": int.from_bytes(hashlib.sha256(b"generated-0a1b2c").digest()[:8], "little"),
    "epoch": 7, "arrivals": 200, "user_id": 42, "event_time_us": 1_699_999_999_000_000,
    "as_of_us": 1_700_000_000_000_000, "flags": 0, "control": 0,
}  # fmt: skip
GONE = {"flags": 1, "codec": 0, "arrivals": 201, "event_time_us": -1, "as_of_us": 0, "raw length": 0}
CONTROL = {"flags": 4, "codec": 0, "user_id": 0, "arrivals": 0, "event_time_us": -1, "as_of_us": 0}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("int8", {"codec": 2, "seeds": 2, "width": 3}),
        ("bf16", {"codec": 1, "seeds": 2, "width": 3}),
        ("int8_zstd", {"codec": 2, "seeds": 2, "width": 32, "flags": 2, "raw length": 68}),
        ("no_events", {"user_id": -42, "arrivals": 0, "event_time_us": -1}),
        ("tombstone", GONE),
        ("barrier", CONTROL | {"control": 1}),
        ("release", CONTROL | {"control": 2}),
        ("retire", CONTROL | {"control": 3}),
    ],
)  # fmt: skip
def test_every_golden_header_says_what_the_document_says(name: str, expected: Header) -> None:
    header = header_of(shown(name), RECORDS)
    assert {field: header[field] for field in COMMON | expected} == COMMON | expected


def test_vectors() -> None:
    """Equal but for what the codec loses: half a step of 1/127 of a row's largest number."""
    for name in ("int8", "no_events", "bf16"):
        first, second = vectors_of(shown(name))
        assert first == pytest.approx([0.5, -0.25, 1.0], abs=0.5 / 127)
        assert second == [0, 0, 0]
    assert vectors_of(shown("bf16"))[0] == [0.5, -0.25, 1.0]
    first, second = vectors_of(shown("int8_zstd"))
    assert first == pytest.approx([0.5] * 32, abs=0.25 / 127)
    assert second == [0] * 32


def test_control_records() -> None:
    payloads = {
        name: json.loads(payload_of(shown(name), header_of(shown(name), RECORDS)))
        for name in ("barrier", "release", "retire")
    }
    assert payloads["barrier"] == payloads["retire"] == {"space": "generated-0a1b2c"}
    (keys,) = re.findall(r"^\| 2 release \| `\{(.*?)\}` \|", DOCUMENT, re.MULTILINE)
    assert payloads["release"].keys() == set(json.loads(f"[{keys}]"))
    assert numbered("control") == {"none": 0, "barrier": 1, "release": 2, "retire": 3}


def test_buckets() -> None:
    assert crc32c(b"123456789") == int(re.findall(r'"123456789" is (0x\w+)', DOCUMENT)[0], 16)
    found = [crc32c(user.to_bytes(8, "little", signed=True)) % 32 for user in (0, 1, -1)]
    assert found == [10, 13, 7]
    assert "with 32 buckets the users 0, 1 and -1 lie in buckets 10, 13 and 7" in " ".join(DOCUMENT.split())


def test_the_state() -> None:
    data = shown("state")
    header = header_of(data, STATES)
    heads, keys, values = header["heads"], header["key width"], header["value width"]
    assert (header["user_id"], header["arrivals"], header["weight"], header["epoch"]) == (42, 200, 200.0, 7)
    assert (header["actions"], heads, keys, values) == (2, 1, 2, 3)
    assert header["body length"] == len(data) - 64 == 8 * (2 + heads * keys * values)
    assert struct.unpack_from("<8d", data, 64) == (120, 3, 0.5, -0.25, 1, 0, 1.5, -2)
