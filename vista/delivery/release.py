"""Releases: promote, roll back, retire, withdraw. A swap in the catalog decides; control records carry it to
the regions.

A crash between the swap and the control records heals with the next call, whichever it is.
"""

import logging
import uuid

from vista.config import Frozen, Settings
from vista.delivery.audit import audit_line
from vista.delivery.control import release_record, retirement
from vista.delivery.epochs import known_epoch, published_epoch
from vista.delivery.freeze import check_not_frozen
from vista.delivery.interfaces import Catalog, Epoch, Release
from vista.delivery.publish import copies_of
from vista.delivery.readiness import RegionState, manifests
from vista.delivery.regions import Backends
from vista.delivery.retirements import (
    check_not_retired,
    is_retired,
    note_retirement,
    take_back_retirement,
)
from vista.delivery.rules import check_current
from vista.delivery.worker import drain, write_beside
from vista.errors import BackendError, EpochError, InputError, RegionNotReadyError, ReleaseConflictError
from vista.summary.record import space_id

log = logging.getLogger(__name__)

DRAIN_S = 10.0
"""A region that needs longer to its log's end is left to its own worker."""


class ReleaseReport(Frozen):
    """What an action did, or with `dry_run` would do. `regions` that do not serve `release` say why."""

    release: Release
    before: Release | None
    changed: bool
    regions: dict[str, str]


def current_release(catalog: Catalog) -> Release | None:
    """The release that serves, or None before the first."""
    releases = catalog.releases()
    return releases[-1] if releases else None


def needed_releases(catalog: Catalog) -> list[Release]:
    """What serves, and what a rollback would take."""
    return _needed(catalog.releases())


def nothing_released(settings: Settings) -> str:
    """What to tell somebody who asks a deployment that has no release, or does not exist."""
    return (
        f"nothing is released in {settings.catalog_url}: set VISTA_HOME, or VISTA_CATALOG_URL, to the "
        "deployment's, or start production_refresh (without a stack: `make run`) first"
    )


def promote(
    backends: Backends,
    *,
    space: str,
    epoch: int,
    foundation: str,
    downstream: str,
    actor: str,
    reason: str,
    instead_of: str | None,
    dry_run: bool = False,
) -> ReleaseReport:
    """Make these models and this epoch the release, instead of the release that they were judged against.

    If they are the release already, only the regions are healed. Raises `EpochError`, `RegionNotReadyError`
    if a region does not hold the whole epoch, `ReleaseConflictError` if another release than `instead_of`
    serves, or if promotion is frozen.
    """
    published = published_epoch(backends.catalog, space, epoch)
    before = current_release(backends.catalog)
    wanted = Release(
        id=_new_id(), space=space, epoch=epoch, foundation=foundation, downstream=downstream,
        previous=None if before is None else before.id,
    )  # fmt: skip
    if before is not None and _content(before) == _content(wanted):
        return ReleaseReport(
            release=before,
            before=before,
            changed=False,
            regions={} if dry_run else announce(backends, before),
        )
    check_not_frozen(backends.catalog)
    _check_judged(before, instead_of)
    check_not_retired(backends.catalog, space, epoch)
    if missing := _regions_without(backends, wanted, published):
        raise RegionNotReadyError(
            f"epoch {epoch} of {space} is not complete in {', '.join(missing)}: deliver it first; what was "
            f"lost since, `python -m vista repair --space {space} --epoch {epoch} --reason ...` refills"
        )
    how = {"action": "promote", "actor": actor, "reason": reason}
    return _swap(backends, before, wanted, dry_run=dry_run, **how)


