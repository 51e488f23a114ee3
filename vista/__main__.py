"""The command line: `python -m vista <job>`. Options come from the job's configuration class.

Exit codes: 0 done, 1 the platform failed, 2 the input cannot be used.
"""

import json
import logging
import sys
import types
from typing import Any, get_args

import click
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from vista.config import Frozen, RefreshConfig, Settings
from vista.errors import InputError, VistaError
from vista.jobs import STAGES, run_stage


def _option(name: str, field: FieldInfo) -> click.Option:
    kinds = [kind for kind in get_args(field.annotation) if kind is not types.NoneType]
    kind = kinds[0] if kinds and isinstance(kinds[0], type) else field.annotation
    return click.Option(
        [f"--{name.replace('_', '-')}"],
        type=kind if kind in (int, float, str) else str,
        required=field.is_required(),
        help=field.description,
        default=None,
        show_default=str(field.get_default()) if field.get_default() not in (None, "") else False,
    )


def configured(config: type[Frozen], values: dict[str, Any]) -> Any:
    """`config` from the options that were given. Raises `InputError`: option, value and limit."""
    try:
        return config(**{name: value for name, value in values.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        option = "--" + "-".join(str(part) for part in first["loc"]).replace("_", "-")
        raise InputError(f"{option} {first['input']!r}: {first['msg']}") from error


def _stage_command(name: str) -> click.Command:
    def run(**values: Any) -> None:
        config: RefreshConfig = configured(RefreshConfig, values)
        click.echo(json.dumps(run_stage(name, config, Settings.from_environment()), indent=2))

    return click.Command(
        name,
        callback=run,
        params=[_option(*item) for item in RefreshConfig.model_fields.items()],
        help=STAGES[name].help,
    )


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def commands() -> None:
    """VISTA: lifelong user histories, summarised once, served to every ranking model.

    The first seven commands are the stages of a production refresh, in order; `make run` runs them all.
    """


for _name in STAGES:
    commands.add_command(_stage_command(_name))


@commands.command("describe-events")
@click.argument("folder")
def _describe_events(folder: str) -> None:
    """Draft the mapping of a FOLDER of event files (CSV, Parquet) and show what it would reject."""
    from vista.data.sources.draft import describe_events

    click.echo(describe_events(folder), nl=False)


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code; a `VistaError` prints one message, no traceback."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s", stream=sys.stderr)
    try:
        commands.main(arguments, prog_name="python -m vista", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return 2
    except InputError as error:
        click.echo(f"error: {error}", err=True)
        return 2
    except VistaError as error:
        click.echo(f"error: {error}", err=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
