"""Control records: barrier, release and retirement, in the log between the summaries."""

import json

from vista.delivery.interfaces import Release
from vista.errors import RecordError
from vista.summary.record import Control, Header, Record, encode, inspect, space_id


def header_of(data: bytes) -> Header | None:
    """The header of a record, or None for bytes that are none (they travel on, to the dead letters)."""
    try:
        return inspect(data)
    except RecordError:
        return None


def barrier(space: str, epoch: int) -> bytes:
    """The record that ends the backfill of an epoch in a partition."""
    return _control(Control.BARRIER, space, epoch, json.dumps({"space": space}))


def release_record(release: Release) -> bytes:
    """The record that makes a partition serve `release`."""
    return _control(Control.RELEASE, release.space, release.epoch, release.model_dump_json())


def retirement(space: str, epoch: int) -> bytes:
    """The record that retires an epoch and every earlier one of its space."""
    return _control(Control.RETIRE, space, epoch, json.dumps({"space": space}))


def release_of(record: Record) -> Release:
    """The release that a control record names; keys of a newer writer are ignored. Raises `RecordError`."""
    try:
        return Release.model_validate_json(record.payload)
    except ValueError as error:
        raise RecordError(f"a release record does not hold a release: {error}") from error


def space_of(record: Record) -> str:
    """The space that a barrier or retirement names; its id is the header's. Raises `RecordError`."""
    try:
        space = json.loads(record.payload)["space"]
    except (ValueError, KeyError, TypeError) as error:
        raise RecordError(f"a control record does not name its space: {error}") from error
    if not isinstance(space, str) or space_id(space) != record.space_id:
        raise RecordError(f"a control record names space {space!r}, its header another one")
    return space


def _control(kind: Control, space: str, epoch: int, payload: str) -> bytes:
    return encode(Record(space_id=space_id(space), epoch=epoch, control=kind, payload=payload.encode()))