def rollback(
    backends: Backends,
    *,
    to: str | None,
    actor: str,
    reason: str,
    instead_of: str | None = None,
    dry_run: bool = False,
) -> ReleaseReport:
    """A new release that names what release `to` named; by default the one before what serves now. If `to`
    names what serves, only the regions are healed: after a crash between a swap and its announcement. A
    freeze does not stop it: it is the way out of what the freeze is for. `instead_of` is what the caller saw
    serving, if it looked: two who see the same fault must not go back twice.

    Raises `InputError` if there is no such release, `EpochError` if its epoch is withdrawn,
    `RegionNotReadyError` if no region holds it any more, `ReleaseConflictError`.
    """
    releases = backends.catalog.releases()
    if not releases:
        raise InputError("there is no release yet: nothing to roll back")
    target, current = _target(releases, to), releases[-1]
    if instead_of is not None:
        check_current(current, instead_of)
    if _content(target) == _content(current):
        regions = {} if dry_run else announce(backends, current)
        return ReleaseReport(release=current, before=current, changed=False, regions=regions)
    published = published_epoch(backends.catalog, target.space, target.epoch)
    wanted = target.model_copy(update={"id": _new_id(), "previous": current.id})
    # of an epoch that repairs do not look after, a barrier alone says nothing
    mended = {(one.space, one.epoch) for one in _needed(releases)}
    epoch = None if (target.space, target.epoch) in mended else published
    if not _held_somewhere(backends, wanted, epoch) and len(_regions_without(backends, wanted, epoch)) == len(
        backends.stores
    ):
        raise RegionNotReadyError(
            f"no region holds epoch {target.epoch} of {target.space} any more: roll back to a newer release "
            "with --to; what was lost, not retired, `python -m vista repair --space --epoch` refills"
        )
    check_not_retired(backends.catalog, wanted.space, wanted.epoch)
    how = {"action": "rollback", "actor": actor, "reason": reason}
    return _swap(backends, current, wanted, dry_run=dry_run, **how)


def retire(
    backends: Backends, *, space: str, epoch: int, actor: str, reason: str, dry_run: bool = False
) -> list[int]:
    """Retire an epoch and every earlier one of its space, in the log and in every region within reach.

    Returns those that a region holds. Raises `EpochError` if it is not published: the floor would be above
    epochs still to come; if the current release, or the one that a rollback would take, needs one of them.
    """
    _published(backends.catalog, space, epoch, "retire")
    _check_not_needed(backends.catalog, space, epoch)
    held = {
        number
        for state in _look(backends, {})[0]
        for bucket in state.buckets
        for held_space, number in bucket.epochs
        if held_space == space_id(space) and number <= epoch
    }
    if not dry_run:
        note_retirement(backends.catalog, space, epoch, actor, reason)
        try:
            _check_not_needed(backends.catalog, space, epoch)  # who swaps from now on finds the note
        except EpochError as error:
            take_back_retirement(backends.catalog, space, epoch, actor, str(error))
            raise
        backends.log.broadcast(range(backends.log.partitions), retirement(space, epoch))
        _retire_ahead(backends, space, epoch)
        drain_within_reach(backends)
    return sorted(held)


def _retire_ahead(backends: Backends, space: str, epoch: int) -> None:
    """Do in every region what the log says further on: one whose memory is short would not get there before
    this has made room. What comes between is ignored, as it would be deleted then."""
    for name, store in backends.stores.items():
        try:
            for bucket in range(backends.log.partitions):
                write_beside(store, bucket, store.state(bucket).offset, None, [retirement(space, epoch)])
            store.retire(space, epoch)
        except BackendError as error:
            log.warning("region %s: %s", name, error)


def withdraw(
    catalog: Catalog, *, space: str, epoch: int, actor: str, reason: str, dry_run: bool = False
) -> Release | None:
    """Mark a published epoch as bad, for ever: no training joins it, no delivery and no release takes it.

    Returns the release that serves it all the same: roll that back. Raises `EpochError` if it is not
    published, or if its records were copied into others that are still used.
    """
    found = _published(catalog, space, epoch, "withdraw")
    if copies := copies_of(catalog.list_epochs(space), epoch):
        named = ", ".join(f"epoch {one.epoch}" for one in copies)
        raise EpochError(
            f"records of epoch {epoch} of {space} are in {named} too: withdraw those first, in this order"
        )
    if not (dry_run or found.withdrawn):
        catalog.withdraw(space, epoch, audit_line("withdraw", actor, reason, before=f"{space}/{epoch}"))
    release = current_release(catalog)
    return release if release is not None and (release.space, release.epoch) == (space, epoch) else None


