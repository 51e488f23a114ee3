"""What operators type: releases, promotion, rollback, freeze, withdrawal, retirement, verification, repair.

Each returns what to print.
"""

import getpass
import logging
import os
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime
from functools import partial

from vista.config import Settings
from vista.delivery.audit import audit_line
from vista.delivery.catalog import open_catalog
from vista.delivery.epochs import known_epoch, published_epoch
from vista.delivery.freeze import freeze_reason, set_frozen
from vista.delivery.interfaces import Catalog, Epoch, Release
from vista.delivery.log import open_log
from vista.delivery.promote import promote_models
from vista.delivery.regions import Backends, open_backends, open_regions
from vista.delivery.release import (
    ReleaseReport,
    current_release,
    needed_releases,
    nothing_released,
    retire,
    rollback,
    withdraw,
)
from vista.delivery.repair import counted, plan, repair, verify_all
from vista.delivery.retirements import check_not_retired
from vista.delivery.verify import Verdict
from vista.errors import BackendError, EpochError, InputError, NoLogError, RegionNotReadyError
from vista.runs import RunDirectory

log = logging.getLogger(__name__)

SpaceEpoch = tuple[str, int]


def list_releases(settings: Settings) -> str:
    """All releases, oldest first, with who made them and why; the last one serves."""
    with closing(open_catalog(settings.catalog_url)) as catalog:
        found = catalog.releases()
        if not found:
            return nothing_released(settings)
        lines = {line.after: line for line in catalog.audit()}
        frozen = freeze_reason(catalog)
    shown = [
        f"{'*' if release is found[-1] else ' '} {release.id}  {_when(lines[release.id].time_us)}  "
        f"{lines[release.id].action} by {lines[release.id].actor}: {lines[release.id].reason}\n"
        f"    epoch {release.epoch} of {release.space}, downstream {release.downstream}"
        for release in found
    ]
    return "\n".join([*shown, *([frozen] if frozen else [])])


def list_audit(settings: Settings) -> str:
    """Every operator action, oldest first: when, who, what, why, from and to."""
    with closing(open_catalog(settings.catalog_url)) as catalog:
        lines = catalog.audit()
    if not lines:
        return f"no operator has done anything in {settings.catalog_url}"
    return "\n".join(
        f"{_when(line.time_us)}  {line.action:<8}  {line.actor}: {line.reason}"
        + (f"\n    {line.before or 'nothing'} -> {line.after or 'nothing'}" * bool(line.before + line.after))
        for line in lines
    )


def promote_by_hand(settings: Settings, run_id: str, reason: str, *, dry_run: bool) -> str:
    """Promote a run's models whatever its gate said; the audit keeps what it said.

    Raises `CheckpointError` if the model cannot be read, and what `promote_models` raises.
    """
    run = RunDirectory.named(settings.runs, run_id)
    gate = run.report_of("retrain_downstream")["gate"]
    verdict = f"the gate said {'yes' if gate['promote'] else 'no'}: {'; '.join(gate['reasons'])}"
    with open_backends(settings) as backends:
        current = current_release(backends.catalog)
        promote = partial(
            promote_models,
            backends,
            run,
            actor=actor_name(),
            reason=f"{reason} ({verdict})",
            instead_of=None if current is None else current.id,
        )
        done = promote(dry_run=True)
        _check_model(done.release)
        if not dry_run:
            done = promote(dry_run=False)
    return f"{_said('promote', done, dry_run)}\n{verdict}{_tell_mlflow(settings, done, dry_run)}"


def roll_back(settings: Settings, to: str | None, reason: str, *, dry_run: bool) -> str:
    """Roll back.

    Raises `CheckpointError` if the earlier model cannot be read any more, `ReleaseConflictError` if somebody
    else was faster, `RegionNotReadyError` if a region does not follow (the others do).
    """
    _check_released(settings)
    with open_backends(settings) as backends:
        roll = partial(rollback, backends, to=to, actor=actor_name(), reason=reason)
        done = roll(dry_run=True)
        _check_model(done.release)  # takes seconds
        if not dry_run:
            done = roll(dry_run=False, instead_of=None if done.before is None else done.before.id)
    told = _tell_mlflow(settings, done, dry_run)
    for region, why in done.regions.items():
        raise RegionNotReadyError(f"rolled back to {done.release.id}, but region {region} lags: {why}")
    return _said("rollback", done, dry_run) + told


