"""Epochs by their numbers, as the catalog knows them."""

from vista.delivery.interfaces import Catalog, Epoch
from vista.delivery.retention import expired_because
from vista.errors import EpochError


def known_epoch(catalog: Catalog, space: str, number: int) -> Epoch:
    """An epoch, published or not, withdrawn or not. Raises `EpochError` if the catalog does not hold it."""
    found = next((epoch for epoch in catalog.list_epochs(space) if epoch.epoch == number), None)
    if found is None:
        raise EpochError(
            f"epoch {number} of {space} is not published: run export_summaries first, or set VISTA_HOME to "
            "the deployment that holds it"
        )
    return found


def published_epoch(catalog: Catalog, space: str, number: int) -> Epoch:
    """A published epoch that is not withdrawn. Raises `EpochError`."""
    found = known_epoch(catalog, space, number)
    if not found.published:
        raise EpochError(f"epoch {number} of {space} is not published: run export_summaries first")
    if found.withdrawn and (why := expired_because(catalog, space, number)):
        raise EpochError(f"epoch {number} of {space} has expired ({why}): start a new run")
    if found.withdrawn:
        raise EpochError(f"epoch {number} of {space} is withdrawn: export again to get another one")
    return found
