"""What operators type: releases, promotion by hand, rollback, verification. Each returns what to print."""

import getpass
import logging
import os
import signal
import threading
from contextlib import closing
from datetime import UTC, datetime
from functools import partial

from vista.config import Settings
from vista.delivery.catalog import open_catalog
from vista.delivery.deliver import published_epoch
from vista.delivery.interfaces import Epoch, Release, Store
from vista.delivery.log import open_log
from vista.delivery.promote import promote_models
from vista.delivery.readiness import RegionState, canaries_differ
from vista.delivery.regions import Backends, open_backends
from vista.delivery.release import ReleaseReport, current_release, rollback
from vista.delivery.store import open_store
from vista.delivery.worker import serve_region
from vista.errors import BackendError, InputError, RecordError, RegionNotReadyError
from vista.runs import RunDirectory
from vista.summary.table import Shard, shards_of

log = logging.getLogger(__name__)


def list_releases(settings: Settings) -> str:
    """All releases, oldest first, with who made them and why; the last one serves."""
    with closing(open_catalog(settings.catalog_url)) as catalog:
        found = catalog.releases()
        lines = {line.after: line for line in catalog.audit()}
    if not found:
        return "nothing is released yet: run `make run`"
    return "\n".join(
        f"{'*' if release is found[-1] else ' '} {release.id}  "
        f"{datetime.fromtimestamp(lines[release.id].time_us // 1_000_000, UTC):%Y-%m-%d %H:%M:%S} UTC  "
        f"{lines[release.id].action} by {lines[release.id].actor}: {lines[release.id].reason}\n"
        f"    epoch {release.epoch} of {release.space}, downstream {release.downstream}"
        for release in found
    )


def promote_by_hand(settings: Settings, run_id: str, reason: str, *, dry_run: bool) -> str:
    """Promote a run's models whatever its gate said; the audit keeps what it said.

    Raises `CheckpointError` if the model cannot be read, and what `promote_models` raises.
    """
    if not (reason.strip() or dry_run):
        raise InputError("--reason is empty: say why, the audit keeps it")
    run = RunDirectory.named(settings.runs, run_id)
    gate = run.report_of("retrain_downstream")["gate"]
    verdict = f"the gate said {'yes' if gate['promote'] else 'no'}: {'; '.join(gate['reasons'])}"
    with open_backends(settings) as backends:
        current = current_release(backends.catalog)
        promote = partial(
            promote_models,
            backends,
            run,
            actor=_actor(),
            reason=f"{reason} ({verdict})",
            instead_of=None if current is None else current.id,
        )
        done = promote(dry_run=True)
        _check_model(done.release)
        if not dry_run:
            done = promote(dry_run=False)
    return f"{_said('promote', done, dry_run)}\n{verdict}"


def roll_back(settings: Settings, to: str | None, reason: str, *, dry_run: bool) -> str:
    """Roll back.

    Raises `CheckpointError` if the earlier model cannot be read any more, `RegionNotReadyError` if a region
    does not follow (the others do).
    """
    with open_backends(settings) as backends:
        roll = partial(rollback, backends, to=to, actor=_actor(), reason=reason)
        done = roll(dry_run=True)
        _check_model(done.release)
        if not dry_run:
            done = roll(dry_run=False)
    for region, why in done.regions.items():
        raise RegionNotReadyError(f"rolled back to {done.release.id}, but region {region} lags: {why}")
    return _said("rollback", done, dry_run)


def verify(settings: Settings) -> str:
    """Does every region hold the current release's epoch? Raises `RegionNotReadyError` with all faults."""
    with open_backends(settings) as backends:
        release = current_release(backends.catalog)
        if release is None:
            raise InputError("nothing is released yet: run `make run`")
        epoch = published_epoch(backends.catalog, release.space, release.epoch)
        shards = shards_of(epoch.location, epoch.buckets)
        faults: list[str] = []
        lines = [f"release {release.id}: epoch {epoch.epoch} of {epoch.space}, {epoch.rows:,} users"]
        for name, store in backends.stores.items():
            try:
                found, line = _verify_region(backends, name, store, release, epoch, shards)
            except (BackendError, RecordError) as error:
                found, line = [f"region {name}: {error}"], f"region {name}: cannot be read"
            faults += found
            lines.append(line)
    if faults:
        raise RegionNotReadyError("\n".join([*lines, *faults]))
    return "\n".join([*lines, "every region serves the release, whole"])


def run_worker(settings: Settings, region: str) -> str:
    """Follow the log for a region until SIGTERM or SIGINT."""
    if region not in settings.region_urls:
        raise InputError(f"region {region!r} does not exist: {', '.join(settings.region_urls)}")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with (
        closing(open_log(settings.log_url)) as source,
        closing(open_store(settings.region_urls[region], source.partitions)) as store,
    ):
        log.info("region %s follows %s", region, settings.log_url)
        return serve_region(region, source, store, stop).model_dump_json(indent=2)


def _verify_region(
    backends: Backends, name: str, store: Store, release: Release, epoch: Epoch, shards: tuple[Shard, ...]
) -> tuple[list[str], str]:
    state = RegionState.of(name, store, epoch.buckets)
    report = state.report(epoch, shards, backends.log, epoch.as_of_us)
    letters = sum(len(store.dead_letters(bucket)) for bucket in range(epoch.buckets))
    faults = state.gaps(epoch, shards)
    faults += [f"region {name}: canary user {user} differs" for user in canaries_differ(epoch, store)]
    if not state.serves(release.id):
        faults.append(
            f"region {name} has not passed release {release.id}: `python -m vista rollback --to {release.id} "
            "--reason ...` announces it again"
        )
    if letters:
        faults.append(f"region {name} keeps {letters} dead letters")
    return faults, f"region {name}: coverage {report.coverage:.2%}, lag {report.lag_records} records"


def _check_model(release: Release) -> None:
    """What cannot be read must not become what serves."""
    from vista.serve.score import load_downstream  # torch: seconds that `releases` need not wait

    load_downstream(release)


def _said(action: str, done: ReleaseReport, dry_run: bool) -> str:
    before = "nothing" if done.before is None else f"{done.before.id} ({_what(done.before)})"
    if done.release == done.before:
        return f"release {done.release.id} names these models already: it stays"
    would = "would replace" if dry_run else "replaces"
    name = action if dry_run else done.release.id
    return f"{name}: {_what(done.release)} {would} {before}"


def _what(release: Release) -> str:
    return f"epoch {release.epoch} of {release.space}, downstream {release.downstream}"


def _actor() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return f"uid {os.getuid()}"
