"""The report of one refresh: report.json for programs, report.html for people, a table for the terminal."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from vista.evaluate.bootstrap import Interval
from vista.evaluate.refresh_report import ModelFigures, RefreshReport, StageSeconds
from vista.runs import read_as, write_whole

__all__ = ["RefreshReport", "StageSeconds", "print_table", "read_report", "write_report"]

TEMPLATE = "report.html.jinja"
REPORT_PAGE, REPORT_FILE = "report.html", "report.json"


def write_report(directory: Path, report: RefreshReport) -> None:
    """Write report.json and report.html into `directory`, each whole or not at all."""
    write_whole(directory / REPORT_PAGE, render(report))
    write_whole(directory / REPORT_FILE, report.model_dump_json(indent=2))


def read_report(directory: Path) -> RefreshReport:
    """The report that `write_report` left in `directory`. Raises `StageError` if it is damaged."""
    remedy = "delete stages/clean_up.json of the run, then `make run RESUME=1` writes it again"
    return read_as(RefreshReport, directory / REPORT_FILE, remedy)


def render(report: RefreshReport) -> str:
    """The page: one file without script or address, every picture inline."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"figure": figure, "difference": difference, "duration": duration}
    best = {
        "auc": max((one.auc for one in report.models.values()), default=None),
        "ne": min((one.ne for one in report.models.values()), default=None),
        "log_loss": min((one.log_loss for one in report.models.values()), default=None),
        "gauc": max((one.gauc for one in report.models.values() if one.gauc is not None), default=None),
    }
    return environment.get_template(TEMPLATE).render(
        report=report,
        best=best,
        tasks=other_tasks(report),
        pictures=_pictures(report),
        verdict=verdict(report),
        reasons=reasons(report),
    )


def verdict(report: RefreshReport) -> str:
    """One sentence: was this run promoted, and what serves now."""
    serving = f"release {report.release}" if report.release else "no release"
    if report.promoted:
        return f"Promoted: {serving} now serves epoch {report.epoch} of space {report.space}."
    return (
        f"Not promoted: {serving} keeps serving." if report.release else "Not promoted: nothing serves yet."
    )


def reasons(report: RefreshReport) -> list[str]:
    """Why the run was promoted or not; then baselines with a better AUC, which the gate does not look at."""
    better = [
        f"{name} ranks better than {one.reference}: AUC {difference(one.auc)}"
        for name, one in report.paired.items()
        if one.auc.low > 0 and not name.startswith("vista_")
    ]
    return [*report.reasons, *better]


def figure(value: float | None, digits: int = 4) -> str:
    """A figure of `digits` decimals; a dash stands for none.

    >>> figure(0.7321), figure(None)
    ('0.7321', '-')
    """
    return "-" if value is None else f"{value:.{digits}f}"


def difference(one: Interval) -> str:
    """A difference with its interval.

    >>> difference(Interval(point=0.01, low=-0.002, high=0.022))
    '+0.0100 (-0.0020 .. +0.0220)'
    """
    return f"{one.point:+.4f} ({one.low:+.4f} .. {one.high:+.4f})"


def counted(number: int, noun: str) -> str:
    """A number of things for people.

    >>> counted(0, "cell"), counted(1, "cell"), counted(2, "cell")
    ('0 cells', '1 cell', '2 cells')
    """
    return f"{number} {noun}{'' if number == 1 else 's'}"


def duration(seconds: float | None) -> str:
    """Seconds for people; a dash stands for none.

    >>> duration(7.3), duration(125), duration(90_061), duration(None)
    ('7.3 s', '2 min 5 s', '1 d 1 h', '-')
    """
    if seconds is None:
        return "-"
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for large, size, small, part in (("d", 86_400, "h", 3_600), ("h", 3_600, "min", 60)):
        if whole >= size:
            return f"{whole // size} {large} {whole % size // part} {small}"
    return f"{whole // 60} min {whole % 60} s"


def print_table(report: RefreshReport) -> str:
    """The report as text for a terminal: models, regions, stages, verdict, where to look."""
    models = [
        (name, figure(one.auc), figure(one.ne), figure(one.gauc), figure(one.calibration, 3), _trained(one))
        for name, one in report.models.items()
    ]
    if report.oracle_auc is not None:
        models.append(("(oracle)", figure(report.oracle_auc), "-", "-", "-", "the true probabilities"))
    tasks = other_tasks(report)
    others = [
        (name, *(figure(one.other_auc.get(task)) for task in tasks))
        for name, one in report.models.items()
        if one.other_auc
    ]
    regions = [
        (name, f"{one.coverage:.2%}", f"{one.lag_records:,}", duration(one.oldest_summary_age_s))
        for name, one in report.regions.items()
    ]
    stages = [(one.name, duration(one.seconds)) for one in report.stages]
    if report.install_s is not None:
        stages.insert(0, ("(installation)", duration(report.install_s)))
    stages.append(("all stages", duration(sum(one.seconds for one in report.stages))))
    parts = [
        f"{report.dataset}: {report.rows:,} events of {report.users:,} users; "
        f"tested on {report.test_rows:,} rows of the last day (clock: {report.clock})",
        text_table(("model", "AUC", "NE", "GAUC", "calibr.", "trained on"), models, left=(0, 5)),
        *([text_table(("AUC of", *tasks), others, left=(0,))] if others else []),
        text_table(("region", "coverage", "lag", "oldest summary"), regions, left=(0,)),
        text_table(("stage", "time"), stages, left=(0,)),
        "\n".join((verdict(report), *(f"  - {reason}" for reason in reasons(report)))),
        f"space    {report.space}, epoch {report.epoch}\n"
        f"MLflow   {report.mlflow.url}, run {report.mlflow.run_id}",
    ]
    return "\n\n".join(parts)


def other_tasks(report: RefreshReport) -> tuple[str, ...]:
    """The tasks after the first that some model was measured on, in their order."""
    return tuple(dict.fromkeys(task for one in report.models.values() for task in one.other_auc))


def _trained(one: ModelFigures) -> str:
    on = one.trained_on
    return f"days {on.first_day} .. {on.end_day - 1}, {on.rows:,} rows"


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int]) -> str:
    """Columns as wide as their widest cell, two spaces apart; those in `left` are left-aligned."""
    lines = [tuple(header), *(tuple(row) for row in rows)]
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]

    def aligned(line: Sequence[str]) -> str:
        cells = enumerate(zip(line, widths, strict=True))
        return "  ".join(
            cell.ljust(width) if at in left else cell.rjust(width) for at, (cell, width) in cells
        ).rstrip()

    return "\n".join(
        [aligned(lines[0]), "  ".join("-" * width for width in widths), *map(aligned, lines[1:])]
    )


def _pictures(report: RefreshReport) -> Mapping[str, Markup]:
    """Empty where there is nothing to show."""
    from vista.evaluate import figures  # matplotlib takes a second to import, and readers need no pictures

    drawn: dict[str, Any] = {
        "paired": report.paired and figures.paired_differences(report.paired),
        "curves": report.curves and figures.training_curves(report.curves),
        "calibration": report.calibration and figures.calibration(report.calibration),
        "summary_map": report.summary_map and figures.summary_map(report.summary_map),
    }
    return {name: Markup(svg or "") for name, svg in drawn.items()}
