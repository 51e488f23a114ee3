"""Quantised summaries: bf16, and int8 with one fp16 scale per seed. docs/FORMAT.md states their errors.

Shape suffixes: B users, S seeds, D width, P payload bytes.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vista.errors import InputError, RecordError
from vista.summary.record import Codec, Record, decode, encode, payload_bytes

CODECS: dict[str, Codec] = {"bf16": Codec.BF16, "int8": Codec.INT8}
"""Names as in `DeliveryConfig.codec`."""

_INT8_MAX = 127


def codec_of(name: str) -> Codec:
    """The codec called `name`. Raises `InputError` with the known names."""
    if name not in CODECS:
        raise InputError(f"codec {name!r} does not exist: choose one of {', '.join(CODECS)}")
    return CODECS[name]


def quantise(summary_BSD: NDArray[np.float32], codec: Codec) -> NDArray[np.uint8]:
    """Payloads as rows of bytes [B, P]. Raises `InputError` for nan, infinity or too large values."""
    users, seeds, width = summary_BSD.shape
    finite_B = np.isfinite(summary_BSD).all(axis=(1, 2))
    if not finite_B.all():
        raise InputError(
            f"the summary of row {int(np.argmin(finite_B))} holds nan or infinity: the model has diverged; "
            "lower its learning rate or go back to an earlier checkpoint"
        )
    summary_BSD = np.ascontiguousarray(summary_BSD, dtype=np.float32)
    if codec is Codec.BF16:
        payload_BP = _bf16(summary_BSD).astype("<u2").reshape(users, seeds * width).view(np.uint8)
    else:
        scale_BS, body_BSD = _int8(summary_BSD)
        scale_BP = scale_BS.astype("<f2").view(np.uint8).reshape(users, 2 * seeds)
        payload_BP = np.concatenate([scale_BP, body_BSD.view(np.uint8).reshape(users, seeds * width)], axis=1)
    assert payload_BP.shape == (users, payload_bytes(codec, seeds, width))
    return payload_BP


def dequantise(
    payloads: Sequence[bytes] | NDArray[np.uint8], codec: Codec, seeds: int, width: int
) -> NDArray[np.float32]:
    """Summaries [B, S, D] from payloads: bytes each, or rows of a [B, P] array. Raises `RecordError`."""
    length = payload_bytes(codec, seeds, width)
    if isinstance(payloads, np.ndarray):
        payload_BP = payloads
    else:
        if any(len(payload) != length for payload in payloads):
            raise RecordError(f"a payload has not the {length} bytes of {codec.name} {seeds} x {width}")
        payload_BP = np.frombuffer(b"".join(payloads), np.uint8).reshape(len(payloads), length)
    users = len(payload_BP)
    if codec is Codec.BF16:
        bits_BP = np.ascontiguousarray(payload_BP).view("<u2").astype(np.uint32) << 16
        return bits_BP.view(np.float32).reshape(users, seeds, width)
    scale_BS = np.ascontiguousarray(payload_BP[:, : 2 * seeds]).view("<f2").astype(np.float32)
    body_BSD = np.ascontiguousarray(payload_BP[:, 2 * seeds :]).view(np.int8).reshape(users, seeds, width)
    summary_BSD: NDArray[np.float32] = body_BSD.astype(np.float32) * scale_BS[:, :, None]
    return summary_BSD


def encode_summaries(
    summary_BSD: NDArray[np.float32],
    *,
    space_id: int,
    epoch: int,
    as_of_us: int,
    user_id_B: NDArray[np.int64],
    seq_B: NDArray[np.int64],
    event_time_us_B: NDArray[np.int64],
    codec: Codec,
    zstd: bool,
) -> list[bytes]:
    """The records of B users of one epoch."""
    payload_BP = quantise(summary_BSD, codec)
    seeds, width = summary_BSD.shape[1:]
    return [
        encode(
            Record(
                space_id=space_id,
                epoch=epoch,
                as_of_us=as_of_us,
                user_id=user,
                seq=seq,
                event_time_us=time,
                codec=codec,
                seeds=seeds,
                width=width,
                zstd=zstd,
                payload=payload.tobytes(),
            )
        )
        for user, seq, time, payload in zip(
            user_id_B.tolist(), seq_B.tolist(), event_time_us_B.tolist(), payload_BP, strict=True
        )
    ]


def decode_summary(data: bytes) -> tuple[Record, NDArray[np.float32]]:
    """One record and its summary [S, D]. Raises `RecordError`."""
    record = decode(data)
    if record.codec is Codec.NONE:
        raise RecordError(f"the record of user {record.user_id} holds no summary")
    return record, dequantise([record.payload], record.codec, record.seeds, record.width)[0]


def _bf16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The upper half of a float32, rounded to nearest, ties to even."""
    bits = values.view(np.uint32)
    rounded = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
    if ((rounded & 0x7F80) == 0x7F80).any():
        raise InputError(f"a summary holds {np.abs(values).max():.3g}: bf16 ends at 3.39e+38")
    return rounded


def _int8(summary_BSD: NDArray[np.float32]) -> tuple[NDArray[np.float16], NDArray[np.int8]]:
    """Scales, rounded up so that no value is clipped, and bodies, rounded to nearest, ties to even."""
    exact_BS = np.abs(summary_BSD).max(axis=2, initial=0.0).astype(np.float64) / _INT8_MAX
    if (exact_BS > np.finfo(np.float16).max).any():
        raise InputError(f"a summary holds {exact_BS.max() * _INT8_MAX:.3g}: int8 ends at 8.3e+06; use bf16")
    nearest_BS = exact_BS.astype(np.float16)
    with np.errstate(over="ignore"):  # the neighbour of the largest is not taken
        up_BS = np.nextafter(nearest_BS, np.float16(np.inf))
    scale_BS = np.where(nearest_BS.astype(np.float64) < exact_BS, up_BS, nearest_BS)
    divisor_BS = np.where(scale_BS == 0, 1, scale_BS).astype(np.float32)  # a row of zeros stays zeros
    return scale_BS, np.rint(summary_BSD / divisor_BS[:, :, None]).astype(np.int8)
