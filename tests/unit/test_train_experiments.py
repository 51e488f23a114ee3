"""`experiment kuairand` and `table2`: the public splits, cells that are made once, and what they prove."""

import csv
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from mlflow import MlflowClient
from mlflow.entities import Run
from training_data import prepare_small

from infra.processes import adopt_orphans, descendants, wait_until
from vista.__main__ import commands
from vista.config import ExperimentConfig, ModelConfig, Settings, TrainConfig
from vista.data.batches import batches
from vista.data.dataset import Dataset
from vista.data.files import checksum
from vista.errors import InputError, StageError
from vista.evaluate.bootstrap import Interval
from vista.evaluate.metrics import auc
from vista.model.inputs import tensors
from vista.model.ranker import Ranker, VistaHistory
from vista.train import bench
from vista.train.compare import compare
from vista.train.experiments.blocks import UserSplit
from vista.train.experiments.cell import CODE, CellJob, put, read_cell
from vista.train.experiments.fingerprint import ROOT, code_digest, imported_files
from vista.train.experiments.grids import (
    EXPERIMENTS,
    SLOTS,
    Experiment,
    ablation,
    experiment_of,
    kuairand,
    table2,
    tuning,
)
from vista.train.experiments.join import join, read_report
from vista.train.experiments.pool import COMMAND, make_cells
from vista.train.experiments.probes import as_stored, swapped_error, through_summary
from vista.train.experiments.report import ExperimentReport, append_record, verdict
from vista.train.experiments.run import command_of, prepared, run_experiment, whereabouts
from vista.train.experiments.splits import Rows
from vista.train.loop import batch_plan, history_forward, other_auc, predict
from vista.train.state import STATE_FILE

HEADER = (
    "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,is_hate,long_view,"
    "play_time_ms,duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,is_rand,tab\n"
)
DATES = (20220504, 20220505, 20220506, 20220507, 20220508)
START_MS = 1_651_636_800_000  # 2022-05-04 12:00 in Beijing
DAY_MS = 86_400_000


