"""The bytes of one user's state: a 64-byte header, then float64 numbers. See docs/FORMAT.md.

The table holds them beside the records, if the summaries can follow their users event by event. A state
belongs to one (space, epoch), as a record does: to the checkpoint that the epoch names.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import google_crc32c
import numpy as np
import torch
from numpy.typing import NDArray

from vista.errors import RecordError, SpaceMismatchError
from vista.model.incremental import SummaryState

MAGIC = b"VSTZ"
VERSION = 1
HEADER_BYTES = 64

_HEADER = struct.Struct("<4sBBHHHQIQqqdII")
_CRC_AT = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class StateHeader:
    """What a state says about itself; `shape` is (heads, width of keys, width of values)."""

    space_id: int
    epoch: int
    user_id: int
    seq: int
    event_time_us: int
    weight: float
    actions: int
    shape: tuple[int, int, int]

    @property
    def numbers(self) -> int:
        heads, keys, values = self.shape
        return self.actions + heads * keys * values


def encode_states(
    state: SummaryState, *, space_id: int, epoch: int, user_id_B: NDArray[np.int64]
) -> list[bytes]:
    """The states of B users of one epoch."""
    actions, shape = state.actions_BA.shape[1], state.kv_BHDE.shape[1:]
    body_BN = torch.cat([state.actions_BA, state.kv_BHDE.flatten(1)], dim=1).numpy().astype("<f8")
    seqs, times, weights = state.seq_B.tolist(), state.event_time_us_B.tolist(), state.weight_B.tolist()
    states = []
    for user, seq, time_us, weight, body in zip(
        user_id_B.tolist(), seqs, times, weights, body_BN, strict=True
    ):
        header = _HEADER.pack(
            MAGIC, VERSION, actions, *shape, space_id, epoch, seq + 1, user, time_us, weight,
            body.nbytes, 0,
        )  # fmt: skip
        crc = _crc(header[:_CRC_AT], body.tobytes())
        states.append(header[:_CRC_AT] + crc.to_bytes(4, "little") + body.tobytes())
    return states


def inspect_state(data: bytes) -> StateHeader:
    """The header, after checking every byte. Raises `RecordError`."""
    if len(data) < HEADER_BYTES:
        raise RecordError(f"{len(data)} bytes are no state: the header alone has {HEADER_BYTES}")
    magic, version, actions, *shape, space, epoch, arrivals, user, time_us, weight, body_bytes, crc = (
        _HEADER.unpack_from(data)
    )
    if magic != MAGIC:
        raise RecordError(f"magic {magic!r} is not {MAGIC!r}: these bytes are no state")
    if version != VERSION:
        raise RecordError(f"version {version} is unknown, this reader knows {VERSION}: update the reader")
    found = _crc(data[:_CRC_AT], data[HEADER_BYTES:])
    if found != crc:
        raise RecordError(f"crc32c {found:#010x} is not the header's {crc:#010x}: the bytes were damaged")
    heads, keys, values = shape
    header = StateHeader(
        space_id=space,
        epoch=epoch,
        user_id=user,
        seq=arrivals - 1,
        event_time_us=time_us,
        weight=weight,
        actions=actions,
        shape=(heads, keys, values),
    )
    if not body_bytes == len(data) - HEADER_BYTES == 8 * header.numbers:
        raise RecordError(f"{len(data)} bytes, but the header says {HEADER_BYTES} + 8 x {header.numbers}")
    return header


def decode_states(
    data: Sequence[bytes], *, space_id: int, epoch: int
) -> tuple[list[StateHeader], SummaryState]:
    """The states of one user or more, of the epoch whose checkpoint will follow them. Raises `RecordError`,
    and `SpaceMismatchError` for those of another: to that checkpoint their numbers mean nothing."""
    headers = [inspect_state(one) for one in data]
    for header in headers:
        if (header.space_id, header.epoch) != (space_id, epoch):
            raise SpaceMismatchError(
                f"the state of user {header.user_id} is of space {header.space_id:#018x}, epoch "
                f"{header.epoch}, not of {space_id:#018x}, epoch {epoch}: read those of its epoch"
            )
    shapes = {(header.actions, header.shape) for header in headers}
    if len(shapes) != 1:
        raise RecordError(f"{len(data)} states of {len(shapes)} shapes: a checkpoint's states have one")
    ((actions, shape),) = shapes
    bodies = b"".join(one[HEADER_BYTES:] for one in data)
    body_BN = torch.from_numpy(np.frombuffer(bodies, "<f8").astype(np.float64).reshape(len(data), -1))
    state = SummaryState(
        seq_B=torch.tensor([header.seq for header in headers]),
        event_time_us_B=torch.tensor([header.event_time_us for header in headers]),
        weight_B=torch.tensor([header.weight for header in headers], dtype=torch.float64),
        actions_BA=body_BN[:, :actions],
        kv_BHDE=body_BN[:, actions:].reshape(len(data), *shape),
    )
    return headers, state


def _crc(header: bytes, body: bytes) -> int:
    checksum: int = google_crc32c.extend(google_crc32c.value(header), body)
    return checksum
