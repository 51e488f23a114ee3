"""The command line: `python -m vista <job>`. Options come from the job's configuration class.

Exit codes: 0 done, 1 the platform failed, 2 the input cannot be used, 130 interrupted.
"""

import json
import logging
import signal
import sys
import types
from pathlib import Path
from typing import Any, get_args

import click
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from vista.config import ExperimentConfig, Frozen, Settings
from vista.delivery.capacity import CapacityConfig, capacity
from vista.errors import InputError, VistaError
from vista.jobs import JOBS, run_job, run_stage
from vista.operator_commands import COMMANDS, with_hand, with_region

EXPERIMENTS_FILE = Path(__file__).parents[1] / "EXPERIMENTS.md"


def _option(name: str, field: FieldInfo) -> click.Option:
    kinds = [kind for kind in get_args(field.annotation) if kind is not types.NoneType]
    kind = kinds[0] if kinds and isinstance(kinds[0], type) else field.annotation
    required = field.is_required()
    default = None if required else field.get_default()
    return click.Option(
        [f"--{name.replace('_', '-')}"],
        type=kind if kind in (int, float, str) else str,
        required=required,
        help=field.description,
        show_default=str(default) if default not in (None, "") else False,
    )


def configured(config: type[Frozen], values: dict[str, Any]) -> Any:
    """`config` from the options that were given. Raises `InputError`: option, value and limit."""
    try:
        return config(**{name: value for name, value in values.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        option = "--" + "-".join(str(part) for part in first["loc"]).replace("_", "-")
        raise InputError(f"{option} {first['input']!r}: {first['msg']}") from error


def _job_command(name: str) -> click.Command:
    kind = JOBS[name].config

    def run(told: dict[str, Any] | None = None, **values: Any) -> None:
        config, settings = configured(kind, values), Settings.from_environment()
        report = run_stage(name, config, settings, **told) if told else run_job(name, config, settings)
        click.echo(json.dumps(report, indent=2))

    return click.Command(
        name,
        callback=run,
        params=[_option(*item) for item in kind.model_fields.items()],
        help=JOBS[name].help,
    )


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def commands() -> None:
    """VISTA: lifelong user histories, summarised once, served to every ranking model.

    The stages of a production refresh, which `make run` runs in this order, are prepare, train_foundation,
    export_summaries, deliver, retrain_downstream, promote and clean_up.
    """


for _name in JOBS:
    _stage = _job_command(_name)
    _forms = {"deliver": with_region, "promote": with_hand}
    commands.add_command(_forms[_name](_stage) if _name in _forms else _stage)
for _command in COMMANDS:
    commands.add_command(_command)


@commands.command("score")
@click.option("--user", required=True, help="user id")
@click.option("--candidates", required=True, help="item ids, separated by commas")
def _score(user: str, candidates: str) -> None:
    """Score items for a user with the current release, from the nearest region's store."""
    from vista.serve.score import score

    items = [item.strip() for item in candidates.split(",") if item.strip()]
    click.echo(score(Settings.from_environment(), user, items).model_dump_json(indent=2))


@commands.command("describe-events")
@click.argument("folder")
def _describe_events(folder: str) -> None:
    """Draft the mapping of a FOLDER of event files (CSV, Parquet) and show what it would reject."""
    from vista.data.sources.draft import describe_events

    click.echo(describe_events(folder), nl=False)


@commands.command(
    "experiment",
    params=[
        click.Argument(["name"]),
        *(_option(*item) for item in ExperimentConfig.model_fields.items()),
        click.Option(["--record"], is_flag=True, help="add the result to EXPERIMENTS.md"),
    ],
)
def _experiment(name: str, record: bool, **values: Any) -> None:
    """Train models on public splits and compare them, seed by seed.

    \b
    NAME                                                           --data-dir
    kuairand  VISTA beside its baselines, on one set               kuairand-pure's own folder
    table2    VISTA beside its baselines                           the folder above kuairand-pure/ and ml-1m/
    ablation  VISTA without one of its parts                       the same
    tuning    VISTA with one hyper-parameter changed               the same
    """
    # As Ctrl-C does, so that its cells and its MLflow run are ended. Not in jobs: under Ray it is Ray's own.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    from vista.train.experiments.report import append_record
    from vista.train.experiments.run import results_of, run_experiment, whereabouts

    config: ExperimentConfig = configured(ExperimentConfig, values)
    settings = Settings.from_environment()
    report = run_experiment(name, config, settings)
    if record:
        append_record(EXPERIMENTS_FILE, report.record())
    click.echo(f"{report.table()}\n\n{whereabouts(report, results_of(name, config, settings))}")


@commands.command("join-reports")
@click.argument("reports", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="folder of the whole report")
@click.option("--record", is_flag=True, help="add the result to EXPERIMENTS.md")
def _join_reports(reports: tuple[Path, ...], out: Path, record: bool) -> None:
    """Put the REPORTS (report.json) of an experiment that was made in parts together: seeds, models or sets
    by day or by machine, all by the same code on the same data."""
    from vista.train.experiments.join import join, read_report
    from vista.train.experiments.report import append_record, written_to

    report = join({str(path): read_report(path) for path in reports})
    report.write(out)
    if record:
        append_record(EXPERIMENTS_FILE, report.record())
    click.echo(f"{report.table()}\n\n{written_to(out)}")


@commands.command("compare")
@click.argument("experiment")
@click.option("--parent", default="", help="of a grid: the run whose cells are compared; default: its newest")
@click.option(
    "--reference", default="",
    help="a run, or a model of a grid (then of the same seed), that the others are compared with; default: "
    "vista, else the oldest run of the same rows and seed",
)  # fmt: skip
@click.option(
    "--metrics", default="", show_default="test_auc,test_ne,test_gauc,test_calibration",
    help="metrics to show, separated by commas; the first one sorts",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="everything, as JSON")
def _compare(experiment: str, parent: str, reference: str, metrics: str, as_json: bool) -> None:
    """Put the runs of an MLflow EXPERIMENT side by side: parameters that differ, metrics, and the paired
    differences of those that were tested on the same rows.

    EXPERIMENT is vista-foundation, vista-downstream, vista-delivery, vista-grid, which has the grids of
    Airflow's DAG experiments, or vista-experiment-NAME, which has those of `experiment NAME`.
    """
    from vista.train.compare import compare

    names = [name.strip() for name in metrics.split(",") if name.strip()]
    found = compare(Settings.from_environment(), experiment, parent, reference, names)
    click.echo(found.model_dump_json(indent=2) if as_json else found.text())


@commands.command(
    "capacity",
    params=[
        *(_option(*item) for item in CapacityConfig.model_fields.items()),
        click.Option(["--json", "as_json"], is_flag=True, help="as JSON, in bytes"),
    ],
)
def _capacity(as_json: bool, **values: Any) -> None:
    """Print what the summaries of so many users take in every place, and over what they are spread."""
    found = capacity(configured(CapacityConfig, values))
    click.echo(found.model_dump_json(indent=2) if as_json else found.text())


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code; a `VistaError` prints one message, no traceback."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s", stream=sys.stderr)
    try:
        commands.main(arguments, prog_name="python -m vista", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return 2
    except VistaError as error:
        click.echo(f"error: {error}", err=True)
        return error.exit_code
    except OSError as error:  # a place that was named for runs or back ends; sources map their own
        click.echo(f"error: {error}: it must exist or be writable, on a disk that is not full", err=True)
        return 1
    except click.Abort:
        click.echo("interrupted; the same command goes on with the run", err=True)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
