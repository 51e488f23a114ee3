"""One binary record for log, store and table: a 64-byte header, then scales and body. See docs/FORMAT.md.

All numbers are little-endian. The checksum covers every other byte, so a vector of the wrong user, space or
epoch cannot pass for the right one.
"""

import enum
import hashlib
import struct
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import TypeVar

import google_crc32c
import zstandard

from vista.errors import RecordError

MAGIC = b"VSTA"
VERSION = 1
HEADER_BYTES = 64
MAX_CONTROL_BYTES = 65_536
NO_SEQ = -1
"""`seq` of a summary that has folded in no event."""

_HEADER = struct.Struct("<4sBBBBHHQIQqqqII")
_FLAGS_AT = 5
_CRC_AT = 60
_TOMBSTONE, _ZSTD, _CONTROL = 1, 2, 4
_ZSTD_LEVEL = 1
_E = TypeVar("_E", bound=enum.IntEnum)


class Codec(enum.IntEnum):
    """How the body is written. NONE: control records and tombstones, which hold no vectors."""

    NONE = 0
    BF16 = 1
    INT8 = 2


class Control(enum.IntEnum):
    """What a control record says. Its payload is JSON in UTF-8."""

    NONE = 0
    BARRIER = 1  # every summary of (space, epoch) of this partition lies before
    RELEASE = 2  # this release serves from here on
    RETIRE = 3  # this epoch of the space and every earlier one is gone


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What a record says about itself; `crc` is 0 until it has been encoded."""

    space_id: int
    epoch: int
    user_id: int = 0
    seq: int = NO_SEQ
    event_time_us: int = -1  # newest event included, -1 for none
    as_of_us: int = 0
    codec: Codec = Codec.NONE
    seeds: int = 0
    width: int = 0
    tombstone: bool = False
    zstd: bool = False
    control: Control = Control.NONE
    raw_bytes: int = 0
    crc: int = 0

    @property
    def order(self) -> tuple[int, bool, int]:
        """Of two records with one key the larger order wins, in whatever order they arrive."""
        return self.seq, self.tombstone, self.crc


@dataclass(frozen=True, slots=True, kw_only=True)
class Record(Header):
    """A header and its payload, not compressed."""

    payload: bytes = b""


def space_id(space: str) -> int:
    """A space's name as u64: the first eight bytes of its SHA-256, little-endian.

    >>> hex(space_id("generated-0a1b2c"))
    '0xa16d3cb241ddd025'
    """
    return int.from_bytes(hashlib.sha256(space.encode()).digest()[:8], "little")


def user_digest(user_id: int) -> int:
    """A user's share of `keys_digest`: the first eight bytes, little-endian, of the SHA-256 of the id as a
    little-endian int64.

    >>> hex(user_digest(42))
    '0xc6f218bc089104ed'
    """
    return int.from_bytes(hashlib.sha256(user_id.to_bytes(8, "little", signed=True)).digest()[:8], "little")


def keys_digest(user_ids: Iterable[int]) -> str:
    """A set of users as 16 hex digits: the sum of their digests modulo 2^64, so that a store keeps it up to
    date as users come.

    >>> keys_digest([]), keys_digest([42])
    ('0000000000000000', 'c6f218bc089104ed')
    """
    return digest_text(sum(map(user_digest, user_ids)))


def digest_text(total: int) -> str:
    """`keys_digest` of the users whose digests have this sum."""
    return f"{total % 2**64:016x}"


def payload_bytes(codec: Codec, seeds: int, width: int) -> int:
    """Length of the payload of a summary, before compression.

    >>> payload_bytes(Codec.INT8, 128, 256), payload_bytes(Codec.BF16, 128, 256)
    (33024, 65536)
    """
    return {Codec.NONE: 0, Codec.BF16: 2 * seeds * width, Codec.INT8: 2 * seeds + seeds * width}[codec]


def encode(record: Record) -> bytes:
    """The bytes of a record. With `zstd` the payload is compressed, unless that would make it longer.

    Raises `RecordError` if the payload's length does not fit codec, seeds and width, or a number its field.
    """
    _check_lengths(record, len(record.payload))
    body, flags = record.payload, _TOMBSTONE * record.tombstone | _CONTROL * bool(record.control)
    if record.zstd:
        compressed = zstandard.ZstdCompressor(level=_ZSTD_LEVEL, write_content_size=True).compress(body)
        if len(compressed) < len(body):
            body, flags = compressed, flags | _ZSTD
    try:
        header = _HEADER.pack(
            MAGIC, VERSION, flags, record.codec, record.control, record.seeds, record.width,
            record.space_id, record.epoch, record.seq + 1, record.user_id, record.event_time_us,
            record.as_of_us, len(record.payload), 0,
        )  # fmt: skip
    except struct.error as error:
        raise RecordError(f"user {record.user_id}: a header field is out of range ({error})") from error
    crc = _crc(header, body)
    return header[:_CRC_AT] + crc.to_bytes(4, "little") + body


def inspect(data: bytes) -> Header:
    """The header, after checking everything but the compressed bytes' content. Raises `RecordError`."""
    if len(data) < HEADER_BYTES:
        raise RecordError(f"{len(data)} bytes are no record: the header alone has {HEADER_BYTES}")
    (
        magic, version, flags, codec, control, seeds, width, space, epoch, arrivals, user, event, as_of,
        raw, crc,
    ) = _HEADER.unpack_from(data)  # fmt: skip
    if magic != MAGIC:
        raise RecordError(f"magic {magic!r} is not {MAGIC!r}: these bytes are no record")
    if version != VERSION:
        raise RecordError(f"version {version} is unknown, this reader knows {VERSION}: update the reader")
    found = _crc(data[:HEADER_BYTES], memoryview(data)[HEADER_BYTES:])
    if found != crc:
        raise RecordError(f"crc32c {found:#010x} is not the header's {crc:#010x}: the bytes were damaged")
    header = Header(
        space_id=space, epoch=epoch, user_id=user, seq=arrivals - 1, event_time_us=event, as_of_us=as_of,
        codec=_known(Codec, codec), seeds=seeds, width=width, tombstone=bool(flags & _TOMBSTONE),
        zstd=bool(flags & _ZSTD), control=_known(Control, control), raw_bytes=raw, crc=crc,
    )  # fmt: skip
    if flags & ~(_TOMBSTONE | _ZSTD | _CONTROL) or bool(flags & _CONTROL) != bool(header.control):
        raise RecordError(f"flags {flags:#04x} with control {control} are unknown: update the reader")
    _check_lengths(header, raw)
    if not header.zstd and len(data) != HEADER_BYTES + raw:
        raise RecordError(f"{len(data)} bytes, but the header says {HEADER_BYTES + raw}")
    return header


