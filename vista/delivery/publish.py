"""Publishing an epoch: every shard verified, then the whole epoch in one step; one attempt wins."""

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

from vista.delivery.audit import audit_line
from vista.delivery.interfaces import Catalog, Epoch
from vista.errors import EpochError
from vista.summary.files import delete
from vista.summary.table import verify_attempt

log = logging.getLogger(__name__)


def usable(catalog: Catalog, space: str) -> dict[int, Epoch]:
    """The published epochs of a space that are not withdrawn, by number."""
    return {one.epoch: one for one in catalog.list_epochs(space) if one.published and not one.withdrawn}


def copies_of(known: Iterable[Epoch], epoch: int) -> list[Epoch]:
    """The usable epochs of a space that may hold records of `epoch`, newest first."""
    found = [one for one in known if one.published and not one.withdrawn and epoch in one.copied_from]
    return sorted(found, key=lambda one: -one.epoch)


def export_id(space: str, checkpoint_digest: str, as_of_us: int, codec: str) -> str:
    """One export's identity: the same export, started again or twice, opens the same epoch.

    >>> export_id("s", "d", 0, "int8")
    '098ec8247259d007'
    """
    return hashlib.sha256(json.dumps([space, checkpoint_digest, as_of_us, codec]).encode()).hexdigest()[:16]


def attempt_directory(warehouse: Path | str, epoch: Epoch, attempt: str) -> str:
    """Where one attempt at an export writes: partitions as Hive names them, the attempt below."""
    return f"{epoch_directory(warehouse, epoch)}/attempt={attempt}"


def attempt_name(location: str) -> str:
    """The attempt's own, which is unique: the same warehouse may be written in several ways."""
    return location.rpartition("/")[2]


def epoch_directory(warehouse: Path | str, epoch: Epoch) -> str:
    """Where the attempts at an epoch lie."""
    return f"{str(warehouse).rstrip('/')}/space={epoch.space}/epoch={epoch.epoch}"


def commit(catalog: Catalog, epoch: Epoch, attempt: Path | str) -> Epoch:
    """Verify all shards of `attempt` and publish it as `epoch`; a loser deletes its attempt.

    Returns what is published, by whichever attempt. Raises `EpochError` if a shard is missing or wrong, or
    holds records of an epoch that has been withdrawn since: then the attempt is deleted.
    """
    known = {one.epoch: one for one in catalog.list_epochs(epoch.space)}
    kept = known.get(epoch.epoch)
    if kept is None or not kept.published or kept.location == str(attempt):
        verified = verify_attempt(attempt, epoch.buckets)
        update = {
            "location": str(attempt),
            "rows": verified.rows,
            "digest": verified.digest,
            "published": True,
            "copied_from": verified.copied_from,
        }
        wanted = epoch.model_copy(update=update)
        if kept is None or not kept.published:
            _check_sources(known, wanted)
        kept = catalog.publish(wanted)
        _withdraw_if_late(catalog, kept)
    if kept.export_id != epoch.export_id:
        raise EpochError(f"epoch {epoch.epoch} of {epoch.space} is export {kept.export_id}: open one anew")
    if kept.location != str(attempt):
        log.info("epoch %d of %s is published from %s", kept.epoch, kept.space, kept.location)
        delete(attempt)
    return kept


def _check_sources(known: Mapping[int, Epoch], epoch: Epoch) -> None:
    if withdrawn := _withdrawn_sources(known, epoch):
        delete(epoch.location)
        raise EpochError(
            f"epoch {epoch.epoch} of {epoch.space} holds records of epoch {withdrawn[0]}, which has been "
            "withdrawn since: the attempt is deleted, export again"
        )


def _withdraw_if_late(catalog: Catalog, epoch: Epoch) -> None:
    """Whoever withdrew a source between the check and the publication could not see this epoch."""
    known = {one.epoch: one for one in catalog.list_epochs(epoch.space)}
    if not known[epoch.epoch].withdrawn and (withdrawn := _withdrawn_sources(known, known[epoch.epoch])):
        reason = f"it holds records of epoch {withdrawn[0]}, which was withdrawn while it was published"
        line = audit_line("withdraw", "export", reason, before=f"{epoch.space}/{epoch.epoch}")
        catalog.withdraw(epoch.space, epoch.epoch, line)
        raise EpochError(f"epoch {epoch.epoch} of {epoch.space} is withdrawn: {reason}; export again")


def _withdrawn_sources(known: Mapping[int, Epoch], epoch: Epoch) -> list[int]:
    return [number for number in epoch.copied_from if number in known and known[number].withdrawn]