def announce(backends: Backends, release: Release) -> dict[str, str]:
    """Bring the release to every region: a control record into each partition that lacks one.

    Returns the regions that do not serve it afterwards, with the reason; one broken region stops no other.
    A release that was swapped meanwhile may have been announced before these records: then it is announced
    again, so that the last records of a partition are those of what the catalog says.
    """
    while True:
        behind = _announce_once(backends, release)
        current = current_release(backends.catalog)
        if current is None or current == release:
            return behind
        log.info("release %s was replaced by %s meanwhile", release.id, current.id)
        release = current


def _announce_once(backends: Backends, release: Release) -> dict[str, str]:
    states, unreachable = _look(backends, drain_within_reach(backends))
    lacking = [
        partition
        for partition in range(backends.log.partitions)
        if not states or any(state.buckets[partition].release != release for state in states)
    ]
    if lacking:
        backends.log.broadcast(lacking, release_record(release))
        states, unreachable = _look(backends, unreachable | drain_within_reach(backends))
    behind = {
        state.region: f"has not passed release {release.id} in every bucket"
        for state in states
        if not state.serves(release.id)
    }
    return unreachable | behind


def _published(catalog: Catalog, space: str, epoch: int, verb: str) -> Epoch:
    """Raises `EpochError`: there is nothing to retire or withdraw."""
    found = known_epoch(catalog, space, epoch)
    if not found.published:
        raise EpochError(f"epoch {epoch} of {space} is not published: nothing to {verb}")
    return found


def _check_not_needed(catalog: Catalog, space: str, epoch: int) -> None:
    for release in needed_releases(catalog):
        if release.space == space and release.epoch <= epoch:
            raise EpochError(f"epoch {release.epoch} of {space} is needed by release {release.id}: keep it")


def _check_judged(current: Release | None, instead_of: str | None) -> None:
    serves = None if current is None else current.id
    if serves != instead_of:
        raise ReleaseConflictError(
            f"these models were judged against release {instead_of}, now {serves} serves: run the stage "
            "retrain_downstream again, which compares them with that"
        )


def _swap(
    backends: Backends,
    before: Release | None,
    wanted: Release,
    *,
    action: str,
    actor: str,
    reason: str,
    dry_run: bool,
) -> ReleaseReport:
    if dry_run:
        return ReleaseReport(release=wanted, before=before, changed=False, regions={})
    expected = None if before is None else before.id
    audit = audit_line(action, actor, reason, before=expected or "", after=wanted.id)
    backends.catalog.swap_release(expected, wanted, audit)
    log.info("%s: %s -> %s", action, expected, wanted.id)
    if gone := _gone(backends.catalog, wanted):
        _take_back(backends, before, wanted, actor, gone)
    try:
        # regions within reach wait for no other
        backends.log.broadcast(range(backends.log.partitions), release_record(wanted))
        regions = announce(backends, wanted)
    except BackendError as error:
        raise BackendError(
            f"{wanted.id} is the release now, but not every region has been told: `python -m vista repair "
            f"--reason ...` announces it, another rollback would go further back: {error}"
        ) from error
    return ReleaseReport(release=wanted, before=before, changed=True, regions=regions)


def _gone(catalog: Catalog, release: Release) -> str:
    """Why a release that was swapped in cannot serve: whoever withdrew or retired its epoch meanwhile could
    not see it yet. Whoever does so from now on can."""
    name = f"epoch {release.epoch} of {release.space}"
    if known_epoch(catalog, release.space, release.epoch).withdrawn:
        return f"{name} was withdrawn meanwhile"
    return f"{name} was retired meanwhile" if is_retired(catalog, release.space, release.epoch) else ""


