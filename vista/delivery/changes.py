"""What each record of a batch asks of a store, whatever is behind it.

Only what depends on what is stored (floors, and which of two records is newer) is left to the back end.
"""

from dataclasses import dataclass

from vista.data.schema import bucket_of
from vista.delivery.control import release_of, space_of
from vista.delivery.interfaces import Release
from vista.errors import RecordError
from vista.summary.record import Control, Header, decode, inspect


@dataclass(frozen=True, slots=True)
class Barrier:
    """Every summary of the epoch lies before."""

    space_id: int
    epoch: int


@dataclass(frozen=True, slots=True)
class Retirement:
    """This epoch and the space's earlier ones are gone."""

    space: str
    space_id: int
    epoch: int


@dataclass(frozen=True, slots=True)
class Unusable:
    """The bytes are for the dead letters."""

    reason: str


Change = Header | Release | Barrier | Retirement | Unusable
"""A header: write this summary, or tombstone, if it is newer."""


def change_of(data: bytes, bucket: int, buckets: int) -> Change:
    """What a record in the log of `bucket` asks."""
    try:
        header = inspect(data)
        if header.control:
            return _control(header, data)
        right_bucket = bucket_of(header.user_id, buckets)
        if right_bucket != bucket:
            raise RecordError(f"user {header.user_id} belongs to bucket {right_bucket}, not {bucket}")
        return header
    except RecordError as error:
        return Unusable(str(error))


def _control(header: Header, data: bytes) -> Change:
    record = decode(data)
    if header.control is Control.RELEASE:
        return release_of(record)
    space = space_of(record)
    if header.control is Control.BARRIER:
        return Barrier(header.space_id, header.epoch)
    return Retirement(space, header.space_id, header.epoch)
