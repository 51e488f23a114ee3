"""Dead letters: what the regions could not apply, applied after all through the log, or deleted.

A letter is usable when a newer version of the platform reads its codec, or if it only lay in the wrong
partition. Its record has its place in the order of all: a replay can neither be too late nor too often.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256

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


def letters_of(backends: Backends, bucket: int | None) -> Iterator[Letter]:
    """The dead letters of these regions, of one bucket or of all. Raises `BackendError`."""
    for letters in _pages(backends, bucket):
        yield from letters


def replay(backends: Backends, bucket: int | None, *, actor: str, reason: str) -> None:
    """Append what can be applied now to the log, once for all regions, and delete those letters.

    Killed in between it is done again: a repeat is harmless.
    """
    usable = (letter for letter in letters_of(backends, bucket) if letter.usable_in is not None)
    _note(backends, "replay", usable, actor, reason)
    sent: set[tuple[int, bytes]] = set()
    for letters in _pages(backends, bucket):
        for letter in letters:
            if letter.usable_in is None:
                continue
            record = letter.usable_in, sha256(letter.kept.data).digest()
            if record not in sent:
                backends.log.append(letter.usable_in, [letter.kept.data])
                sent.add(record)
        _delete(backends, [letter for letter in letters if letter.usable_in is not None])
    drain_within_reach(backends)


def delete(backends: Backends, bucket: int | None, *, actor: str, reason: str) -> int:
    """Delete the letters, for ever. Returns how many there still were."""
    _note(backends, "delete", letters_of(backends, bucket), actor, reason)
    return sum(_delete(backends, letters) for letters in _pages(backends, bucket))


def _pages(backends: Backends, bucket: int | None) -> Iterator[list[Letter]]:
    """Some letters of one region's bucket at a time, of those that are there when it begins: what is replayed
    may come back."""
    buckets = range(backends.log.partitions) if bucket is None else [bucket]
    counts = {
        (region, number): store.count_dead_letters(number)
        for region, store in backends.stores.items()
        for number in buckets
    }
    for (region, number), count in counts.items():
        last: DeadLetter | None = None
        while count > 0 and (found := backends.stores[region].dead_letters(number, last)[:count]):
            count, last = count - len(found), found[-1]
            yield [_letter(region, kept, backends.log.partitions) for kept in found]


def _letter(region: str, kept: DeadLetter, buckets: int) -> Letter:
    try:
        header = inspect(kept.data)
    except RecordError as error:
        return Letter(region, kept, None, str(error))
    if header.control:
        return Letter(region, kept, None, "a control record: `repair` announces what holds now")
    return Letter(region, kept, bucket_of(header.user_id, buckets), "")


def _note(backends: Backends, action: str, letters: Iterable[Letter], actor: str, reason: str) -> None:
    counts = Counter(letter.region for letter in letters)
    what = ", ".join(f"{count} of {region}" for region, count in counts.items())
    backends.catalog.note(audit_line(f"{action}-letters", actor, reason, before=f"dead letters: {what or 0}"))


def _delete(backends: Backends, letters: Sequence[Letter]) -> int:
    """Delete letters of one region's bucket."""
    if not letters:
        return 0
    store, bucket = backends.stores[letters[0].region], letters[0].kept.bucket
    return store.delete_dead_letters(bucket, [letter.kept for letter in letters])
