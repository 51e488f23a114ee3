"""What an experiment found: the tables, the claims that they carry, and the files that hold them."""

import csv
import io
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean, stdev

from vista.config import Frozen
from vista.evaluate.bootstrap import Interval, PairedDifference
from vista.evaluate.grid_figure import Panel, save_figure
from vista.evaluate.report import counted, duration
from vista.runs import write_whole
from vista.train.experiments.blocks import Block
from vista.train.experiments.cell import Cell
from vista.train.experiments.grids import REFERENCE, Experiment

MAX_INT8_MOVE = 5e-4
"""By how much AUC may differ with summaries as they are delivered, in int8."""


MIN_SWAPPED_ERROR = 0.05
"""By what share another user's summary has to raise the reconstruction error."""


REPORTED = (".json", ".csv", ".md", ".png", ".svg")
"""The files of a report."""


class Missing(Frozen):
    """A cell that there is not, and why; `failed` unless it only took too long."""

    block: str
    arm: str
    seed: int
    why: str
    failed: bool


class BlockRows(Frozen):
    """The rows of a block's parts, and the test rows' users and positives."""

    train: int
    valid: int
    test: int
    test_users: int
    test_positives: int
    data_digest: str


class ExperimentReport(Frozen):
    """`paired` is every arm minus `vista` on the same rows: block -> seed -> arm; `code_digest` covers what a
    cell imports, `git_revision` is only a record."""

    experiment: Experiment
    command: str
    when: str
    seeds: int
    cores: int
    code_digest: str
    git_revision: str
    rows: dict[str, BlockRows]
    cells: tuple[Cell, ...]
    missing: tuple[Missing, ...]
    paired: dict[str, dict[int, dict[str, PairedDifference]]]

    def of(self, block: str, arm: str) -> list[Cell]:
        """The cells of one arm, by seed."""
        found = [cell for cell in self.cells if (cell.block, cell.arm) == (block, arm)]
        return sorted(found, key=lambda cell: cell.seed)

    def differences(self, block: str, arm: str) -> list[Interval]:
        """VISTA's AUC minus the arm's, by seed."""
        found = [paired[arm].auc for paired in self.paired.get(block, {}).values() if arm in paired]
        return [Interval(point=-one.point, low=-one.high, high=-one.low) for one in found]

    def table(self) -> str:
        """All blocks as Markdown, and what they took."""
        blocks = ["\n".join(self._block_lines(block)) for block in self.experiment.blocks]
        return "\n\n".join([*blocks, self._took()])

    def _took(self) -> str:
        seconds = [cell.seconds for cell in self.cells] or [0.0]
        whole, longest = duration(sum(seconds)), duration(max(seconds))
        return f"{counted(len(self.cells), 'cell')}: {whole} of one thread, the longest {longest}."

    def _block_lines(self, block: Block) -> Iterator[str]:
        rows = self.rows[block.name]
        yield f"### {block.data_set}, {'ids only' if block.inputs == 'ids' else 'all features'}"
        yield ""
        yield (
            f"{rows.train:,} / {rows.valid:,} / {rows.test:,} rows train / validate / test "
            f"({rows.test_users:,} users, {rows.test_positives / rows.test:.1%} positive); {self._seeds()}; "
            "95% intervals of a paired bootstrap over users, from the lowest to the highest of the seeds"
        )
        yield ""
        yield "| model | valid. AUC | AUC | NE | GAUC | VISTA's AUC minus it | VISTA is | rows/s | s |"
        yield "|---|---|---|---|---|---|---|---|---|"
        for arm in block.arms:
            if not arm.permuted_labels:
                yield self._line(block.name, arm.name)
        yield from (f"\n{line}" for line in self._probe_lines(block))
        lost = [one for one in self.missing if one.block == block.name]
        yield from (f"\nMissing: {one.arm}, seed {one.seed}: {one.why}" for one in lost)

    def _line(self, block: str, arm: str) -> str:
        cells = self.of(block, arm)
        if not cells:
            return f"| {arm} |" + " - |" * 8
        differences = self.differences(block, arm)
        trained = [cell.training for cell in cells if cell.training is not None]
        columns = [
            arm,
            spread([one.valid_auc for one in trained]),
            spread([cell.metrics.auc for cell in cells]),
            spread([cell.metrics.ne for cell in cells]),
            spread([cell.metrics.gauc for cell in cells if cell.metrics.gauc is not None]),
            _hull(differences) if differences else "",
            verdict(differences, self.seeds) if differences else "",
            f"{fmean(one.rows_per_s for one in trained):,.0f}" if trained else "-",
            f"{fmean(cell.seconds for cell in cells):.1f}",
        ]
        return f"| {' | '.join(columns)} |"

    def _probe_lines(self, block: Block) -> Iterator[str]:
        """What the cells of a block prove beside their place in the table."""
        for arm in block.arms:
            probed = [cell for cell in self.of(block.name, arm.name) if cell.probes is not None]
            if probed:
                intact = fmean(cell.metrics.auc for cell in probed)
                removed = fmean(cell.probes.removed_auc for cell in probed if cell.probes)
                moved = max(abs(cell.metrics.auc - cell.probes.int8_auc) for cell in probed if cell.probes)
                yield (
                    f"{arm.name} without the user's summary (zeros): AUC {removed:.4f} instead of "
                    f"{intact:.4f}. int8 summaries move it by at most {moved:.1e} "
                    f"({_holds(moved <= MAX_INT8_MOVE)} {MAX_INT8_MOVE:.0e})."
                )
                errors = [cell.probes.swapped_error for cell in probed if cell.probes]
                if raised := [error for error in errors if error is not None]:
                    yield (
                        f"{arm.name} with another user's summary: the reconstruction error rises by "
                        f"{min(raised):.1%} at least (wanted: {MIN_SWAPPED_ERROR:.0%})."
                    )
        yield from self._other_tasks(block)
        rows = self.rows[block.name]
        limit = 3 * auc_error(rows.test_positives, rows.test)
        for arm in (arm for arm in block.arms if arm.permuted_labels):
            areas = [cell.metrics.auc for cell in self.of(block.name, arm.name)]
            if areas:
                inside = all(abs(area - 0.5) <= limit for area in areas)
                yield (
                    f"Trained and tested on permuted labels: AUC {', '.join(f'{one:.4f}' for one in areas)} "
                    f"({_holds(inside)} three standard errors of .50: {limit:.4f}; it shows leaks through "
                    "rows, order or evaluation, not through features or histories)."
                )

    def _other_tasks(self, block: Block) -> Iterator[str]:
        """Test AUC of the tasks that models learn beside the measured one."""
        for task in block.data.tasks[1:]:
            areas = {
                arm.name: [
                    cell.other_auc[task] for cell in self.of(block.name, arm.name) if task in cell.other_auc
                ]
                for arm in block.arms
            }
            if any(areas.values()):
                listed = ", ".join(f"{arm} {spread(found)}" for arm, found in areas.items() if found)
                yield f"{task}, learned beside it: AUC {listed}."

    def record(self) -> str:
        """The dated row of EXPERIMENTS.md."""
        parts = []
        for block in self.experiment.blocks:
            arms = [arm.name for arm in block.arms if self.of(block.name, arm.name)]
            figures = [f"{arm} {self._areas(block.name, arm)}" for arm in arms]
            claims = [
                f"{verdict(self.differences(block.name, arm), self.seeds)} {arm}"
                for arm in arms
                if len(self.differences(block.name, arm)) > 1
            ]
            parts.append(
                f"{block.name}: validation / test AUC {', '.join(figures)}. "
                + (f"VISTA is {', '.join(claims)}. " if claims else "")
                + " ".join(self._probe_lines(block))
            )
        lost = f" Missing: {counted(len(self.missing), 'cell')}." if self.missing else ""
        parts.append(self._took())
        return f"| {self.when} | `{self.command}`, {self.cores} cores | {' '.join(parts)}{lost} |"

    def _areas(self, block: str, arm: str) -> str:
        cells = self.of(block, arm)
        valid = spread([cell.training.valid_auc for cell in cells if cell.training is not None])
        return f"{valid} / {spread([cell.metrics.auc for cell in cells])}"

    def csv(self) -> str:
        """A row per cell; differences are the cell's model minus `vista`."""
        rows = [self._csv_row(cell) for cell in self.cells]
        text = io.StringIO()
        writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)))
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()

    def _csv_row(self, cell: Cell) -> dict[str, object]:
        row: dict[str, object] = {"block": cell.block, "arm": cell.arm, "seed": cell.seed}
        row |= cell.metrics.model_dump() | {"seconds": cell.seconds}
        row |= {f"{task}_auc": found for task, found in cell.other_auc.items()}
        for part in (cell.training, cell.probes):
            row |= part.model_dump(exclude_none=True) if part is not None else {}
        paired = self.paired.get(cell.block, {}).get(cell.seed, {}).get(cell.arm)
        if paired is not None:
            for metric, one in (("auc", paired.auc), ("ne", paired.ne)):
                row |= {f"{metric}_minus_{REFERENCE}": one.point, f"{metric}_low": one.low}
                row |= {f"{metric}_high": one.high}
        return row

    def _seeds(self) -> str:
        return f"mean +- sd of {self.seeds} seeds" if self.seeds > 1 else "one seed"

    def panels(self) -> list[Panel]:
        """AUC and NE of every block, for the picture."""
        found = []
        for block in self.experiment.blocks:
            arms = [arm.name for arm in block.arms if not arm.permuted_labels]
            measured = {arm: self.of(block.name, arm) for arm in arms if self.of(block.name, arm)}
            for metric in ("auc", "ne") if measured else ():
                values = {
                    arm: [getattr(cell.metrics, metric) for cell in cells] for arm, cells in measured.items()
                }
                found.append(
                    Panel(
                        title=f"{block.name}, n = {self.rows[block.name].test:,}",
                        label=f"{metric.upper()} ({self._seeds()})",
                        values=values,
                    )
                )
        return found

    def write(self, directory: Path) -> None:
        """report.json, cells.csv, table.md, and the picture as PNG and SVG if there is anything to draw."""
        write_whole(directory / "cells.csv", self.csv())
        write_whole(directory / "table.md", self.table() + "\n")
        if panels := self.panels():
            save_figure(panels, directory / "table")
        write_whole(directory / "report.json", self.model_dump_json(indent=2))


