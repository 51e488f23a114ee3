"""Training throughput: our DIN beside FuxiCTR's own, on the same rows of KuaiRand-Pure's public split.

    python -m vista.train.bench --data-dir path/to/kuairand-pure --peer path/to/python

The peer's interpreter is one that has FuxiCTR (`make bench-train` makes it). Both train one epoch with one
thread, batches of 512, width 32 and the same decay of the learning rate, one after the other. FuxiCTR is
tried with several numbers of loading processes, with the events' items and actions, which ours reads, and
with the items alone, its own habit; each ratio is to its fastest. Prints a table and writes JSON.
"""

import json
import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import fmean

import click
from pydantic import computed_field

from vista.config import Frozen
from vista.data.dataset import Dataset
from vista.errors import StageError, VistaError
from vista.runs import write_whole
from vista.train.experiments.cell import CODE, Cell, CellJob, Training, read_cell
from vista.train.experiments.fingerprint import ROOT, code_digest
from vista.train.experiments.grids import kuairand
from vista.train.experiments.pool import ONE_THREAD, make_cells
from vista.train.experiments.run import CELL_LIMIT_S, prepared
from vista.train.experiments.splits import Rows
from vista.train.fuxictr_data import recipe_of, write_fuxictr_data

LOG = logging.getLogger(__name__)

PEER = ROOT / "infra" / "fuxictr" / "train_din.py"
PEER_WORKERS = (0, 1, 2)
"""Loading processes beside the one that trains; 0: it loads its batches itself."""


class PeerRun(Frozen):
    """One training of FuxiCTR's DIN."""

    actions: bool
    seed: int
    workers: int
    train_s: float
    rows_per_s: float
    auc: float
    log_loss: float
    parameters: int
    fuxictr: str
    torch: str


class Throughput(Frozen):
    """Both sides, run by run."""

    cores: int
    ours: tuple[Cell, ...]
    peer: tuple[PeerRun, ...]

    @computed_field
    def ratio(self) -> float:
        """How many times as many rows per second ours trains, at its slowest, as the peer at its fastest on
        the same inputs."""
        return self._ratio(actions=True)

    @computed_field
    def ratio_to_items_alone(self) -> float:
        """The same, to a peer that is not told what users did with the items."""
        return self._ratio(actions=False)

    @computed_field
    def auc_lead(self) -> float:
        """Our mean test AUC minus the mean of the peer's better kind of input."""
        kinds = [[one.auc for one in self.peer if one.actions == actions] for actions in (False, True)]
        return fmean(cell.metrics.auc for cell in self.ours) - max(map(fmean, kinds))

    @computed_field
    def wait_share(self) -> float:
        """The largest share of its time that our training stood still for its data."""
        return max(one.wait_share for one in self._trainings())

    def table(self) -> str:
        """For a terminal, as Markdown."""
        lines = ["| DIN | rows/s | test AUC | log-loss |", "|---|---|---|---|"]
        for cell, one in zip(self.ours, self._trainings(), strict=True):
            figures = f"{one.rows_per_s:,.0f} | {cell.metrics.auc:.4f} | {cell.metrics.log_loss:.4f}"
            lines.append(f"| ours, seed {cell.seed} | {figures} |")
        for run in self.peer:
            inputs = "items and actions" if run.actions else "items"
            figures = f"{run.rows_per_s:,.0f} | {run.auc:.4f} | {run.log_loss:.4f}"
            lines.append(f"| FuxiCTR, {inputs}, {run.workers} loaders, seed {run.seed} | {figures} |")
        return "\n".join(
            [
                *lines,
                "",
                f"ours / FuxiCTR's fastest: {self.ratio:.2f} x rows/s on the same inputs, "
                f"{self.ratio_to_items_alone:.2f} x to items alone; AUC {self.auc_lead:+.4f}; "
                f"waits for data {self.wait_share:.2%} of the time",
            ]
        )

    def _ratio(self, *, actions: bool) -> float:
        fastest = max(one.rows_per_s for one in self.peer if one.actions == actions)
        return min(one.rows_per_s for one in self._trainings()) / fastest

    def _trainings(self) -> list[Training]:
        return [cell.training for cell in self.ours if cell.training is not None]


def compare(data_dir: Path, peer: Path, seeds: int, scratch: Path) -> Throughput:
    """Train both with every seed. Raises `StageError` if one of them fails."""
    block = kuairand(data_dir).blocks[0]
    arm = next(arm for arm in block.arms if arm.name == "din")
    path = prepared(block.data, scratch)
    dataset = Dataset.open(path)
    rows = Rows.of(dataset, block.split)
    folders = {actions: scratch / f"fuxictr-{actions}" for actions in (False, True)}
    for actions, folder in folders.items():
        write_fuxictr_data(folder, dataset, rows, recipe_of(block, arm), actions=actions)
    ours, theirs = [], []
    for seed in range(seeds):
        directory = scratch / f"ours-{seed}"
        job = CellJob(
            block=block, arm=arm, seed=seed, dataset=path, code=code_digest(CODE), directory=directory
        )
        ours.append(_ours(job))
        theirs += [
            _theirs(peer, folder, actions, workers, seed)
            for actions, folder in folders.items()
            for workers in PEER_WORKERS
        ]
    return Throughput(cores=os.cpu_count() or 1, ours=tuple(ours), peer=tuple(theirs))


def _ours(job: CellJob) -> Cell:
    ((_, code),) = make_cells({job: 1.0}, workers=1, limit_s=CELL_LIMIT_S)
    if code != 0:
        raise StageError(f"{job.title}: exit code {code}: see the traceback above")
    cell = read_cell(job.directory)
    LOG.info("%s: %s", job.title, cell.training)
    return cell


def _theirs(peer: Path, folder: Path, actions: bool, workers: int, seed: int) -> PeerRun:
    command = [str(peer), str(PEER), str(folder), str(workers), str(seed)]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | ONE_THREAD, check=False
    )
    if done.returncode != 0:
        raise StageError(f"FuxiCTR's training failed with exit code {done.returncode}: see its output above")
    run = PeerRun(actions=actions, seed=seed, **json.loads(done.stdout.splitlines()[-1]))
    LOG.info("fuxictr: %s", run)
    return run


@click.command()
@click.option(
    "--data-dir", required=True, type=click.Path(exists=True, path_type=Path), help="KuaiRand-Pure's folder"
)
@click.option(
    "--peer", required=True, type=click.Path(exists=True, path_type=Path), help="a Python that has FuxiCTR"
)
@click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True, help="6 minutes each")
@click.option("--out", type=click.Path(path_type=Path), default=Path("build/bench-train.json"))
def main(data_dir: Path, peer: Path, seeds: int, out: Path) -> None:
    """Compare, and write the result."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    with tempfile.TemporaryDirectory() as scratch:
        try:
            found = compare(data_dir.absolute(), peer.absolute(), seeds, Path(scratch))
        except VistaError as error:
            click.echo(f"error: {error}", err=True)
            sys.exit(error.exit_code)
    write_whole(out, found.model_dump_json(indent=2))
    click.echo(found.table())
    click.echo(f"written to {out}")


if __name__ == "__main__":
    main()
