"""What every catalog refuses, in the same words."""

from vista.delivery.interfaces import Epoch, Release
from vista.errors import EpochError, ReleaseConflictError


def check_opened(kept: Epoch | None, space: str, epoch: int) -> Epoch:
    """The epoch, if it was opened. Raises `EpochError`."""
    if kept is None:
        raise EpochError(f"epoch {epoch} of {space} was never opened: call open_epoch first")
    return kept


def check_same(kept: Epoch, epoch: Epoch) -> None:
    """Raises `EpochError` if `epoch` is another export than `kept`, or has other rows than it was published
    with."""
    if kept.export_id != epoch.export_id or (kept.published and kept.rows != epoch.rows):
        raise EpochError(
            f"epoch {epoch.epoch} of {epoch.space} is export {kept.export_id} with {kept.rows} rows; "
            f"export {epoch.export_id} with {epoch.rows} rows needs an epoch of its own"
        )


def check_published(kept: Epoch) -> None:
    """Raises `EpochError` if there is nothing to withdraw."""
    if not kept.published:
        raise EpochError(f"epoch {kept.epoch} of {kept.space} is not published: nothing to withdraw")


def check_current(current: Release | None, expected: str | None) -> None:
    """Raises `ReleaseConflictError` if another release than `expected` serves."""
    current_id = None if current is None else current.id
    if current_id != expected:
        raise ReleaseConflictError(
            f"the current release is {current_id}, not {expected}: somebody was faster; "
            "look at `python -m vista releases` and decide again"
        )