def report_files(directory: Path) -> list[Path]:
    """Those that `ExperimentReport.write` has written."""
    return sorted(path for path in directory.iterdir() if path.suffix in REPORTED)


def written_to(directory: Path) -> str:
    """Where a report lies, for people."""
    return f"written to {directory}: {', '.join(path.name for path in report_files(directory))}"


def auc_error(positives: int, rows: int) -> float:
    """Standard error of the AUC of scores that know nothing (Mann-Whitney).

    >>> round(auc_error(50, 100), 4)
    0.058
    """
    return math.sqrt((rows + 1) / (12 * positives * (rows - positives)))


def verdict(differences: Sequence[Interval], seeds: int) -> str:
    """What the intervals of VISTA minus another allow to say; better needs every seed, and so does not below.

    >>> verdict([Interval(point=0.1, low=0.05, high=0.2), Interval(point=0.1, low=-0.05, high=0.2)], seeds=2)
    'not below'
    """
    if seeds < 2:
        return "one seed, no claim"
    below = sum(one.high < 0 for one in differences)
    if below:
        return f"below ({below} of {len(differences)} seeds)"
    if len(differences) < seeds:
        return f"{len(differences)} of {seeds} seeds, no claim"
    return "better than" if all(one.low > 0 for one in differences) else "not below"


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation over seeds.

    >>> spread([0.25, 0.75]), spread([0.5]), spread([])
    ('0.5000 +- 0.3536', '0.5000', '-')
    """
    if not values:
        return "-"
    return f"{fmean(values):.4f}" + (f" +- {stdev(values):.4f}" if len(values) > 1 else "")


def append_record(path: Path, row: str) -> None:
    """Put a row at the end of the table that ends the file."""
    text = path.read_text(encoding="utf-8").rstrip("\n")
    write_whole(path, f"{text}\n{row}\n")


def _hull(differences: Sequence[Interval]) -> str:
    low, high = min(one.low for one in differences), max(one.high for one in differences)
    return f"{fmean(one.point for one in differences):+.4f} ({low:+.4f} .. {high:+.4f})"


def _holds(true: bool) -> str:
    return "within" if true else "BEYOND"