@pytest.fixture(scope="module")
def data_dir_kuairand(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty users, each with four impressions a day; every third one is clicked."""
    folder = tmp_path_factory.mktemp("sources") / "kuairand-pure"
    folder.mkdir()
    rows = []
    for day, date in enumerate(DATES):
        for user in range(20):
            for number in range(4):
                click = int((user + number + day) % 3 == 0)
                time_ms = START_MS + day * DAY_MS + (4 * user + number) * 1_000
                rows.append(
                    f"{user},{(7 * user + number) % 9},{date},1200,{time_ms},{click},0,0,0,0,0,{click},1500,"
                    "20000,0,0,0,0,1\n"
                )
    (folder / "log_standard_pure.csv").write_text(HEADER + "".join(rows))
    return folder


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """One MLflow store for all tests: making one takes seconds."""
    home = tmp_path_factory.mktemp("home")
    return Settings.from_environment({"VISTA_HOME": str(home), "VISTA_RUNS": str(home / "runs")})


@pytest.fixture(scope="module")
def small(data_dir_kuairand: Path, settings: Settings) -> tuple[ExperimentReport, Path]:
    """Three models, one seed."""
    config = ExperimentConfig(
        data_dir=str(data_dir_kuairand), seeds=1, models="vista,mean_pool,vista_permuted"
    )
    return run_experiment("kuairand", config, settings), settings.runs / "experiments" / "kuairand"


def test_cells_are_made_once(small: tuple[ExperimentReport, Path], settings: Settings) -> None:
    first, directory = small
    assert [(cell.arm, cell.metrics.rows) for cell in first.cells] == [
        ("vista", 160), ("mean_pool", 160), ("vista_permuted", 160),
    ]  # fmt: skip
    kept = {path: path.stat().st_mtime_ns for path in (directory / "cells").iterdir()}
    assert len(kept) == 3
    config = ExperimentConfig(
        data_dir=first.experiment.blocks[0].data.path, seeds=1, models="no_history,vista,mean_pool"
    )
    second = run_experiment("kuairand", config, settings)
    assert [cell for cell in second.cells if cell.arm != "no_history"] == list(first.cells[:2])
    assert all(path.stat().st_mtime_ns == written for path, written in kept.items())
    assert ExperimentReport.model_validate_json((directory / "report.json").read_text()) == second
    assert set(second.paired["kuairand-pure ids"][0]) == {"mean_pool", "no_history"}
    assert whereabouts(second, directory).splitlines() == [
        f"written to {directory}: cells.csv, report.json, table.md, table.png, table.svg",
        "the table has 3 cells; 1 more in cells/, of earlier commands, code or data, are kept and not in it",
        "compare: python -m vista compare vista-experiment-kuairand",
    ]


def test_parts_are_joined(data_dir_kuairand: Path, settings: Settings, tmp_path: Path) -> None:
    """Seeds and models apart, then together: the same report as at once, but for seconds and folders."""
    data_dir = str(data_dir_kuairand)

    def made(name: str, **options: Any) -> Path:
        config = ExperimentConfig(data_dir=data_dir, out=str(tmp_path / name), **options)
        run_experiment("kuairand", config, settings)
        return tmp_path / name / "report.json"

    both = ExperimentReport.model_validate_json(made("both", models="vista,din", seeds=2).read_text())
    parts = [made(f"seed-{one}", models="vista,din", seeds=1, first_seed=one) for one in (1, 0)]
    alone = made("alone", models="no_history", seeds=1)
    joined = join({str(path): read_report(path) for path in (*parts, alone)})
    (block,) = joined.experiment.blocks
    assert ([arm.name for arm in block.arms], block.data.path) == (["vista", "din", "no_history"], "")
    assert [(cell.seed, cell.arm) for cell in joined.cells] == [
        (0, "vista"), (0, "din"), (0, "no_history"), (1, "vista"), (1, "din"),
    ]  # fmt: skip
    assert joined.paired == both.paired
    assert [cell.metrics for cell in joined.cells if cell.arm != "no_history"] == [
        cell.metrics for cell in both.cells
    ]
    assert (joined.seeds, joined.rows) == (2, both.rows)
    assert "mean +- sd of 2 seeds" in joined.table()
    one = read_report(parts[0])
    (block,) = one.experiment.blocks
    shorter = block.model_copy(update={"data": block.data.model_copy(update={"max_uih": 7})})
    model = block.arms[0].model.model_copy(update={"seeds": 3})
    smaller = block.model_copy(update={"arms": (block.arms[0].model_copy(update={"model": model}),)})
    others = [
        one.model_copy(update={"experiment": Experiment(name="kuairand", blocks=(other,))})
        for other in (shorter, smaller)
    ]
    refusals = {
        "kuairand-pure ids, no_history, seed 0 is in a.json and in b.json: give": [
            joined,
            read_report(alone),
        ],
        "data.max_uih of the data of kuairand-pure ids differs: 200 in a.json, 7 in b.json": [
            read_report(parts[1]),
            others[0],
        ],
        "model.seeds of vista on kuairand-pure ids differs: 16 in a.json, 3 in b.json": [
            read_report(parts[1]),
            others[1],
        ],
        "the code differs: .* in a.json, other in b.json: .* same code.*: make the older one again": [
            both,
            joined.model_copy(update={"code_digest": "other"}),
        ],
        "the experiment differs: kuairand in a.json, table2 in b.json: join each alone": [
            both,
            joined.model_copy(update={"experiment": Experiment(name="table2", blocks=())}),
        ],
    }
    for said, refused in refusals.items():
        with pytest.raises(InputError, match=said):
            join(dict(zip(("a.json", "b.json"), refused, strict=True)))
    (tmp_path / "no-report.json").write_text("{}")
    with pytest.raises(InputError, match=r"no-report.json cannot be read .*give the report.json"):
        read_report(tmp_path / "no-report.json")


def one_bit_changed(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-3] ^= 4  # of the last score: another number, read without complaint
    file.write_bytes(content)


def another_area(file: Path) -> None:
    content = file.read_text()
    figure = content.index('"auc": 0.') + len('"auc": 0.')
    digit = "8" if content[figure] == "7" else "7"
    file.write_text(content[:figure] + digit + content[figure + 1 :])


def cut_off(file: Path) -> None:
    os.truncate(file, 100)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("scores.npy", cut_off),
        ("scores.npy", one_bit_changed),
        ("scores.npy", Path.unlink),
        ("cell.json", cut_off),
        ("cell.json", another_area),
    ],
)
def test_a_damaged_cell_is_made_again(
    small: tuple[ExperimentReport, Path],
    settings: Settings,
    caplog: pytest.LogCaptureFixture,
    name: str,
    damage: Callable[[Path], None],
) -> None:
    first, directory = small
    (damaged,) = (directory / "cells").glob("*-mean_pool-0-*")
    scores = (damaged / "scores.npy").read_bytes()
    damage(damaged / name)
    data_dir = first.experiment.blocks[0].data.path
    config = ExperimentConfig(data_dir=data_dir, seeds=1, models="mean_pool")
    report = run_experiment("kuairand", config, settings)
    assert str(damaged) in caplog.text
    assert (damaged / "scores.npy").read_bytes() == scores
    assert report.cells[0].scores_checksum == checksum(damaged / "scores.npy")


def test_a_cell_is_put_whole_or_not_at_all(small: tuple[ExperimentReport, Path], tmp_path: Path) -> None:
    """The disk takes no more in the middle; then another process has made the same cell meanwhile."""
    report, _ = small
    cell, place = report.cells[0], tmp_path / "cells" / "one"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4_096, limits[1]))
        with pytest.raises(OSError, match=r"10000 requested and \d+ written"):
            put(place, cell, np.zeros(10_000, np.float32))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(place.parent.iterdir())
    first = put(place, cell, np.zeros(10, np.float32))
    put(place, cell, np.ones(10, np.float32))
    assert [path.name for path in place.parent.iterdir()] == ["one"]
    assert checksum(place / "scores.npy") == first.scores_checksum


def test_a_cell_of_changed_code_is_refused(small: tuple[ExperimentReport, Path], tmp_path: Path) -> None:
    """It would be kept under the digest of the code before."""
    report, directory = small
    block = report.experiment.blocks[0]
    (dataset,) = (path for path in directory.glob("data-*") if path.is_dir())
    job = CellJob(
        block=block, arm=block.arms[0], seed=0, dataset=dataset, code="0" * 16, directory=tmp_path / "cell"
    )
    (tmp_path / "job.json").write_text(job.model_dump_json() + "\n")
    with (tmp_path / "job.json").open() as told:
        done = subprocess.run(
            COMMAND, stdin=told, stderr=subprocess.PIPE, cwd=ROOT, text=True, check=False, timeout=300
        )
    assert done.returncode == 1
    assert "kuairand-pure ids, vista, seed 0: the code was changed" in done.stderr
    assert not (tmp_path / "cell").exists()


def test_a_cell_goes_on_after_its_last_epoch(small: tuple[ExperimentReport, Path], tmp_path: Path) -> None:
    """kill -9 after an epoch: the same weights as in one go, and no state is left."""
    report, directory = small
    block = report.experiment.blocks[0]
    train = block.arms[1].train.model_copy(update={"epochs": 200, "patience": 200})
    arm = block.arms[1].model_copy(update={"train": train})
    (dataset,) = (path for path in directory.glob("data-*") if path.is_dir())

    def job_in(name: str) -> CellJob:
        place = tmp_path / name / "cell"
        return CellJob(block=block, arm=arm, seed=0, dataset=dataset, code=code_digest(CODE), directory=place)

    whole, parts = job_in("whole"), job_in("parts")
    with subprocess.Popen(COMMAND, stdin=subprocess.PIPE, cwd=ROOT, stderr=subprocess.DEVNULL) as process:
        assert process.stdin is not None
        process.stdin.write(parts.model_dump_json().encode() + b"\n")
        process.stdin.flush()
        assert wait_until(lambda: parts.last_epoch() is not None, 300.0, every_s=0.01), "no epoch ended"
        process.kill()
    assert not parts.directory.exists()
    damaged = parts.unfinished / "epoch-999"
    shutil.copytree(parts.last_epoch() or damaged, damaged)
    cut_off(damaged / STATE_FILE)
    assert dict(make_cells({whole: 1.0, parts: 1.0}, workers=2, limit_s=500.0)) == {whole: 0, parts: 0}
    assert [path.name for path in parts.directory.parent.iterdir()] == ["cell"]
    found, expected = (read_cell(job.directory) for job in (parts, whole))
    assert (found.scores_checksum, found.metrics) == (expected.scores_checksum, expected.metrics)
    assert found.training is not None
    assert expected.training is not None
    assert (found.training.epochs, found.training.valid_auc) == (200, expected.training.valid_auc)
    assert found.seconds > found.training.train_s


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("test -e $1 && exit; touch $1; mkdir -p $0/epoch-001; exec sleep 600", 0),
        ("exec sleep 600", None),
        ("mkdir -p $0/epoch-001; sleep 4; rm -r $0; sleep 0.5", 0),  # whole, with its states cleared away
    ],
)
def test_a_process_at_its_limit_is_followed_by_another_if_it_got_on(
    small: tuple[ExperimentReport, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    script: str,
    code: int | None,
) -> None:
    """A shell stands in for the training: it ends an epoch, or none, and hangs until it is killed."""
    block = small[0].experiment.blocks[0]
    place = tmp_path / "cells" / "one"
    job = CellJob(block=block, arm=block.arms[0], seed=0, dataset=tmp_path, code="", directory=place)
    command = ("sh", "-c", script, str(job.unfinished), str(tmp_path / "began"))
    monkeypatch.setattr("vista.train.experiments.pool.COMMAND", command)
    assert list(make_cells({job: 1.0}, workers=1, limit_s=6.0)) == [(job, code)]


def test_a_process_that_ends_before_it_reads_its_job_is_one_cell_missing(
    small: tuple[ExperimentReport, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As one that the kernel kills at once: the job, longer than a pipe holds, meets a closed pipe."""
    block = small[0].experiment.blocks[0]
    job = CellJob(
        block=block,
        arm=block.arms[0],
        seed=0,
        dataset=tmp_path,
        code="c" * 100_000,
        directory=tmp_path / "one",
    )
    monkeypatch.setattr("vista.train.experiments.pool.COMMAND", ("sh", "-c", "exit 3"))
    other = job.model_copy(update={"seed": 1})
    caplog.set_level("INFO")
    assert list(make_cells({job: 1.0, other: 1.0}, workers=1, limit_s=6.0)) == [(job, 3), (other, 3)]
    first, last = caplog.messages
    assert re.fullmatch(r"1 of 2 cells, about \d\.\d s left", first)
    assert last == "2 of 2 cells"


def test_a_changed_reader_prepares_the_data_again(data_dir_kuairand: Path, tmp_path: Path) -> None:
    data = kuairand(data_dir_kuairand).blocks[0].data
    before = prepared(data, tmp_path)
    assert prepared(data, tmp_path) == before
    code = {"vista.data.prepare": "same", "vista.data.sources.kuairand": "changed"}
    with pytest.MonkeyPatch.context() as changed:
        changed.setattr("vista.train.experiments.run.code_digest", code.__getitem__)
        assert prepared(data, tmp_path) != before


def test_two_experiments_prepare_one_data_set(data_dir_kuairand: Path, tmp_path: Path) -> None:
    """At once, in one folder: one makes it, the others wait."""
    data = kuairand(data_dir_kuairand).blocks[0].data
    with ProcessPoolExecutor(3, mp_context=get_context("spawn")) as processes:
        paths = list(processes.map(prepared, [data] * 3, [tmp_path / "out"] * 3))
    assert len(set(paths)) == 1
    assert [path.name for path in (tmp_path / "out").iterdir()] == [paths[0].name]
    assert Dataset.open(paths[0]).info.candidates == 400


def test_impressions_of_one_moment_do_not_see_each_other(data_dir_kuairand: Path, tmp_path: Path) -> None:
    """As the public split has it: the log rows with a smaller `time_ms`; and a row is of the part that its
    date says, be it another than that of a row of the same moment."""
    log = (data_dir_kuairand / "log_standard_pure.csv").read_text()
    row = log.splitlines()[-1].split(",")
    other = ",".join([row[0], str((int(row[1]) + 1) % 9), "20220505", *row[3:]])
    (tmp_path / "log_standard_pure.csv").write_text(f"{log}{other}\n")
    block = kuairand(tmp_path).blocks[0]
    dataset = Dataset.open(prepared(block.data, tmp_path))
    rows = Rows.of(dataset, block.split)
    for part in (rows.train, rows.valid, rows.test):
        newest_E = part.history_start_E + part.history_length_E - 1
        some_E = part.history_length_E > 0
        assert (part.events.event_time_us_N[newest_E] < part.cut_us_E)[some_E].all()
    assert (len(rows.train), len(rows.test)) == (4 * 20 * 2 + 1, 4 * 20 * 2)
    assert rows.train.history_length_E.max() == rows.test.history_length_E.max() == 4 * len(DATES) - 1


def test_a_part_without_both_labels_is_refused_before_anything_is_trained(
    data_dir_kuairand: Path, settings: Settings, tmp_path: Path
) -> None:
    header, *lines = (data_dir_kuairand / "log_standard_pure.csv").read_text().splitlines(keepends=True)
    without_validation = [line for line in lines if line.split(",")[2] != "20220506"]
    (tmp_path / "log_standard_pure.csv").write_text("".join([header, *without_validation]))
    config = ExperimentConfig(data_dir=str(tmp_path), out=str(tmp_path / "out"))
    with pytest.raises(InputError, match="kuairand-pure ids: 0 of the 0 validation rows are positive"):
        run_experiment("kuairand", config, settings)
    assert not (tmp_path / "out" / "cells").exists()


def test_a_cell_ends_with_its_launcher(small: tuple[ExperimentReport, Path], tmp_path: Path) -> None:
    """kill -9 of the launcher: no cell goes on, and none is half made."""
    first, _ = small
    command = [
        sys.executable, "-m", "vista", "experiment", "kuairand", "--models", "vista", "--seeds", "2",
        "--data-dir", first.experiment.blocks[0].data.path, "--out", str(tmp_path / "out"),
    ]  # fmt: skip
    places = {"VISTA_HOME": str(tmp_path / "home"), "VISTA_RUNS": str(tmp_path / "runs")}
    adopt_orphans()
    with subprocess.Popen(command, cwd=ROOT, env=os.environ | places, stderr=subprocess.DEVNULL) as launcher:
        assert wait_until(lambda: bool(cells_below(os.getpid())), 120.0), "no cell started"
        running = cells_below(os.getpid())
        launcher.kill()
    assert wait_until(lambda: not running & cells_below(os.getpid()), 120.0), "a cell outlived its launcher"


def cells_below(pid: int) -> set[int]:
    """Processes that make a cell now; a zombie has no command line."""
    words = {one: Path(f"/proc/{one}/cmdline") for one in descendants(pid)}
    return {one for one, file in words.items() if file.exists() and b"experiments.cell" in file.read_bytes()}


def test_a_report_is_a_table_a_csv_and_two_pictures(
    small: tuple[ExperimentReport, Path], tmp_path: Path
) -> None:
    report, _ = small  # whose own folder has the report of the newest experiment in it
    table = report.table()
    lines = [line.split(" | ")[0] for line in table.splitlines() if line.startswith("| ")]
    assert lines == ["| model", "| vista", "| mean_pool"]
    assert "160 / 80 / 160 rows train / validate / test (20 users" in table
    first, second, third = (
        cell.model_copy(update={"seconds": s}) for s, cell in zip((1.5, 59.0, 3.0), report.cells, strict=True)
    )
    one, three = (report.model_copy(update={"cells": cells}) for cells in ((first,), (first, second, third)))
    assert one.table().endswith("\n1 cell: 1.5 s of one thread, the longest 1.5 s.")
    assert three.table().endswith("\n3 cells: 1 min 4 s of one thread, the longest 59.0 s.")
    assert "vista without the user's summary (zeros)" in table
    assert "vista_permuted without" not in table
    assert "Trained and tested on permuted labels" in table
    assert "it shows leaks through rows, order or evaluation, not through features or histories" in table
    rows = list(csv.DictReader(report.csv().splitlines()))
    assert [float(row["auc"]) for row in rows] == [cell.metrics.auc for cell in report.cells]
    assert rows[1]["auc_minus_vista"] != rows[0]["auc_minus_vista"] == ""
    report.write(tmp_path)
    assert (tmp_path / "table.png").read_bytes().startswith(b"\x89PNG")
    assert "mean_pool" in (tmp_path / "table.svg").read_text()


def test_only_vista_is_probed(small: tuple[ExperimentReport, Path]) -> None:
    report, _ = small
    vista, mean_pool, permuted = report.cells
    assert vista.probes is not None
    assert mean_pool.probes is None
    assert permuted.probes is None
    assert abs(vista.probes.int8_auc - vista.metrics.auc) < 0.05
    for cell in report.cells:
        assert cell.training is not None
        assert cell.training.epochs == 1
        assert 0 < cell.training.wait_share < 1
        assert cell.training.rows_per_s == pytest.approx(160 / cell.training.train_s)


def test_mlflow_has_a_run_per_cell_below_one(data_dir_kuairand: Path, settings: Settings) -> None:
    """Each command has its own grid, with all of its cells, those that were kept too; repeated, the same."""
    config = ExperimentConfig(
        data_dir=str(data_dir_kuairand), seeds=1, models="mean_pool,vista,vista_permuted"
    )
    client = MlflowClient(settings.mlflow_url)

    def below(name: str) -> list[Run]:
        experiment = client.get_experiment_by_name("vista-experiment-kuairand")
        runs = client.search_runs([experiment.experiment_id])
        (grid,) = (run for run in runs if run.data.params.get("models") == name)
        return [run for run in runs if run.data.tags.get("mlflow.parentRunId") == grid.info.run_id]

    report = run_experiment("kuairand", config, settings)
    first = below(config.models)
    run_experiment("kuairand", config, settings)
    assert {run.info.run_id for run in below(config.models)} == {run.info.run_id for run in first}
    assert {run.info.status for run in first} == {"FINISHED"}
    cells = {run.data.tags["vista.model"]: run for run in first}
    assert set(cells) == {"vista", "mean_pool", "vista_permuted"}
    for cell in report.cells:
        run = cells[cell.arm]
        assert (run.info.run_name, run.data.params["train.seed"]) == (f"kuairand-pure-ids-{cell.arm}-0", "0")
        assert run.data.metrics["test_auc"] == cell.metrics.auc
        assert run.data.tags["vista.data_digest"] == report.rows[cell.block].data_digest
        assert run.data.tags["vista.git_revision"] == report.git_revision
    kept = {file.path for file in client.list_artifacts(cells["vista"].info.run_id)}
    assert kept == {"cell", "config.json", "figures", "scores.parquet"}


def test_compare_has_the_intervals_of_the_report(
    small: tuple[ExperimentReport, Path], settings: Settings
) -> None:
    report, _ = small
    found = compare(settings, "vista-experiment-kuairand")
    names = [found.parent, *found.other_parents]
    runs = [run for name in names for run in compare(settings, found.experiment, parent=name).runs]
    pooled = [run for run in runs if run.model == "mean_pool" and run.difference is not None]
    assert pooled
    expected = report.paired["kuairand-pure ids"][0]["mean_pool"]
    for run in pooled:
        assert run.reference == "kuairand-pure-ids-vista-0"
        assert run.difference is not None
        for metric in ("auc", "ne"):  # beside other models the sums have another order
            interval = getattr(run.difference, metric).model_dump()
            assert interval == pytest.approx(getattr(expected, metric).model_dump(), abs=1e-9)
    (why,) = {run.why for run in runs if run.model == "vista_permuted"}
    assert why == "it kept no scores"


def test_lightgbm_is_an_arm(data_dir_kuairand: Path, settings: Settings) -> None:
    config = ExperimentConfig(
        data_dir=str(data_dir_kuairand.parent), sets="kuairand-pure", models="lightgbm,din", seeds=1
    )
    report = run_experiment("table2", config, settings)
    of_ids, din, lightgbm = report.cells
    assert (lightgbm.block, lightgbm.arm, lightgbm.training) == ("kuairand-pure features", "lightgbm", None)
    assert "| lightgbm | " in report.table()
    assert of_ids.other_auc == lightgbm.other_auc == {}
    (task,) = din.other_auc  # nobody likes anything here
    assert f"long_view, learned beside it: AUC din {din.other_auc[task]:.4f}." in report.table()
    assert f"{task}_auc" in report.csv()


def test_each_task_is_measured_on_its_own_scores_and_labels(data_dir_kuairand: Path, tmp_path: Path) -> None:
    block = table2(data_dir_kuairand.parent).blocks[1]
    assert block.data.tasks == ("is_click", "long_view", "is_like")
    dataset = Dataset.open(prepared(block.data, tmp_path))
    rows = Rows.of(dataset, block.split)
    torch.manual_seed(0)
    ranker = Ranker(block.arms[0].model, dataset.spec(rows.known_until_us()), "no_history").eval()
    plan = batch_plan(rows.test, TrainConfig(), max_uih=200)
    (batch,) = batches(plan)
    with torch.inference_mode():
        logits_CT = ranker(tensors(batch, "cpu")).logits_CT.numpy()
    areas = [auc(batch.labels_CT[:, 1], logits_CT[:, task]) for task in (0, 1)]
    assert areas[0] != areas[1]
    nobody_likes_anything = {"long_view": areas[1]}
    scores_CT = predict(ranker, history_forward(ranker), plan, dataset.info.candidates)
    assert other_auc(block.data.tasks, rows.test, scores_CT) == nobody_likes_anything


def test_a_cell_over_its_limit_is_reported(
    data_dir_kuairand: Path, settings: Settings, tmp_path: Path
) -> None:
    """Python itself takes longer to start."""
    config = ExperimentConfig(data_dir=str(data_dir_kuairand), seeds=1, models="din", out=str(tmp_path))
    report = run_experiment("kuairand", config, settings, limit_s=0.01)
    assert [(one.arm, one.failed) for one in report.missing] == [("din", False)]
    assert "Missing: din, seed 0: no epoch done in" in report.table()
    assert not (tmp_path / "cells").exists()


@pytest.mark.parametrize(
    ("number", "from_a_terminal"), [(signal.SIGINT, False), (signal.SIGINT, True), (signal.SIGTERM, False)]
)
def test_an_interrupted_experiment_leaves_no_process(
    data_dir_kuairand: Path, tmp_path: Path, number: signal.Signals, from_a_terminal: bool
) -> None:
    """The signal reaches the experiment alone, as from a scheduler, or its group, as from a terminal, while
    its cells stand still: it must not wait for one of them to end. Nobody shows a traceback, and no MLflow
    run stays open."""
    command = [sys.executable, "-m", "vista", "experiment", "kuairand", "--data-dir", str(data_dir_kuairand)]
    environment = os.environ | {"VISTA_HOME": str(tmp_path / "home"), "VISTA_RUNS": str(tmp_path / "runs")}
    running = subprocess.Popen(
        command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert running.stderr is not None
    try:
        assert wait_until(lambda: len(descendants(running.pid)) >= 2, timeout_s=120), "no cells were started"
        cells = descendants(running.pid)
        assert not [pid for pid in cells if os.getpgid(pid) == running.pid], "Ctrl-C reaches cells"
        for pid in cells:
            os.kill(pid, signal.SIGSTOP)
        (os.killpg if from_a_terminal else os.kill)(running.pid, number)
        assert running.wait(30) == 130
    finally:
        running.kill()
    shown = running.stderr.read()
    assert shown.endswith("interrupted; the same command goes on with the run\n")
    assert "Traceback" not in shown
    assert not [pid for pid in cells if Path(f"/proc/{pid}").exists()]
    client = MlflowClient(Settings.from_environment(environment).mlflow_url)
    experiment = client.get_experiment_by_name("vista-experiment-kuairand")
    assert [run.info.status for run in client.search_runs([experiment.experiment_id])] == ["KILLED"]


def test_a_failed_cell_does_not_stop_the_others(
    data_dir_kuairand: Path, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(data_dir: Path) -> Experiment:
        block = kuairand(data_dir).blocks[0]
        sound = next(arm for arm in block.arms if arm.name == "no_history")
        diverging = sound.train.model_copy(update={"learning_rate": 1e30})
        arms = (sound.model_copy(update={"name": "diverging", "train": diverging}), sound)
        return Experiment(name="broken", blocks=(block.model_copy(update={"arms": arms}),))

    monkeypatch.setitem(EXPERIMENTS, "broken", broken)
    config = ExperimentConfig(data_dir=str(data_dir_kuairand), seeds=1, out=str(tmp_path))
    with pytest.raises(StageError, match=r"1 cell failed \(kuairand-pure ids, diverging, seed 0\)"):
        run_experiment("broken", config, settings)
    report = ExperimentReport.model_validate_json((tmp_path / "report.json").read_text())
    assert [cell.arm for cell in report.cells] == ["no_history"]
    assert len(list((tmp_path / "cells").iterdir())) == 1


def test_the_split_follows_the_dates_of_the_files(data_dir_kuairand: Path, tmp_path: Path) -> None:
    block = kuairand(data_dir_kuairand).blocks[0]
    rows = Rows.of(Dataset.open(prepared(block.data, tmp_path)), block.split)
    assert [len(part) for part in (rows.train, rows.valid, rows.test)] == [160, 80, 160]


def test_other_files_are_prepared_anew(data_dir_kuairand: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    folder.mkdir()
    file = folder / "log_standard_pure.csv"
    lines = (data_dir_kuairand / file.name).read_text().splitlines(keepends=True)
    file.write_text("".join(lines))
    data = kuairand(folder).blocks[0].data
    first = prepared(data, tmp_path)
    assert prepared(data, tmp_path) == first
    below = folder / "results"
    assert prepared(data, below) == prepared(data, below), "results are not data"
    file.write_text("".join(lines[:-1]))
    assert prepared(data, tmp_path) != first


def test_a_user_split_takes_the_newest_of_every_user(tmp_path: Path) -> None:
    dataset = Dataset.open(prepare_small(tmp_path / "set", users=7))
    rows = Rows.of(dataset, UserSplit(parts=10))
    every = dataset.examples(0, 99)
    for user in np.unique(every.user_id_E):
        cuts = [
            part.cut_us_E[part.user_id_E == user].tolist() for part in (rows.train, rows.valid, rows.test)
        ]
        number = sum(map(len, cuts))
        tail = (number + 9) // 10
        assert [len(part) for part in cuts] == [number - 2 * tail, tail, tail]
        assert np.concatenate(cuts).tolist() == sorted(every.cut_us_E[every.user_id_E == user])


def test_permuted_labels_stay_in_their_part(tmp_path: Path) -> None:
    dataset = Dataset.open(prepare_small(tmp_path / "set"))
    rows = Rows.of(dataset, UserSplit(parts=10))
    noise = rows.permuted(0)
    for part, dealt in ((rows.train, noise.train), (rows.valid, noise.valid), (rows.test, noise.test)):
        ids = part.candidate_ids()
        before, after = part.candidates.labels_CT[ids], dealt.candidates.labels_CT[ids]
        assert before.sum() == after.sum()
        assert (before != after).mean() > 0.2
        assert dealt.events is part.events


@pytest.mark.real_data
def test_the_public_split_of_kuairand(data_dir: Path, tmp_path: Path) -> None:
    """The counts and label rates that the description of the data states."""
    block = kuairand(data_dir / "kuairand-pure").blocks[0]
    rows = Rows.of(Dataset.open(prepared(block.data, tmp_path)), block.split)
    assert _counts(rows) == [(180_384, 0.4501), (13_580, 0.4292), (28_905, 0.4515)]
    assert int(rows.test.history_length_E.max()) <= 190


@pytest.mark.real_data
def test_the_public_split_of_ml_1m(data_dir: Path, tmp_path: Path) -> None:
    """The published counts and label rates: the last tenth of each user, rounded up, in the given order."""
    block = table2(data_dir).blocks[2]
    rows = Rows.of(Dataset.open(prepared(block.data, tmp_path)), block.split)
    assert _counts(rows) == [(794_691, 0.5881), (102_759, 0.5339), (102_759, 0.5161)]


def _counts(rows: Rows) -> list[tuple[int, float]]:
    labels_C = rows.train.candidates.labels_CT[:, 0]
    parts = [part.candidate_ids() for part in (rows.train, rows.valid, rows.test)]
    return [(len(ids), round(float(labels_C[ids].mean()), 4)) for ids in parts]


def test_an_unchanged_summary_changes_nothing(tmp_path: Path) -> None:
    """The probes' two models are the ranker; float32 sums in another order."""
    torch.manual_seed(0)
    dataset = Dataset.open(prepare_small(tmp_path / "set"))
    config = ModelConfig(width=8, heads=2, seeds=3, mlp=(16,))
    ranker = Ranker(config, dataset.spec(dataset.day_start_us(3)), "vista")
    plan = batch_plan(dataset.examples(4, 5), TrainConfig(), max_uih=16)
    whole_C = predict(ranker, history_forward(ranker), plan, dataset.info.candidates)
    parts_C = predict(ranker, through_summary(ranker, lambda x: x), plan, dataset.info.candidates)
    np.testing.assert_allclose(parts_C, whole_C, atol=1e-6)
    removed_C = predict(ranker, through_summary(ranker, torch.zeros_like), plan, dataset.info.candidates)
    assert np.nanmax(np.abs(removed_C - whole_C)) > 1e-4


def test_another_user_s_summary_raises_the_error_unless_all_are_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    dataset = Dataset.open(prepare_small(tmp_path / "set"))
    config = ModelConfig(width=8, heads=2, seeds=3, mlp=(16,), reconstruction_weight=0.1)
    ranker = Ranker(config, dataset.spec(dataset.day_start_us(3)), "vista")
    plan = batch_plan(dataset.examples(4, 5), TrainConfig(), max_uih=16)
    assert abs(swapped_error(ranker, plan)) > 1e-5
    assert isinstance(ranker.history, VistaHistory)
    summariser = ranker.history.summariser
    for reads_history in (summariser.lengths, *(block.qlu.output for block in summariser.blocks)):
        for weight in reads_history.parameters():
            torch.nn.init.zeros_(weight)
    assert swapped_error(ranker, plan) == 0.0


def test_what_a_store_gives_back_is_within_half_a_step() -> None:
    summary_BSD = torch.randn(5, 3, 8, generator=torch.Generator().manual_seed(0))
    step_BS1 = summary_BSD.abs().amax(2, keepdim=True) / 127
    error_BSD = (as_stored(summary_BSD) - summary_BSD).abs()
    assert (error_BSD <= step_BS1 * 0.501).all()  # the scale is rounded up to fp16: 1e-3 of half a step
    assert error_BSD.max() > 0


def test_the_digest_covers_what_a_cell_imports() -> None:
    """Everything of ours that the import loads is found by reading the sources; the delivery is not."""
    found = {str(file.relative_to(ROOT)) for file in imported_files("vista.train.experiments.cell")}
    assert {
        "kernels/reference.py",
        "vista/model/ranker.py",
        "vista/data/batches.py",
        "vista/config.py",
    } <= found
    assert not {
        name for name in found if name.startswith(("vista/delivery", "vista/orchestration", "vista/serve"))
    }
    loaded = (
        "import sys, vista.train.experiments.cell; "
        "print(*(m.__file__ for n, m in sys.modules.items() if n.partition('.')[0] in ('vista', 'kernels')))"
    )
    files = subprocess.run(
        [sys.executable, "-c", loaded], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert {str(Path(file).relative_to(ROOT)) for file in files.stdout.split()} <= found


def test_a_changed_import_changes_the_digest(tmp_path: Path) -> None:
    package = tmp_path / "vista"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "top.py").write_text("import numpy\n\ndef late():\n    from vista.low import value\n")
    (package / "low.py").write_text("import vista.top\nvalue = 1\n")
    (package / "other.py").write_text("value = 2\n")
    first = code_digest("vista.top", tmp_path)
    (package / "other.py").write_text("value = 3\n")
    assert code_digest("vista.top", tmp_path) == first
    (package / "low.py").write_text("import vista.top\nvalue = 2\n")
    assert code_digest("vista.top", tmp_path) != first


def test_a_bench_without_data_is_a_message(tmp_path: Path) -> None:
    tried = CliRunner().invoke(bench.main, ["--data-dir", str(tmp_path), "--peer", sys.executable])
    assert tried.exit_code == 2
    assert tried.stderr.startswith(f"error: no KuaiRand log in '{tmp_path}'")


def test_verdicts() -> None:
    above, around = Interval(point=0.2, low=0.1, high=0.3), Interval(point=0.0, low=-0.1, high=0.1)
    below = Interval(point=-0.2, low=-0.3, high=-0.1)
    assert verdict([above, above, above], 3) == "better than"
    assert verdict([above, around, above], 3) == "not below"
    assert verdict([above], 1) == "one seed, no claim"
    assert verdict([above, around, below], 3) == "below (1 of 3 seeds)"
    assert verdict([above, above], 3) == "2 of 3 seeds, no claim"
    assert verdict([above, below], 3) == "below (1 of 2 seeds)"


def test_a_record_is_one_row_with_its_command(small: tuple[ExperimentReport, Path], tmp_path: Path) -> None:
    report, _ = small
    file = tmp_path / "EXPERIMENTS.md"
    file.write_text("# Experiments\n\n| date | command | result |\n|---|---|---|\n")
    append_record(file, report.record())
    *_, row = file.read_text().splitlines()
    options = "--data-dir DATA --models vista,mean_pool,vista_permuted --seeds 1"
    assert row.startswith(
        f"| {report.when} | `python -m vista experiment kuairand {options}`, {report.cores} cores | "
        "kuairand-pure ids: validation / test AUC vista "
    )
    assert row.count(" | ") == 2


def test_the_grid_is_the_papers() -> None:
    """Every slot on ids, on both sets; nothing but the seed, the slot and VISTA's recent tail differs within
    a block."""
    experiment = table2(Path("data"))
    assert [block.name for block in experiment.blocks] == [
        "kuairand-pure ids", "kuairand-pure features", "ml-1m ids", "ml-1m features",
    ]  # fmt: skip
    for block in experiment.blocks:
        arms = {arm.name: arm for arm in block.arms}
        if block.inputs == "ids":
            without_qla = arms.pop("vista_softmax").model.model_dump()
            assert without_qla == arms["vista"].model.model_dump() | {"attention": "softmax"}
        names = [name for name, arm in arms.items() if not arm.permuted_labels]
        tails = {arm.name for arm in block.arms if arm.model.recent_tail}
        if block.data_set == "ml-1m":
            of_vista = {arm.name for arm in block.arms if arm.kind in ("vista", "vista_hstu")}
            assert of_vista - tails == {"vista_no_tail"}
            assert tails < of_vista
            names.remove("vista_no_tail")
        else:
            assert not tails
        assert (
            (names == list(SLOTS)) if block.inputs == "ids" else ({"vista", "din", "lightgbm"} <= set(names))
        )
        models = {arm.model.model_copy(update={"recent_tail": 0}) for arm in arms.values()}
        assert len(models) == len({arm.train for arm in block.arms}) == 1
    assert command_of("table2", ExperimentConfig(data_dir="data")) == (
        "python -m vista experiment table2 --data-dir DATA"
    )


@pytest.mark.parametrize("experiment", [ablation, tuning])
def test_one_thing_is_changed_at_a_time(experiment: Callable[[Path], Experiment]) -> None:
    """And no two arms of a block are the same model."""
    blocks = experiment(Path("data")).blocks
    assert {"kuairand-pure ids", "ml-1m ids"} <= {block.name for block in blocks}
    for block in blocks:
        made = {arm.name: arm.model.model_dump() | arm.train.model_dump() for arm in block.arms}
        made.pop("hstu", None)  # the other arm of the ablation
        assert len({json.dumps(values) for values in made.values()}) == len(made)
        for name, values in made.items():
            fields = [field for field, value in values.items() if value != made["vista"][field]]
            changed = {"the loss" if field.startswith("reconstruction_") else field for field in fields}
            assert len(changed) == (name != "vista"), (name, changed)
        assert {arm.train.epochs for arm in block.arms} == {1}


def test_one_block_of_a_set_is_made_alone() -> None:
    """So that a table can be made in parts that fit a day's machine time, and joined."""
    config = ExperimentConfig(data_dir="nowhere", sets="ml-1m ids", models="vista,din")
    (block,) = experiment_of("table2", config).blocks
    assert (block.name, [arm.name for arm in block.arms]) == ("ml-1m ids", ["vista", "din"])
    assert "--sets 'ml-1m ids' --models vista,din" in command_of("table2", config)


def test_unknown_names_are_refused(settings: Settings) -> None:
    config = ExperimentConfig(data_dir="nowhere")

    def refused(message: str, name: str = "table2", **changes: str) -> None:
        with pytest.raises(InputError, match=message):
            run_experiment(name, config.model_copy(update=changes), settings)

    refused("model 'dien' does not exist: choose from vista", models="vista,dien")
    refused(
        "data set 'netflix' does not exist: choose from kuairand-pure, kuairand-pure ids, ", sets="netflix"
    )
    refused("experiment 'table3' does not exist: choose one of kuairand, table2", name="table3")
    refused("nowhere does not exist: give the folder of kuairand-pure's own files", name="kuairand")
    refused(
        "/nowhere/kuairand-pure does not exist: .* the folder above, which holds kuairand-pure/ and ml-1m/"
    )
    refused("/nowhere/ml-1m does not exist: of tuning .*, which holds ml-1m/$", name="tuning", sets="ml-1m")
    shown = CliRunner().invoke(commands, ["experiment", "--help"])
    assert shown.exit_code == 0
    assert "--data-dir" in shown.output


def test_a_folder_without_data_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    settings = Settings.from_environment(
        {"VISTA_HOME": str(tmp_path / "h"), "VISTA_RUNS": str(tmp_path / "r")}
    )
    with pytest.raises(InputError, match="empty"):
        run_experiment("kuairand", ExperimentConfig(data_dir=str(tmp_path / "empty")), settings)
    with pytest.raises(InputError, match="nowhere"):
        run_experiment("table2", ExperimentConfig(data_dir=str(tmp_path / "nowhere")), settings)
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]
