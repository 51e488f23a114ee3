"""The binary record: golden bytes, and every way in which bytes can be wrong."""

import struct
from dataclasses import replace

import google_crc32c
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from must_hold import Found

from vista.errors import RecordError
from vista.summary.record import (
    HEADER_BYTES,
    Codec,
    Control,
    Header,
    Record,
    decode,
    digest_text,
    encode,
    inspect,
    keys_digest,
    payload_bytes,
    space_id,
    user_digest,
)

I64 = st.integers(-(2**63), 2**63 - 1)


def tombstone() -> Record:
    return Record(space_id=1, epoch=1, user_id=1, tombstone=True)


def summary(**changes: object) -> Record:
    values = {
        "space_id": space_id("s"), "epoch": 3, "user_id": -5, "seq": 41, "event_time_us": 1, "as_of_us": 2,
        "codec": Codec.BF16, "seeds": 2, "width": 3, "payload": bytes(range(12)),
    } | changes  # fmt: skip
    return Record(**values)  # type: ignore[arg-type]


def resealed(data: bytes, at: int, field: str, value: int) -> bytes:
    """The bytes with one header field changed and the checksum made right again."""
    changed = bytearray(data)
    struct.pack_into(field, changed, at, value)
    crc = google_crc32c.extend(google_crc32c.value(bytes(changed[:60])), bytes(changed[64:]))
    struct.pack_into("<I", changed, 60, crc)
    return bytes(changed)


@pytest.mark.must_hold(12)
def test_bit_flips_of_full_size_records_are_caught(found: Found) -> None:
    """10,000 of the 246,000 bits of a 128 x 256 record, seeded."""
    values = np.random.default_rng(0).integers(0, 256, payload_bytes(Codec.INT8, 128, 256), np.uint8)
    data = bytearray(
        encode(summary(codec=Codec.INT8, seeds=128, width=256, payload=values.tobytes(), zstd=True))
    )
    for bit in np.random.default_rng(1).choice(8 * len(data), 10_000, replace=False).tolist():
        data[bit // 8] ^= 1 << bit % 8
        with pytest.raises(RecordError):
            inspect(bytes(data))
        data[bit // 8] ^= 1 << bit % 8
        found.rounds += 1
    inspect(bytes(data))


@given(
    space=st.integers(0, 2**64 - 1), epoch=st.integers(0, 2**32 - 1), user=I64, seq=st.integers(-1, 2**62),
    event=I64, as_of=I64,
    payload=st.binary(min_size=12, max_size=12), zstd=st.booleans(),
)  # fmt: skip
def test_what_is_encoded_is_decoded(
    space: int, epoch: int, user: int, seq: int, event: int, as_of: int, payload: bytes, zstd: bool
) -> None:
    record = summary(
        space_id=space, epoch=epoch, user_id=user, seq=seq, event_time_us=event, as_of_us=as_of,
        payload=payload, zstd=zstd,
    )  # fmt: skip
    data = encode(record)
    found = decode(data)
    assert replace(found, crc=0, raw_bytes=0, zstd=zstd) == record
    assert inspect(data) == Header(**{name: getattr(found, name) for name in Header.__dataclass_fields__})


def test_a_payload_that_does_not_shrink_is_not_compressed() -> None:
    noise = np.random.default_rng(0).integers(0, 256, 12, np.uint8).tobytes()
    assert not inspect(encode(summary(payload=noise, zstd=True))).zstd
    zeros = summary(seeds=16, width=32, payload=bytes(1_024), zstd=True)
    assert inspect(encode(zeros)).zstd
    assert len(encode(zeros)) < 128
    assert decode(encode(zeros)).payload == bytes(1_024)


def test_order_is_seq_then_tombstone_then_crc() -> None:
    base = Header(space_id=1, epoch=1)
    rising = [
        replace(base, seq=-1, crc=9),
        replace(base, seq=0, crc=1),
        replace(base, seq=0, crc=2),
        replace(base, seq=0, tombstone=True, crc=0),
        replace(base, seq=1, crc=0),
    ]
    assert sorted(rising, key=lambda header: header.order) == rising


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "0 bytes are no record"),
        (encode(summary())[:63], "63 bytes are no record"),
        (b"NOPE" + encode(summary())[4:], "magic b'NOPE'"),
        (encode(summary()) + b"x", "crc32c"),
        (encode(summary())[:-1], "crc32c"),
        (resealed(encode(summary()), 4, "<B", 2), "version 2 is unknown"),
        (resealed(encode(summary()), 5, "<B", 8), "flags 0x08"),
        (resealed(encode(summary()), 5, "<B", 4), "flags 0x04 with control 0"),
        (resealed(encode(summary()), 7, "<B", 1), "flags 0x00 with control 1"),
        (resealed(encode(summary()), 6, "<B", 9), "codec 9 is unknown"),
        (resealed(encode(summary()), 7, "<B", 9), "control 9 is unknown"),
        (resealed(encode(summary()), 8, "<H", 3), "payload of 12 bytes for codec BF16, 3 seeds of width 3"),
        (resealed(encode(summary()), 56, "<I", 13), "payload of 13 bytes"),
        (resealed(encode(summary()), 5, "<B", 1), "tombstone: 12 expected"),
        (resealed(encode(tombstone()), 5, "<B", 0), "payload of 0 bytes for codec NONE"),
        (resealed(encode(summary(seeds=2, payload=bytes(12))) + b"more", 4, "<B", 1), "80 bytes, but"),
    ],
)  # fmt: skip
def test_wrong_bytes_are_refused_with_a_reason(data: bytes, message: str) -> None:
    with pytest.raises(RecordError, match=message):
        inspect(data)


def test_a_compressed_payload_of_another_length_is_refused_before_it_is_unpacked() -> None:
    small, large = (summary(seeds=seeds, payload=bytes(6 * seeds), zstd=True) for seeds in (50, 10_000))
    forged = resealed(encode(small)[:HEADER_BYTES] + encode(large)[HEADER_BYTES:], 4, "<B", 1)
    inspect(forged)
    with pytest.raises(RecordError, match="does not hold the header's 300 bytes"):
        decode(forged)
    no_frame = resealed(encode(small)[:HEADER_BYTES] + b"no frame at all", 4, "<B", 1)
    with pytest.raises(RecordError, match="zstd"):
        decode(no_frame)


@pytest.mark.parametrize(
    "changes",
    [{"epoch": 2**32}, {"epoch": -1}, {"seq": -2}, {"user_id": 2**63}, {"space_id": 2**64},
     {"payload": b"short"}, {"tombstone": True}, {"codec": Codec.NONE, "payload": b""}],
)  # fmt: skip
def test_a_record_that_does_not_fit_is_not_written(changes: dict[str, object]) -> None:
    with pytest.raises(RecordError):
        encode(summary(**changes))


def test_a_control_record_may_hold_64_kib() -> None:
    largest = Record(space_id=1, epoch=1, control=Control.RELEASE, payload=b"x" * 65_536)
    assert decode(encode(largest)).payload == largest.payload
    with pytest.raises(RecordError, match="at most 65536"):
        encode(replace(largest, payload=b"x" * 65_537))


def test_a_set_of_users_has_one_digest() -> None:
    assert keys_digest([3, -1, 2]) == keys_digest(iter([2, 3, -1])) != keys_digest([3, 2])
    assert keys_digest([]) == "0" * 16
    assert keys_digest(range(-500, 500)) != keys_digest(range(-501, 499))
    total = sum(user_digest(user) for user in (3, -1)) + user_digest(2)
    assert digest_text(total) == keys_digest([3, -1, 2]), "a store adds users one by one"