def freeze(settings: Settings, reason: str, *, on: bool, dry_run: bool) -> str:
    """Stop every promotion, or allow it again. A rollback is always possible."""
    with closing(open_catalog(settings.catalog_url)) as catalog:
        release = _released(catalog, settings)
        set_frozen(catalog, on, actor=actor_name(), reason=reason, dry_run=dry_run)
    if on:
        state = "would be frozen" if dry_run else "is frozen"
    else:
        state = "would not be frozen any more" if dry_run else "is not frozen any more"
    return f"promotion {state}; {release.id} serves ({_what(release)})"


def withdraw_epoch(settings: Settings, epoch: SpaceEpoch, reason: str, *, dry_run: bool) -> str:
    """Mark an epoch as bad, for ever."""
    space, number = epoch
    with closing(open_catalog(settings.catalog_url)) as catalog:
        is_withdrawn = known_epoch(catalog, space, number).withdrawn
        serving = withdraw(
            catalog, space=space, epoch=number, actor=actor_name(), reason=reason, dry_run=dry_run
        )
    said = f"epoch {number} of {space} {'would be' if dry_run else 'is'} withdrawn, for ever"
    if is_withdrawn:
        said = f"epoch {number} of {space} is withdrawn already, for ever: nothing to do"
    if serving is None:
        return said
    return f"{said}\nit still serves, in release {serving.id}: roll back with `python -m vista rollback`"


def retire_epoch(settings: Settings, epoch: SpaceEpoch, reason: str, *, dry_run: bool) -> str:
    """Delete an epoch and the space's earlier ones from every region, for ever; the table keeps them."""
    space, number = epoch
    _check_released(settings)
    with open_backends(settings) as backends:
        held = retire(backends, space=space, epoch=number, actor=actor_name(), reason=reason, dry_run=dry_run)
    names = ", ".join(map(str, held)) or "none is held"
    return f"epochs of {space} up to {number} {'would be' if dry_run else 'are'} retired: {names}"


def verify(
    settings: Settings, region: str | None, epoch: SpaceEpoch | None, reason: str, *, all_bytes: bool
) -> str:
    """Compare regions with the table. With a `reason` the audit keeps the verdict.

    Raises `RegionNotReadyError` with everything that is wrong.
    """
    _check_released(settings)
    with open_backends(settings) as opened:
        backends = narrowed(opened, region)
        release = _released(backends.catalog, settings)
        epochs = [_epoch(backends.catalog, epoch)] if epoch else kept_epochs(backends.catalog)
        verdicts = verify_all(backends, epochs, all_bytes=all_bytes)
        faults = faults_in(verdicts, release)
        if reason:
            after = "; ".join(faults[:5]) if faults else "nothing is wrong"
            backends.catalog.note(audit_line("verify", actor_name(), reason, before=release.id, after=after))
    lines = [f"release {release.id} ({_what(release)})", *(verdict.line for verdict in verdicts)]
    if faults:
        first = f"something is wrong: {counted(faults)}"
        last = "`python -m vista repair --dry-run`, with the same options, says what a repair does about each"
        raise RegionNotReadyError("\n".join([first, *lines, *faults, last]))
    where = "every region" if region is None else f"region {region}"
    return "\n".join([*lines, f"{where} serves the release, whole"])


def faults_in(verdicts: Sequence[Verdict], release: Release) -> list[str]:
    """Everything that is wrong with regions, a line each."""
    faults = [finding.text for verdict in verdicts for finding in verdict.findings]
    return faults + [
        f"region {verdict.region} has not passed release {release.id}: `repair` announces it again"
        for verdict in verdicts
        if verdict.state is not None and not verdict.state.serves(release.id)
    ]


