"""The commands of operators, and their forms of the stages `deliver` and `promote`."""

from typing import Any

import click

from vista.config import RefreshConfig, Settings
from vista.errors import InputError
from vista.runs import RunDirectory

REASON_HELP = "why; the audit keeps it  [required without --dry-run]"


def _reason(text: str = REASON_HELP) -> click.Option:
    return click.Option(["--reason"], default="", help=text)


def _dry_run() -> click.Option:
    return click.Option(["--dry-run"], is_flag=True, help="show the effect, change nothing")


def _epoch(required: bool) -> list[click.Option]:
    return [
        click.Option(["--space"], required=required, help="the epoch's space"),
        click.Option(["--epoch"], type=int, required=required, help="its number"),
    ]


def _region() -> click.Option:
    return click.Option(["--region"], help="one of VISTA_REGIONS; default: all of them")


def _all_bytes() -> click.Option:
    return click.Option(
        ["--all-bytes"], is_flag=True, help="compare every record, not one of every bucket: reads everything"
    )


def check_reason(reason: str, dry_run: bool) -> None:
    """Raises `InputError` for an action without a reason."""
    if not (reason.strip() or dry_run):
        raise InputError("--reason is missing: say why, the audit keeps it")


def with_region(stage: click.Command) -> click.Command:
    """The stage `deliver`; with --region an endless worker of one region."""

    def run(region: str | None, port: int | None, **values: Any) -> None:
        if region is None:
            if port is not None:
                raise InputError("--port needs --region: the stage serves no /healthz")
            assert stage.callback is not None
            stage.callback(**values)
            return
        if given := [name for name, value in values.items() if value is not None and value is not False]:
            raise InputError(
                f"--{given[0].replace('_', '-')} belongs to the stage: leave it out with --region"
            )
        from vista.delivery.deliver_region import deliver_region

        report = deliver_region(Settings.from_environment(), region, port or 0)
        click.echo(report.model_dump_json(indent=2))

    options = [
        click.Option(["--region"], help="follow the log for this region until stopped, instead of the stage"),
        click.Option(
            ["--port"], type=click.IntRange(0, 65_535),
            help="of /healthz and /metrics on 127.0.0.1, with --region; default: a free one",
        ),
    ]  # fmt: skip
    return click.Command(stage.name, callback=run, params=[*stage.params, *options], help=stage.help)


def with_hand(stage: click.Command) -> click.Command:
    """The stage `promote`; with --reason or --dry-run an operator's own decision about a finished run."""

    def run(
        reason: str | None, dry_run: bool, approved_by: str | None, rejected_by: str | None, **values: Any
    ) -> None:
        if reason is None and not dry_run:
            if not (approved_by or rejected_by or _is_stage(values)):
                check_reason("", dry_run)
            assert stage.callback is not None
            decided = {"approved_by": approved_by, "rejected_by": rejected_by}
            stage.callback(told={name: person for name, person in decided.items() if person}, **values)
            return
        if approved_by or rejected_by:
            raise InputError("--approved-by and --rejected-by belong to the stage: leave out --reason")
        from vista.serve.operations import promote_by_hand

        check_reason(reason or "", dry_run)
        if not values["run_id"]:
            raise InputError("--run-id is missing: name the run whose models to promote")
        settings = Settings.from_environment()
        click.echo(promote_by_hand(settings, values["run_id"], reason or "", dry_run=dry_run))

    by_hand = "promote a finished run by hand, whatever its gate said: why (kept in the audit)"
    options = [
        click.Option(["--reason"], help=by_hand),
        _dry_run(),
        click.Option(["--approved-by"], help="who approved this promotion: the audit keeps it"),
        click.Option(["--rejected-by"], help="who rejected this promotion: nothing is promoted"),
    ]
    return click.Command(stage.name, callback=run, params=[*stage.params, *options], help=stage.help)


def _is_stage(values: dict[str, Any]) -> bool:
    """Whether a run can have been started with just these values of the stage `promote`: who names a run of
    other values alone wants to promote it by hand."""
    given = {name: value for name, value in values.items() if value is not None}
    if set(given) != {"run_id"}:
        return True
    run = RunDirectory.named(Settings.from_environment().runs, given["run_id"])
    return run.config_file.exists() and run.config() == RefreshConfig(**given)


@click.command("releases")
def releases() -> None:
    """List every release, who made it and why; * serves."""
    from vista.serve.operations import list_releases

    click.echo(list_releases(Settings.from_environment()))


@click.command("audit")
def audit() -> None:
    """List what operators and runs did: when, who, what and why."""
    from vista.serve.operations import list_audit

    click.echo(list_audit(Settings.from_environment()))


@click.command("rollback", params=[_reason(), _dry_run()])
@click.option("--to", help="a release's id; default: the one before what serves")
def rollback(to: str | None, reason: str, dry_run: bool) -> None:
    """Make an earlier release serve again; possible while promotion is frozen, too."""
    from vista.serve.operations import roll_back

    check_reason(reason, dry_run)
    click.echo(roll_back(Settings.from_environment(), to, reason, dry_run=dry_run))


