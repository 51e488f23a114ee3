"""Which epochs are retired, for ever: the audit says so, also of those whose bytes a region still holds.

A retirement that finds its epoch needed after all takes its line back by another one.
"""

from vista.delivery.audit import audit_line
from vista.delivery.interfaces import Catalog
from vista.errors import EpochError

RETIRE, KEEP = "retire", "keep"


def note_retirement(catalog: Catalog, space: str, epoch: int, actor: str, reason: str) -> None:
    """From now on whoever releases an epoch finds that it is retired, with the space's earlier ones."""
    catalog.note(audit_line(RETIRE, actor, reason, before=f"{space}/{epoch}"))


def take_back_retirement(catalog: Catalog, space: str, epoch: int, actor: str, reason: str) -> None:
    """The epoch, and those before it, are kept."""
    catalog.note(audit_line(KEEP, actor, reason, before=f"{space}/{epoch}"))


def is_retired(catalog: Catalog, space: str, epoch: int) -> bool:
    """Whether an epoch, or a later one of its space, has been retired."""
    retired: set[int] = set()
    for line in catalog.audit():
        named, _, number = line.before.rpartition("/")
        if named != space or line.action not in (RETIRE, KEEP):
            continue
        if line.action == RETIRE:
            retired.add(int(number))
        else:
            retired.discard(int(number))
    return any(number >= epoch for number in retired)


def check_not_retired(catalog: Catalog, space: str, epoch: int) -> None:
    """Raises `EpochError` if no region takes the epoch any more."""
    if is_retired(catalog, space, epoch):
        raise EpochError(
            f"epoch {epoch} of {space} is retired: the regions delete what they still hold of it; take a "
            "newer one, or start a new run, whose export makes one (of the same day, once this one is "
            "withdrawn)"
        )
