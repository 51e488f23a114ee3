"""The stage `promote`: the run's models and epoch become the release if the gate says so.

Not promoted is a good end too: the report says why.
"""

from vista.config import Frozen, RefreshConfig, Settings
from vista.delivery.interfaces import Release
from vista.delivery.regions import open_backends
from vista.delivery.release import ReleaseReport, current_release, promote
from vista.errors import RegionNotReadyError
from vista.runs import RunDirectory


class PromoteReport(Frozen):
    """`release` is what serves afterwards; `reasons` are the gate's, or why it was overridden."""

    promoted: bool
    reasons: tuple[str, ...]
    release: Release | None
    before: Release | None


def promote_run(config: RefreshConfig, settings: Settings) -> PromoteReport:
    """Promote what the gate lets pass. Raises `RegionNotReadyError` if a region does not take the release."""
    run = RunDirectory.open(settings.runs, config)
    gate, delivered = run.report_of("retrain_downstream")["gate"], run.report_of("deliver")
    refusals = (() if delivered["delivered"] else (delivered["reason"],)) + (
        () if gate["promote"] else tuple(gate["reasons"])
    )
    with open_backends(settings) as backends:
        if refusals:
            current = current_release(backends.catalog)
            return PromoteReport(promoted=False, reasons=refusals, release=current, before=current)
    done = promote_models(run, settings, actor=f"run {config.run_id}", reason="; ".join(gate["reasons"]))
    return PromoteReport(
        promoted=True, reasons=tuple(gate["reasons"]), release=done.release, before=done.before
    )


def promote_models(
    run: RunDirectory, settings: Settings, *, actor: str, reason: str, dry_run: bool = False
) -> ReleaseReport:
    """Promote a run's models and epoch, whatever its gate said.

    Raises `InputError` if a stage has not finished, `RegionNotReadyError` as `promote` does, and if a region
    does not serve the release afterwards.
    """
    delivered = run.report_of("deliver")
    with open_backends(settings) as backends:
        done = promote(
            backends,
            space=delivered["space"],
            epoch=delivered["epoch"],
            foundation=run.report_of("train_foundation")["checkpoint"],
            downstream=run.report_of("retrain_downstream")["downstream"],
            actor=actor,
            reason=reason,
            dry_run=dry_run,
        )
    for region, why in done.regions.items():
        raise RegionNotReadyError(
            f"release {done.release.id} is promoted, but region {region} does not serve it: {why}"
        )
    return done
