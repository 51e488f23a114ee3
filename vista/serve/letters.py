"""What operators type about dead letters. Each returns what to print."""

from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from vista.config import Settings
from vista.delivery.dead_letters import Letter, delete, letters_of, replay
from vista.delivery.regions import open_backends
from vista.errors import InputError
from vista.serve.operations import actor_name, narrowed

MAX_LINES = 50


def list_letters(settings: Settings, region: str | None, bucket: int | None, save: str | None) -> str:
    """What the regions keep, and whether it can be applied now; with `save` the bytes, a file each."""
    found = _Found()
    with open_backends(settings) as opened:
        backends = narrowed(opened, region)
        for letter in letters_of(backends, _checked(bucket, backends.log.partitions)):
            found.take(letter)
            if save is not None:
                path = Path(save) / f"{letter.region}-{letter.kept.bucket}-{letter.kept.id}"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(letter.kept.data)
    return found.text()


def replay_letters(
    settings: Settings, region: str | None, bucket: int | None, reason: str, *, dry_run: bool
) -> str:
    """Apply after all what can be applied now; the rest stays."""
    stay, usable = _Found(), 0
    with open_backends(settings) as opened:
        backends = narrowed(opened, region)
        checked = _checked(bucket, backends.log.partitions)
        for letter in letters_of(backends, checked):
            if letter.usable_in is None:
                stay.take(letter)
            else:
                usable += 1
        if not dry_run and usable:
            replay(backends, checked, actor=actor_name(), reason=reason)
    said = f"{usable} dead letters {'would be' if dry_run else 'are'} replayed, {stay.count} stay"
    return "\n".join([said, *([stay.text()] if stay.count else [])])


def delete_letters(
    settings: Settings, region: str | None, bucket: int | None, reason: str, *, dry_run: bool
) -> str:
    """Delete dead letters, for ever."""
    found = _Found()
    with open_backends(settings) as opened:
        backends = narrowed(opened, region)
        checked = _checked(bucket, backends.log.partitions)
        for letter in letters_of(backends, checked):
            found.take(letter)
        if not dry_run and found.count:
            delete(backends, checked, actor=actor_name(), reason=reason)
    return "\n".join([found.text(), f"{found.count} {'would be' if dry_run else 'are'} deleted"])


def _checked(bucket: int | None, buckets: int) -> int | None:
    if bucket is not None and not 0 <= bucket < buckets:
        raise InputError(f"bucket {bucket} does not exist: the deployment has 0 .. {buckets - 1}")
    return bucket


@dataclass
class _Found:
    """Letters that were seen: how many, and the first ones in words."""

    count: int = 0
    lines: list[str] = field(default_factory=list)

    def take(self, letter: Letter) -> None:
        self.count += 1
        if self.count <= MAX_LINES:
            self.lines.append(_line(letter))

    def text(self) -> str:
        if not self.count:
            return "there are no dead letters"
        more = self.count - len(self.lines)
        return "\n".join(
            [*self.lines, *([f"and {more} more: choose a --region or a --bucket"] if more else [])]
        )


def _line(letter: Letter) -> str:
    kept = letter.kept
    why_not = "" if letter.why == kept.reason else f": {letter.why}"
    usable = f"not usable{why_not}" if letter.usable_in is None else f"usable in bucket {letter.usable_in}"
    return (
        f"region {letter.region}, bucket {kept.bucket}, before offset {kept.next_offset}: "
        f"{len(kept.data)} bytes, sha256 {sha256(kept.data).hexdigest()[:12]}\n    {kept.reason}; {usable}"
    )
