"""The stage `promote`: the run's models and epoch become the release if the gate says so.

Not promoted is a good end too, also while promotion is frozen: the report says why.
"""

from vista.config import Frozen, RefreshConfig, Settings
from vista.delivery.audit import audit_line
from vista.delivery.freeze import freeze_reason
from vista.delivery.interfaces import Catalog, Release
from vista.delivery.kept_reports import release_since
from vista.delivery.regions import Backends, open_backends
from vista.delivery.release import ReleaseReport, current_release, promote
from vista.errors import RegionNotReadyError
from vista.runs import RunDirectory


class PromoteReport(Frozen):
    """`release` is what serves afterwards; `reasons` are the gate's, or why it was overridden.
    `new_foundation`: it released one that the run has trained, not one that was released before."""

    promoted: bool
    reasons: tuple[str, ...]
    release: Release | None
    before: Release | None
    new_foundation: bool


def promote_run(
    config: RefreshConfig, settings: Settings, *, approved_by: str = "", rejected_by: str = ""
) -> PromoteReport:
    """Promote what the gate lets pass, unless a person rejected it; the audit keeps who decided. What has
    served and was replaced, after an earlier attempt, is not brought back.

    Raises `RegionNotReadyError` if a region does not take the release.
    """
    run = RunDirectory.open(settings.runs, config)
    retrained, delivered = run.report_of("retrain_downstream"), run.report_of("deliver")
    gate = retrained["gate"]
    gate_refusals = () if gate["promote"] else tuple(gate["reasons"])
    not_delivered = "" if delivered["delivered"] else delivered["reason"]
    rejected = f"rejected by {rejected_by}" if rejected_by else ""
    reasons = (*gate["reasons"], *([f"approved by {approved_by}"] if approved_by else []))
    with open_backends(settings) as backends:
        if rejected:
            backends.catalog.note(audit_line("reject", rejected_by, f"promotion of run {config.run_id}"))
        refused = (rejected, freeze_reason(backends.catalog), not_delivered, _replaced(run, backends.catalog))
        if refusals := tuple(filter(None, (*refused, *gate_refusals))):
            current = current_release(backends.catalog)
            return PromoteReport(
                promoted=False, reasons=refusals, release=current, before=current, new_foundation=False
            )
        done = promote_models(
            backends,
            run,
            actor=f"run {config.run_id}",
            reason="; ".join(reasons),
            instead_of=retrained["champion"]["release"],
        )
    return PromoteReport(
        promoted=True,
        reasons=reasons,
        release=done.release,
        before=done.before,
        new_foundation=not run.report_of("train_foundation").get("adopted", False),
    )


def _replaced(run: RunDirectory, catalog: Catalog) -> str:
    """What has replaced the release of an earlier attempt, a rollback for one, in words; empty if nothing."""
    own, current = release_since(run, catalog), current_release(catalog)
    if own is None or current is None or current.downstream == own.downstream:
        return ""
    return f"release {own.id} had these models, and {current.id} has replaced it"


def promote_models(
    backends: Backends,
    run: RunDirectory,
    *,
    actor: str,
    reason: str,
    instead_of: str | None,
    dry_run: bool = False,
) -> ReleaseReport:
    """Promote a run's models and epoch, whatever its gate said.

    Raises `InputError` if a stage has not finished, `RegionNotReadyError` and `ReleaseConflictError` as
    `promote` does, and if a region does not serve the release afterwards.
    """
    delivered = run.report_of("deliver")
    done = promote(
        backends,
        space=delivered["space"],
        epoch=delivered["epoch"],
        foundation=run.report_of("train_foundation")["checkpoint"],
        downstream=run.report_of("retrain_downstream")["downstream"],
        actor=actor,
        reason=reason,
        instead_of=instead_of,
        dry_run=dry_run,
    )
    for region, why in done.regions.items():
        raise RegionNotReadyError(
            f"release {done.release.id} is promoted, but region {region} does not serve it: {why}"
        )
    return done