def repair_regions(
    settings: Settings,
    region: str | None,
    epoch: SpaceEpoch | None,
    reason: str,
    *,
    all_bytes: bool,
    dry_run: bool,
) -> str:
    """Mend what `verify` finds: replay, else refill from the table. A log that was lost is made anew.

    Raises `RegionNotReadyError` with what is left.
    """
    with closing(open_catalog(settings.catalog_url)) as catalog:
        _released(catalog, settings)
        epochs = kept_epochs(catalog)
        if epoch and (asked := _epoch(catalog, epoch)) not in epochs:
            epochs.append(asked)
        buckets, is_lost = epochs[0].buckets, False
        try:
            open_log(settings.log_url).close()
        except NoLogError:
            is_lost = True
        if is_lost and dry_run:
            return (
                f"{settings.log_url} is lost: it would be made anew with {buckets} partitions and filled "
                f"from the table, and every bucket of {region or 'every region'} too"
            )
        with (
            closing(open_log(settings.log_url, None if dry_run else buckets)) as source,
            open_regions(settings, buckets) as stores,
        ):
            backends = narrowed(Backends(catalog, source, stores), region)
            if dry_run:
                verdicts = verify_all(backends, epochs, all_bytes=all_bytes)
                done = plan([finding for verdict in verdicts for finding in verdict.findings])
            else:
                done = repair(
                    backends, epochs, all_bytes=all_bytes, actor=actor_name(), reason=reason, new_log=is_lost
                )
    return "\n".join(done or ["nothing is wrong"])


def narrowed(backends: Backends, region: str | None) -> Backends:
    """These back ends with one region only, if one is named."""
    if region is None:
        return backends
    if region not in backends.stores:
        raise InputError(f"region {region!r} does not exist: {', '.join(backends.stores)}")
    return Backends(backends.catalog, backends.log, {region: backends.stores[region]})


def kept_epochs(catalog: Catalog) -> list[Epoch]:
    """The epoch that serves and the one that a rollback would take, unless that one is withdrawn."""
    kept: list[Epoch] = []
    for place, release in enumerate(needed_releases(catalog)):
        try:
            found = published_epoch(catalog, release.space, release.epoch)
        except EpochError as error:
            if place == 0:
                raise
            log.warning("not looked at: %s", error)
        else:
            kept += [found] if found not in kept else []
    return kept


def _epoch(catalog: Catalog, epoch: SpaceEpoch) -> Epoch:
    found = published_epoch(catalog, *epoch)
    check_not_retired(catalog, *epoch)
    return found


def _released(catalog: Catalog, settings: Settings) -> Release:
    release = current_release(catalog)
    if release is None:
        raise InputError(nothing_released(settings))
    return release


def _check_released(settings: Settings) -> None:
    """Before the log is opened: where nothing is released there may be none, which says less."""
    with closing(open_catalog(settings.catalog_url)) as catalog:
        _released(catalog, settings)


def _check_model(release: Release) -> None:
    """What cannot be read must not become what serves."""
    from vista.serve.score import load_downstream  # torch: seconds that `releases` need not wait

    load_downstream(release)


def _tell_mlflow(settings: Settings, done: ReleaseReport, dry_run: bool) -> str:
    """Move the alias of what serves. The release stands without it, so a store that is away is no failure:
    the line that says so."""
    from vista.train.registry import follow_release  # mlflow: seconds after the release, not before it

    if dry_run or not done.changed:
        return ""
    try:
        follow_release(settings)
    except BackendError as error:
        return f"\nMLflow's alias champion does not follow, until the next refresh ends: {error}"
    return ""


def _said(action: str, done: ReleaseReport, dry_run: bool) -> str:
    before = "nothing" if done.before is None else f"{done.before.id} ({_what(done.before)})"
    if done.release == done.before:
        return f"release {done.release.id} names these models already: it stays"
    would = "would replace" if dry_run else "replaces"
    name = action if dry_run else done.release.id
    return f"{name}: {_what(done.release)} {would} {before}"


def _what(release: Release) -> str:
    return f"epoch {release.epoch} of {release.space}, downstream {release.downstream}"


def _when(time_us: int) -> str:
    return f"{datetime.fromtimestamp(time_us // 1_000_000, UTC):%Y-%m-%d %H:%M:%S} UTC"


def actor_name() -> str:
    """Whom the audit names."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return f"uid {os.getuid()}"
