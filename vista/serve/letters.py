"""What operators type about dead letters. Each returns what to print."""

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
    with open_backends(settings) as opened:
        backends = narrowed(opened, region)
        letters = letters_of(backends, _checked(bucket, backends.log.partitions))
    if save is not None:
        for letter in letters:
            path = Path(save) / f"{letter.region}-{letter.kept.bucket}-{letter.kept.id}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(letter.kept.data)
    return _shown(letters)


def replay_letters(
    settings: Settings, region: str | None, bucket: int | None, reason: str, *, dry_run: bool
) -> str:
    """Apply after all what can be applied now; the rest stays."""
    with open_backends(settings) as opened:
        backends = narrowed(opened, region)
        letters = letters_of(backends, _checked(bucket, backends.log.partitions))
        usable = [letter for letter in letters if letter.usable_in is not None]
        if not dry_run and usable:
            replay(backends, usable, actor=actor_name(), reason=reason)
    stay = [letter for letter in letters if letter.usable_in is None]
    said = f"{len(usable)} dead letters {'would be' if dry_run else 'are'} replayed, {len(stay)} stay"
    return "\n".join([said, *([_shown(stay)] if stay else [])])


def delete_letters(
    settings: Settings, region: str | None, bucket: int | None, reason: str, *, dry_run: bool
) -> str:
    """Delete dead letters, for ever."""
    with open_backends(settings) as opened:
        backends = narrowed(opened, region)
        letters = letters_of(backends, _checked(bucket, backends.log.partitions))
        if not dry_run and letters:
            delete(backends, letters, actor=actor_name(), reason=reason)
    return "\n".join([_shown(letters), f"{len(letters)} {'would be' if dry_run else 'are'} deleted"])


def _checked(bucket: int | None, buckets: int) -> int | None:
    if bucket is not None and not 0 <= bucket < buckets:
        raise InputError(f"bucket {bucket} does not exist: the deployment has 0 .. {buckets - 1}")
    return bucket


def _shown(letters: list[Letter]) -> str:
    if not letters:
        return "there are no dead letters"
    lines = [
        f"region {letter.region}, bucket {letter.kept.bucket}, before offset {letter.kept.next_offset}: "
        f"{len(letter.kept.data)} bytes, sha256 {sha256(letter.kept.data).hexdigest()[:12]}\n"
        f"    {letter.kept.reason}; "
        + (
            f"not usable: {letter.why}"
            if letter.usable_in is None
            else f"usable in bucket {letter.usable_in}"
        )
        for letter in letters[:MAX_LINES]
    ]
    more = len(letters) - len(lines)
    return "\n".join([*lines, *([f"and {more} more: choose a --region or a --bucket"] if more else [])])