def _take_back(backends: Backends, before: Release | None, wanted: Release, actor: str, why: str) -> None:
    if before is None:
        raise EpochError(f"release {wanted.id} cannot serve: {why}; promote another epoch")
    back = before.model_copy(update={"id": _new_id(), "previous": wanted.id})
    line = audit_line("rollback", actor, why, before=wanted.id, after=back.id)
    backends.catalog.swap_release(wanted.id, back, line)
    announce(backends, back)
    raise EpochError(
        f"release {wanted.id} was taken back: {why}; what served before serves again, as {back.id}"
    )


def _target(releases: list[Release], to: str | None) -> Release:
    found = _previous(releases) if to is None else next((one for one in releases if one.id == to), None)
    if found is None and to is None:
        others = any(_content(one) != _content(releases[-1]) for one in releases)
        remedy = "name a release with --to" if others else "there is no other until a second refresh makes it"
        raise InputError(f"nothing was released before {releases[-1].id}: {remedy}")
    if found is None:
        raise InputError(f"release {to!r} does not exist: see `python -m vista releases`")
    return found


def _needed(releases: list[Release]) -> list[Release]:
    found = (releases[-1], _previous(releases)) if releases else ()
    return [release for release in found if release is not None]


def _previous(releases: list[Release]) -> Release | None:
    """The release before the first that names what serves now.

    So a second rollback goes further back, and never to what the first one left.
    """
    first = next(i for i, release in enumerate(releases) if _content(release) == _content(releases[-1]))
    return releases[first - 1] if first else None


def _held_somewhere(backends: Backends, wanted: Release, epoch: Epoch | None) -> bool:
    """Whether a region can serve `wanted`, as it is; the nearest that can is enough. With its `epoch` only
    one that lacks none of its users."""
    for name, store in backends.stores.items():
        try:
            state = RegionState.of(name, store, backends.log.partitions)
            if state.complete(wanted.space, wanted.epoch) and (
                epoch is None or not state.lacks_users(epoch, manifests(epoch))
            ):
                return True
        except BackendError as error:
            log.warning("region %s: %s", name, error)
    return False


def _regions_without(backends: Backends, wanted: Release, epoch: Epoch | None) -> list[str]:
    """Regions that could not serve `wanted` once it is announced; those that cannot be reached, too. With its
    `epoch` also those that lack some of its users."""
    states, unreachable = _look(backends, drain_within_reach(backends))
    shards = () if epoch is None else manifests(epoch)
    behind = [
        state.region
        for state in states
        if not state.complete(wanted.space, wanted.epoch)
        or (epoch is not None and state.lacks_users(epoch, shards))
    ]
    return [*unreachable, *behind]


def drain_within_reach(backends: Backends) -> dict[str, str]:
    """Bring every region to the log's end; the regions where that failed, with the reason."""
    unreachable: dict[str, str] = {}
    for name, store in backends.stores.items():
        try:
            drain(name, backends.log, store, DRAIN_S)
        except (BackendError, RegionNotReadyError) as error:
            log.warning("region %s: %s", name, error)
            unreachable[name] = str(error)
    return unreachable


def _look(backends: Backends, unreachable: dict[str, str]) -> tuple[list[RegionState], dict[str, str]]:
    """The states of the other regions, and those that cannot be reached now."""
    states: list[RegionState] = []
    for name, store in backends.stores.items():
        if name in unreachable:
            continue
        try:
            states.append(RegionState.of(name, store, backends.log.partitions))
        except BackendError as error:
            log.warning("region %s: %s", name, error)
            unreachable = unreachable | {name: str(error)}
    return states, unreachable


def _content(release: Release) -> tuple[str, int, str, str]:
    return release.space, release.epoch, release.foundation, release.downstream


def _new_id() -> str:
    return f"r-{uuid.uuid4().hex[:12]}"