@click.command("freeze", params=[_reason(), _dry_run()])
def freeze(reason: str, dry_run: bool) -> None:
    """Promote nothing until `unfreeze`, neither by a run nor by hand."""
    _freeze(reason, on=True, dry_run=dry_run)


@click.command("unfreeze", params=[_reason(), _dry_run()])
def unfreeze(reason: str, dry_run: bool) -> None:
    """End what `freeze` began."""
    _freeze(reason, on=False, dry_run=dry_run)


def _freeze(reason: str, *, on: bool, dry_run: bool) -> None:
    from vista.serve.operations import freeze

    check_reason(reason, dry_run)
    click.echo(freeze(Settings.from_environment(), reason, on=on, dry_run=dry_run))


@click.command("withdraw", params=[*_epoch(required=True), _reason(), _dry_run()])
def withdraw(space: str, epoch: int, reason: str, dry_run: bool) -> None:
    """Mark a published epoch as bad, for ever: nothing trains on it or delivers it any more."""
    from vista.serve.operations import withdraw_epoch

    check_reason(reason, dry_run)
    click.echo(withdraw_epoch(Settings.from_environment(), (space, epoch), reason, dry_run=dry_run))


@click.command("retire", params=[*_epoch(required=True), _reason(), _dry_run()])
def retire(space: str, epoch: int, reason: str, dry_run: bool) -> None:
    """Delete an epoch, and the space's earlier ones, from every region; the table keeps them."""
    from vista.serve.operations import retire_epoch

    check_reason(reason, dry_run)
    click.echo(retire_epoch(Settings.from_environment(), (space, epoch), reason, dry_run=dry_run))


@click.command(
    "verify",
    params=[
        _region(),
        *_epoch(required=False),
        _all_bytes(),
        _reason("why; the audit keeps it and the verdict"),
    ],
)
def verify(region: str | None, space: str | None, epoch: int | None, all_bytes: bool, reason: str) -> None:
    """Compare the regions with the table; by default what serves and what a rollback would take."""
    from vista.serve.operations import verify

    settings = Settings.from_environment()
    click.echo(verify(settings, region, _space_epoch(space, epoch), reason.strip(), all_bytes=all_bytes))


@click.command("repair", params=[_region(), *_epoch(required=False), _all_bytes(), _reason(), _dry_run()])
def repair(
    region: str | None, space: str | None, epoch: int | None, all_bytes: bool, reason: str, dry_run: bool
) -> None:
    """Mend what `verify` finds: replay from the log, else refill from the table."""
    from vista.serve.operations import repair_regions

    check_reason(reason, dry_run)
    done = repair_regions(
        Settings.from_environment(), region, _space_epoch(space, epoch), reason, all_bytes=all_bytes,
        dry_run=dry_run,
    )  # fmt: skip
    click.echo(done)


def _bucket() -> click.Option:
    return click.Option(["--bucket"], type=int, help="one of them; default: all")


@click.command("dead-letters", params=[_region(), _bucket()])
@click.option("--save", help="a folder for their bytes, a file each")
def dead_letters(region: str | None, bucket: int | None, save: str | None) -> None:
    """List records that regions could not apply, why, and whether they can be applied now."""
    from vista.serve.letters import list_letters

    click.echo(list_letters(Settings.from_environment(), region, bucket, save))


@click.command("replay-letters", params=[_region(), _bucket(), _reason(), _dry_run()])
def replay_letters(region: str | None, bucket: int | None, reason: str, dry_run: bool) -> None:
    """Send the dead letters that can be applied now through the log again; the others stay."""
    from vista.serve.letters import replay_letters

    check_reason(reason, dry_run)
    click.echo(replay_letters(Settings.from_environment(), region, bucket, reason, dry_run=dry_run))


@click.command("delete-letters", params=[_region(), _bucket(), _reason(), _dry_run()])
def delete_letters(region: str | None, bucket: int | None, reason: str, dry_run: bool) -> None:
    """Delete dead letters, for ever: nobody needs their bytes any more."""
    from vista.serve.letters import delete_letters

    check_reason(reason, dry_run)
    click.echo(delete_letters(Settings.from_environment(), region, bucket, reason, dry_run=dry_run))


@click.command("prune", params=[_reason(), _dry_run()])
@click.option(
    "--days", type=click.IntRange(1), required=True, help="runs in which nothing was written for so long"
)
def prune(days: int, reason: str, dry_run: bool) -> None:
    """Delete the data and weights of old runs; their reports and logs stay, and so does all that serves."""
    from vista.serve.prune import prune

    check_reason(reason, dry_run)
    click.echo(prune(Settings.from_environment(), days, reason, dry_run=dry_run))


def _space_epoch(space: str | None, epoch: int | None) -> tuple[str, int] | None:
    if (space is None) != (epoch is None):
        raise InputError("--space and --epoch name an epoch together: give both, or neither")
    return None if space is None or epoch is None else (space, epoch)


COMMANDS = (
    releases, audit, rollback, freeze, unfreeze, withdraw, retire, verify, repair,
    dead_letters, replay_letters, delete_letters, prune,
)  # fmt: skip
