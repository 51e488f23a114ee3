"""What every operator's action leaves behind."""

import time

from vista.delivery.interfaces import AuditLine


def audit_line(action: str, actor: str, reason: str, *, before: str = "", after: str = "") -> AuditLine:
    """The line of an action that happens now."""
    now_us = time.time_ns() // 1_000
    return AuditLine(time_us=now_us, actor=actor, action=action, reason=reason, before=before, after=after)
