"""One report of an experiment that was made in parts, on several machines or days: other seeds, models or
data sets in each."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from vista.config import Frozen
from vista.errors import InputError
from vista.evaluate.bootstrap import PairedDifference
from vista.runs import read_as
from vista.train.experiments.blocks import Arm, Block
from vista.train.experiments.cell import Cell
from vista.train.experiments.grids import Experiment
from vista.train.experiments.report import BlockRows, ExperimentReport, Missing
from vista.train.tracking import flattened

T = TypeVar("T")
F = TypeVar("F", bound=Frozen)
Key = tuple[str, str, int]
"""Block, arm and seed of a cell."""

MADE_ALIKE = (
    "parts must be made by the same code, from the same data: make the older one again, by the command in it"
)


def read_report(path: Path) -> ExperimentReport:
    """A `report.json`. Raises `InputError` for anything else."""
    return read_as(ExperimentReport, path, "give the report.json of an experiment", raising=InputError)


def join(files: Mapping[str, ExperimentReport]) -> ExperimentReport:
    """The report of all cells; no folder of a machine is in it. `files` are the parts by their file's name.

    Raises `InputError` unless the parts are of one experiment with the same data, recipes and code, and each
    cell is in one of them.
    """
    _same("the experiment", {file: part.experiment.name for file, part in files.items()}, "join each alone")
    _same("the code", {file: part.code_digest for file, part in files.items()})
    cells = _cells(files)
    parts = list(files.values())
    lost = {_key(one): one for part in parts for one in part.missing}
    blocks = _blocks(files)
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
        rows={block.name: _rows(block.name, files) for block in blocks},
        cells=tuple(cells[key] for key in keys if key in cells),
        missing=tuple(lost[key] for key in keys if key in lost and key not in cells),
        paired={block.name: _paired(block.name, parts) for block in blocks},
    )


def _key(one: Cell | Missing) -> Key:
    return one.block, one.arm, one.seed


def _cells(files: Mapping[str, ExperimentReport]) -> dict[Key, Cell]:
    """Raises `InputError` if one is in two parts."""
    cells, file_of = dict[Key, Cell](), dict[Key, str]()
    for file, part in files.items():
        for cell in part.cells:
            key = _key(cell)
            if key in cells:
                raise InputError(
                    f"{key[0]}, {key[1]}, seed {key[2]} is in {file_of[key]} and in {file}: give reports "
                    "that share no cell"
                )
            cells[key], file_of[key] = cell, file
    return cells


def _blocks(files: Mapping[str, ExperimentReport]) -> list[Block]:
    """Every block with the arms of all parts. Raises `InputError` if one name stands for two recipes."""
    blocks, arms = dict[str, dict[str, Block]](), dict[str, dict[str, dict[str, Arm]]]()
    for file, part in files.items():
        for block in part.experiment.blocks:
            data = block.data.model_copy(update={"path": ""})
            blocks.setdefault(block.name, {})[file] = block.model_copy(update={"data": data, "arms": ()})
            arms_of = arms.setdefault(block.name, {})
            for arm in block.arms:
                arms_of.setdefault(arm.name, {})[file] = arm
    return [
        _alike(f"the data of {name}", bare).model_copy(
            update={"arms": tuple(_alike(f"{arm} on {name}", found) for arm, found in arms[name].items())}
        )
        for name, bare in blocks.items()
    ]


def _alike(what: str, files: Mapping[str, F]) -> F:
    """The one value, compared field by field."""
    flat = {file: flattened(value) for file, value in files.items()}
    for name in sorted({name for fields in flat.values() for name in fields}):
        _same(f"{name} of {what}", {file: fields.get(name) for file, fields in flat.items()})
    return next(iter(files.values()))


def _rows(block: str, files: Mapping[str, ExperimentReport]) -> BlockRows:
    found = {file: part.rows[block] for file, part in files.items() if block in part.rows}
    if not found:
        raise InputError(f"no report says how many rows {block} has")
    return _same(f"the rows of {block}", found)


def _paired(block: str, parts: Sequence[ExperimentReport]) -> dict[int, dict[str, PairedDifference]]:
    found: dict[int, dict[str, PairedDifference]] = {}
    for part in parts:
        for seed, differences in part.paired.get(block, {}).items():
            found.setdefault(seed, {}).update(differences)
    return dict(sorted(found.items()))


def _same(what: str, files: Mapping[str, T], remedy: str = MADE_ALIKE) -> T:
    """The one value. Raises `InputError` if there are others, with the first files that differ."""
    first, expected = next(iter(files.items()))
    for file, value in files.items():
        if value != expected:
            raise InputError(f"{what} differs: {expected} in {first}, {value} in {file}: {remedy}")
    return expected
