"""One report of an experiment that was made in parts, on several machines or days: other seeds, models or
data sets in each."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from vista.config import Frozen
from vista.errors import InputError
from vista.evaluate.bootstrap import PairedDifference
from vista.runs import read_as
from vista.train.experiments.blocks import Block
from vista.train.experiments.cell import Cell
from vista.train.experiments.grids import Experiment
from vista.train.experiments.report import BlockRows, ExperimentReport, Missing
from vista.train.tracking import flattened

T = TypeVar("T")
Key = tuple[str, str, int]
"""Block, arm and seed of a cell."""


def read_report(path: Path) -> ExperimentReport:
    """A `report.json`. Raises `InputError` for anything else."""
    return read_as(ExperimentReport, path, "give the report.json of an experiment", raising=InputError)


def join(parts: Sequence[ExperimentReport]) -> ExperimentReport:
    """The report of all cells; no folder of a machine is in it.

    Raises `InputError` unless the parts are of one experiment with the same data, recipes and code, and each
    cell is in one of them.
    """
    _same("the experiment", [part.experiment.name for part in parts])
    _same("the code", [part.code_digest for part in parts])
    cells = {_key(cell): cell for part in parts for cell in part.cells}
    if len(cells) < sum(len(part.cells) for part in parts):
        raise InputError("a cell is in two of the reports: give each part once")
    lost = {_key(one): one for part in parts for one in part.missing}
    blocks = _blocks(parts)
    seeds = sorted({seed for *_, seed in (*cells, *lost)})
    keys = [(block.name, arm.name, seed) for block in blocks for seed in seeds for arm in block.arms]
    if strange := sorted(cells.keys() - set(keys)):
        raise InputError(f"a report has a cell that its experiment does not list: {strange[0]}")
    return ExperimentReport(
        experiment=Experiment(name=parts[0].experiment.name, blocks=tuple(blocks)),
        command="; ".join(dict.fromkeys(part.command for part in parts)),
        when=max(part.when for part in parts),
        seeds=len({cell.seed for cell in cells.values()}),
        cores=min(part.cores for part in parts),
        code_digest=parts[0].code_digest,
        git_revision=", ".join(dict.fromkeys(part.git_revision for part in parts)),
        rows={block.name: _rows(block.name, parts) for block in blocks},
        cells=tuple(cells[key] for key in keys if key in cells),
        missing=tuple(lost[key] for key in keys if key in lost and key not in cells),
        paired={block.name: _paired(block.name, parts) for block in blocks},
    )


def _key(one: Cell | Missing) -> Key:
    return one.block, one.arm, one.seed


def _blocks(parts: Sequence[ExperimentReport]) -> list[Block]:
    """Every block with the arms of all parts. Raises `InputError` if one name stands for two recipes."""
    found: dict[str, Block] = {}
    for block in (block for part in parts for block in part.experiment.blocks):
        data = block.data.model_copy(update={"path": ""})
        bare = block.model_copy(update={"data": data, "arms": ()})
        before = found.get(block.name, bare)
        _alike(f"the data of {block.name}", before.model_copy(update={"arms": ()}), bare)
        arms = {arm.name: arm for arm in before.arms}
        for arm in block.arms:
            _alike(f"{arm.name} on {block.name}", arms.setdefault(arm.name, arm), arm)
        found[block.name] = bare.model_copy(update={"arms": tuple(arms.values())})
    return list(found.values())


def _alike(what: str, one: Frozen, other: Frozen) -> None:
    first, second = flattened(one), flattened(other)
    for name in sorted(first.keys() | second.keys()):
        _same(f"{name} of {what}", [first.get(name), second.get(name)])


def _rows(block: str, parts: Sequence[ExperimentReport]) -> BlockRows:
    found = [part.rows[block] for part in parts if block in part.rows]
    if not found:
        raise InputError(f"no report says how many rows {block} has")
    return _same(f"the rows of {block}", found)


def _paired(block: str, parts: Sequence[ExperimentReport]) -> dict[int, dict[str, PairedDifference]]:
    found: dict[int, dict[str, PairedDifference]] = {}
    for part in parts:
        for seed, differences in part.paired.get(block, {}).items():
            found.setdefault(seed, {}).update(differences)
    return dict(sorted(found.items()))


def _same(what: str, values: Sequence[T]) -> T:
    """The one value. Raises `InputError` if there are others."""
    for value in values:
        if value != values[0]:
            raise InputError(f"{what}: the reports differ ({values[0]} and {value}), and cannot be compared")
    return values[0]
