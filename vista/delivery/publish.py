"""Publishing an epoch: every shard verified, then the whole epoch in one step; one attempt wins."""

import hashlib
import json
import logging
from pathlib import Path

from vista.delivery.interfaces import Catalog, Epoch
from vista.errors import EpochError
from vista.summary.files import delete
from vista.summary.table import verify_attempt

log = logging.getLogger(__name__)


def export_id(space: str, checkpoint_digest: str, as_of_us: int, codec: str) -> str:
    """One export's identity: the same export, started again or twice, opens the same epoch.

    >>> export_id("s", "d", 0, "int8")
    '098ec8247259d007'
    """
    return hashlib.sha256(json.dumps([space, checkpoint_digest, as_of_us, codec]).encode()).hexdigest()[:16]


def attempt_directory(warehouse: Path | str, epoch: Epoch, attempt: str) -> str:
    """Where one attempt at an export writes: partitions as Hive names them, the attempt below."""
    return f"{epoch_directory(warehouse, epoch)}/attempt={attempt}"


def epoch_directory(warehouse: Path | str, epoch: Epoch) -> str:
    """Where the attempts at an epoch lie."""
    return f"{str(warehouse).rstrip('/')}/space={epoch.space}/epoch={epoch.epoch}"


def commit(catalog: Catalog, epoch: Epoch, attempt: Path | str) -> Epoch:
    """Verify all shards of `attempt` and publish it as `epoch`; a loser deletes its attempt.

    Returns what is published, by whichever attempt. Raises `EpochError` if a shard is missing or wrong.
    """
    kept = next((one for one in catalog.list_epochs(epoch.space) if one.epoch == epoch.epoch), None)
    if kept is None or not kept.published or kept.location == str(attempt):
        verified = verify_attempt(attempt, epoch.buckets)
        update = {
            "location": str(attempt),
            "rows": verified.rows,
            "digest": verified.digest,
            "published": True,
        }
        kept = catalog.publish(epoch.model_copy(update=update))
    if kept.export_id != epoch.export_id:
        raise EpochError(f"epoch {epoch.epoch} of {epoch.space} is export {kept.export_id}: open one anew")
    if kept.location != str(attempt):
        log.info("epoch %d of %s is published from %s", kept.epoch, kept.space, kept.location)
        delete(attempt)
    return kept
