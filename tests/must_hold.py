"""The delivery's promises as a table: what their tests found, a row for each number of docs/operations.md.

A test of a promise is marked `must_hold(number)` and counts through the fixture `found`, or stands for one
round. The lines travel with the reports of the tests, also out of the processes of pytest-xdist; the table is
printed at the end, as Markdown, and written to build/faults.json.
"""

import json
import os
import platform
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

REPORT = Path(__file__).parents[1] / "build" / "faults.json"
NUMBERS = range(1, 14)
COUNTS = ("rounds", "lost", "duplicated", "mixed")
SUMMED = (*COUNTS, "seconds")


@dataclass(slots=True)
class Found:
    """What a test counted; `lost`, `duplicated` and `mixed` must be 0 wherever they are counted, and are None
    where they are not."""

    rounds: int = 0
    lost: int | None = None
    duplicated: int | None = None
    mixed: int | None = None
    slowest_s: float = 0.0  # of the one action that the test is about

    def add(self, **counted: int) -> None:
        """Add to counts, which begin with it."""
        for name, more in counted.items():
            setattr(self, name, (getattr(self, name) or 0) + more)


FOUND = pytest.StashKey[Found]()


def is_full_size() -> bool:
    return os.environ.get("VISTA_FULL_SIZE") == "1"


def note_line(item: pytest.Item, report: pytest.TestReport) -> None:
    """Attach a test's line to the report of its call, or of whatever kept it from being called."""
    marker = item.get_closest_marker("must_hold")
    if marker is not None and (report.when == "call" or not report.passed):
        line = {"must_hold": marker.args[0], "test": item.name, "held": report.passed}
        line |= asdict(item.stash.get(FOUND, Found(rounds=1))) | {"seconds": round(report.duration, 1)}
        report.user_properties.append(("must_hold", line))


def lines_of(reports: Iterable[Any]) -> Iterator[dict[str, Any]]:
    for report in reports:
        yield from (line for name, line in getattr(report, "user_properties", ()) if name == "must_hold")


def rows_of(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One for each promise that was tried: the sums of its tests, which all must have passed; None for what
    none of them counts."""
    rows = []
    for number in NUMBERS:
        mine = [line for line in lines if line["must_hold"] == number]
        if mine:
            counted = {name: [line[name] for line in mine if line[name] is not None] for name in SUMMED}
            sums = {name: sum(values) if values else None for name, values in counted.items()}
            rows.append({"must_hold": number, **sums, "held": all(line["held"] for line in mine)})
    return rows


def table_of(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The lines of a Markdown table."""
    cells = [["must hold", *COUNTS, "seconds", "held"]]
    for row in rows:
        counts = ["-" if row[name] is None else f"{row[name]:,}" for name in COUNTS]
        cells.append(
            [str(row["must_hold"]), *counts, f"{row['seconds']:,.1f}", "yes" if row["held"] else "NO"]
        )
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["| " + " | ".join(map(str.rjust, row, widths)) + " |" for row in cells]
    return [lines[0], "|" + "|".join("-" * (width + 1) + ":" for width in widths) + "|", *lines[1:]]


def show(reporter: pytest.TerminalReporter) -> None:
    """Print the table and write it, if a promise was tried."""
    lines = list(lines_of(chain.from_iterable(reporter.stats.values())))
    if not lines:
        return
    rows = rows_of(lines)
    size = "full size" if is_full_size() else "small size: times and rates are not judged"
    reporter.section(f"what must hold, {size}")
    for text in table_of(rows):
        reporter.write_line(text)
    if missing := sorted(set(NUMBERS) - {row["must_hold"] for row in rows}):
        reporter.write_line(f"not tried in this run: {', '.join(map(str, missing))}")
    report = {
        "at": time.strftime("%Y-%m-%d %H:%M:%S"),
        "machine": {"cores": os.cpu_count(), "load": os.getloadavg()[0], "python": platform.python_version()},
        "full_size": is_full_size(),
        "must_hold": rows,
        "tests": lines,
    }
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text(json.dumps(report, indent=1) + "\n")
