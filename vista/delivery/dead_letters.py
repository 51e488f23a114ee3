"""Dead letters: what the regions could not apply, applied after all through the log, or deleted.

A letter is usable when a newer version of the platform reads its codec, or if it only lay in the wrong
partition. Its record has its place in the order of all: a replay can neither be too late nor too often.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vista.data.schema import bucket_of
from vista.delivery.audit import audit_line
from vista.delivery.interfaces import DeadLetter
from vista.delivery.regions import Backends
from vista.delivery.release import drain_within_reach
from vista.errors import RecordError
from vista.summary.record import inspect


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter of a region. `usable_in` is the bucket in which it can be applied now; None, and why, if
    it cannot be."""

    region: str
    kept: DeadLetter
    usable_in: int | None
    why: str


def letters_of(backends: Backends, bucket: int | None) -> list[Letter]:
    """The dead letters of these regions, of one bucket or of all. Raises `BackendError`."""
    return list(_letters(backends, range(backends.log.partitions) if bucket is None else [bucket]))


def replay(backends: Backends, letters: Sequence[Letter], *, actor: str, reason: str) -> int:
    """Append what can be applied now to the log, once for all regions; then delete those letters.

    Returns the number of records appended. Killed in between it is done again: a repeat is harmless.
    """
    usable = [letter for letter in letters if letter.usable_in is not None]
    records = dict.fromkeys((letter.usable_in, letter.kept.data) for letter in usable)
    _note(backends, "replay", usable, actor, reason)
    for bucket, data in records:
        assert bucket is not None
        backends.log.append(bucket, [data])
    _delete(backends, usable)
    drain_within_reach(backends)
    return len(records)


def delete(backends: Backends, letters: Sequence[Letter], *, actor: str, reason: str) -> int:
    """Delete these letters, for ever. Returns how many there still were."""
    _note(backends, "delete", letters, actor, reason)
    return _delete(backends, letters)


def _letters(backends: Backends, buckets: Sequence[int]) -> Iterator[Letter]:
    for region, store in backends.stores.items():
        for bucket in buckets:
            for kept in store.dead_letters(bucket):
                try:
                    header = inspect(kept.data)
                except RecordError as error:
                    yield Letter(region, kept, None, str(error))
                    continue
                if header.control:
                    yield Letter(region, kept, None, "a control record: `repair` announces what holds now")
                else:
                    yield Letter(region, kept, bucket_of(header.user_id, backends.log.partitions), "")


def _note(backends: Backends, action: str, letters: Sequence[Letter], actor: str, reason: str) -> None:
    counts = Counter(letter.region for letter in letters)
    what = ", ".join(f"{count} of {region}" for region, count in counts.items())
    backends.catalog.note(audit_line(f"{action}-letters", actor, reason, before=f"dead letters: {what or 0}"))


def _delete(backends: Backends, letters: Sequence[Letter]) -> int:
    deleted = 0
    for region, store in backends.stores.items():
        mine = [letter.kept for letter in letters if letter.region == region]
        for bucket in sorted({kept.bucket for kept in mine}):
            deleted += store.delete_dead_letters(bucket, [kept for kept in mine if kept.bucket == bucket])
    return deleted
