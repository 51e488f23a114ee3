"""The freeze: while it is on, nothing is promoted, by a run or by hand.

It is the newest line of the audit that says "freeze" or "unfreeze": who set it, when and why is kept with it.
"""

from datetime import UTC, datetime

from vista.delivery.audit import audit_line
from vista.delivery.interfaces import AuditLine, Catalog
from vista.errors import InputError, ReleaseConflictError

FREEZE, UNFREEZE = "freeze", "unfreeze"


def freeze_line(catalog: Catalog) -> AuditLine | None:
    """Who froze promotion, when and why; None if it is not frozen."""
    lines = [line for line in catalog.audit() if line.action in (FREEZE, UNFREEZE)]
    return lines[-1] if lines and lines[-1].action == FREEZE else None


def freeze_reason(catalog: Catalog) -> str:
    """Why nothing may be promoted now, in words; empty if it may."""
    line = freeze_line(catalog)
    if line is None:
        return ""
    since = datetime.fromtimestamp(line.time_us // 1_000_000, UTC)
    return f"promotion is frozen since {since:%Y-%m-%d %H:%M:%S} UTC by {line.actor}: {line.reason}"


def check_not_frozen(catalog: Catalog) -> None:
    """Raises `ReleaseConflictError` while promotion is frozen."""
    if reason := freeze_reason(catalog):
        raise ReleaseConflictError(f"{reason}; `python -m vista unfreeze --reason ...` ends that")


def set_frozen(catalog: Catalog, on: bool, *, actor: str, reason: str, dry_run: bool = False) -> None:
    """Freeze promotion, or end that. Raises `InputError` if it is so already.

    A promotion that has passed its check goes through; look at the releases afterwards.
    """
    if (freeze_line(catalog) is not None) == on:
        raise InputError(freeze_reason(catalog) if on else "promotion is not frozen: nothing to end")
    if not dry_run:
        catalog.note(audit_line(FREEZE if on else UNFREEZE, actor, reason))
