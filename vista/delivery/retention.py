"""Retention of the table's files: what nobody may need any more is deleted after a grace period.

An attempt is unused once another one of its epoch is published, or its epoch is withdrawn. That is for ever,
so no lock is needed: the first sweep that finds it unused notes when, a later one deletes it, unless a job
has pinned the epoch. Attempts at an epoch that is still open stay, since their runs may be resumed.

<epoch>/attempt=<name>          files
<epoch>/attempt=<name>.unused   since when it is known to be unused, in UTC microseconds
<epoch>/pin=<name>              until when a job reads the epoch, at the latest, in UTC microseconds
"""

import logging
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from vista.delivery.interfaces import AuditLine, Catalog, Epoch
from vista.delivery.publish import attempt_name, epoch_directory, usable
from vista.summary.files import delete, names_in, read, written

log = logging.getLogger(__name__)

GRACE_US = 24 * 3_600 * 1_000_000
"""Longer than anything may take from listing epochs to pinning them, or to reading what it does not pin."""

PIN_US = 14 * GRACE_US
"""The pin of a job that was killed counts no longer."""

EXPIRE = "expire"
"""In the audit: withdrawn since nothing needs it any more, not since it is bad."""

_ATTEMPT, _PIN, _UNUSED = "attempt=", "pin=", ".unused"


@contextmanager
def pinned(epochs: Sequence[Epoch]) -> Iterator[None]:
    """Keep the files of published epochs while a job reads them, withdrawn or not."""
    pins = [(epoch.location.rpartition("/")[0], f"{_PIN}{uuid.uuid4().hex}") for epoch in epochs]
    try:
        for folder, name in pins:
            _write_time(folder, name, now_us() + PIN_US)
        yield
    finally:
        for folder, name in pins:
            delete(f"{folder}/{name}")


def expire_space(catalog: Catalog, space: str, actor: str, reason: str) -> list[Epoch]:
    """Withdraw every epoch of a space that nothing reads any more; a later sweep deletes their files."""
    expired = [*usable(catalog, space).values()]
    for epoch in expired:
        line = AuditLine(
            time_us=now_us(), actor=actor, action=EXPIRE, reason=reason,
            before=f"{space}/{epoch.epoch}", after="",
        )  # fmt: skip
        catalog.withdraw(space, epoch.epoch, line)
    return expired


def expired_because(catalog: Catalog, space: str, epoch: int) -> str:
    """Why a withdrawn epoch has expired; empty for one that is bad."""
    named = f"{space}/{epoch}"
    return next((one.reason for one in catalog.audit() if (one.action, one.before) == (EXPIRE, named)), "")


def sweep(catalog: Catalog, warehouse: Path | str) -> list[str]:
    """Note what is unused; delete what has been so for the grace period and is not pinned. Returns the
    attempts that it deleted. What the catalog does not know is left alone."""
    spaces = [name.removeprefix("space=") for name in names_in(warehouse) if name.startswith("space=")]
    return [
        attempt
        for space in spaces
        for epoch in catalog.list_epochs(space)
        if epoch.published
        for attempt in _sweep_epoch(epoch_directory(warehouse, epoch), epoch)
    ]


def now_us() -> int:
    """The wall clock, UTC microseconds."""
    return time.time_ns() // 1_000


def _sweep_epoch(folder: str, epoch: Epoch) -> Iterator[str]:
    names = names_in(folder)
    pinned_now = [name for name in names if name.startswith(_PIN) and _read_time(folder, name) > now_us()]
    used = "" if epoch.withdrawn else attempt_name(epoch.location)
    for name in names:
        if not name.startswith(_ATTEMPT) or name.endswith(_UNUSED) or name == used:
            continue
        if f"{name}{_UNUSED}" not in names:
            _write_time(folder, f"{name}{_UNUSED}", now_us())
        elif not pinned_now and now_us() - _read_time(folder, f"{name}{_UNUSED}") >= GRACE_US:
            delete(f"{folder}/{name}")
            delete(f"{folder}/{name}{_UNUSED}")
            log.info("deleted %s/%s", folder, name)
            yield f"{folder}/{name}"


def _write_time(folder: str, name: str, time_us: int) -> None:
    with written(folder, name) as file:
        file.write(str(time_us).encode())


def _read_time(folder: str, name: str) -> int:
    """0 for a file that was deleted meanwhile, or whose writer was killed on HDFS."""
    return int(read(folder, name) or 0)