def is_tombstone(data: bytes) -> bool:
    """Whether these bytes, a record that was inspected before, are a tombstone."""
    return bool(data[_FLAGS_AT] & _TOMBSTONE)


def decode(data: bytes) -> Record:
    """The record of these bytes. Raises `RecordError`."""
    header = inspect(data)
    body = data[HEADER_BYTES:]
    if header.zstd:
        body = _decompress(body, header.raw_bytes)
    values = {field.name: getattr(header, field.name) for field in fields(Header)}
    return Record(**values, payload=body)


def renewed(data: bytes, *, epoch: int, as_of_us: int, seq: int, event_time_us: int) -> bytes:
    """The same summary as the record of another epoch: the header written anew, the body byte for byte.

    Raises `RecordError` for bytes that are no record.
    """
    inspect(data)
    *first, _, _, user, _, _, raw_bytes, _ = _HEADER.unpack_from(data)
    header = _HEADER.pack(*first, epoch, seq + 1, user, event_time_us, as_of_us, raw_bytes, 0)
    body = data[HEADER_BYTES:]
    return header[:_CRC_AT] + _crc(header, body).to_bytes(4, "little") + body


def _decompress(body: bytes, raw_bytes: int) -> bytes:
    try:
        if zstandard.frame_content_size(body) != raw_bytes:  # checked first: it bounds what is allocated
            raise RecordError(f"the compressed frame does not hold the header's {raw_bytes} bytes")
        raw: bytes = zstandard.ZstdDecompressor().decompress(body)
    except zstandard.ZstdError as error:
        raise RecordError(f"the payload is no zstd frame: {error}") from error
    if len(raw) != raw_bytes:
        raise RecordError(f"the compressed frame holds {len(raw)} bytes, the header says {raw_bytes}")
    return raw


def _check_lengths(header: Header, raw_bytes: int) -> None:
    if header.control:
        if raw_bytes > MAX_CONTROL_BYTES:
            raise RecordError(f"control payload of {raw_bytes} bytes: at most {MAX_CONTROL_BYTES}")
        return
    expected = payload_bytes(header.codec, header.seeds, header.width)
    if raw_bytes != expected or bool(expected) == header.tombstone:
        raise RecordError(
            f"payload of {raw_bytes} bytes for codec {header.codec.name}, {header.seeds} seeds of width "
            f"{header.width}{', tombstone' * header.tombstone}: {expected} expected"
        )


def _known(kind: type[_E], value: int) -> _E:
    try:
        return kind(value)
    except ValueError as error:
        raise RecordError(f"{kind.__name__.lower()} {value} is unknown: update the reader") from error


def _crc(header: bytes, body: bytes | memoryview) -> int:
    checksum: int = google_crc32c.extend(google_crc32c.value(header[:_CRC_AT]), bytes(body))
    return checksum
