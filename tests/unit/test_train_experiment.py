"""`experiment kuairand`: the public split by the files' dates, and cells that are trained once."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from vista.__main__ import commands
from vista.config import Settings
from vista.errors import InputError
from vista.train.experiment import ExperimentConfig, ExperimentReport, Split, kuairand, run_experiment

HEADER = (
    "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,is_hate,long_view,"
    "play_time_ms,duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,is_rand,tab\n"
)
DATES = (20220504, 20220505, 20220506, 20220507, 20220508)
START_MS = 1_651_636_800_000  # 2022-05-04 12:00 in Beijing
DAY_MS = 86_400_000


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty users, each with four impressions a day; every third one is clicked."""
    folder = tmp_path_factory.mktemp("kuairand")
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


def settings_of(home: Path) -> Settings:
    return Settings.from_environment({"VISTA_HOME": str(home), "VISTA_RUNS": str(home / "runs")})


def test_cells_are_trained_once(data_folder: Path, tmp_path: Path) -> None:
    config = ExperimentConfig(data_dir=str(data_folder), seeds=2, models="vista,mean_pool")
    first = run_experiment("kuairand", config, settings_of(tmp_path))
    assert [(cell.model, cell.seed, cell.rows) for cell in first.cells] == [
        ("vista", 0, 160), ("mean_pool", 0, 160), ("vista", 1, 160), ("mean_pool", 1, 160),
    ]  # fmt: skip
    assert set(first.paired) == {0, 1}
    directory = tmp_path / "runs" / "experiments" / "kuairand"
    kept = {path: path.stat().st_mtime_ns for path in (directory / "cells").iterdir()}
    more = config.model_copy(update={"models": "vista,mean_pool,no_history"})
    second = run_experiment("kuairand", more, settings_of(tmp_path))
    assert [cell for cell in second.cells if cell.model != "no_history"] == list(first.cells)
    assert all(path.stat().st_mtime_ns == written for path, written in kept.items())
    assert ExperimentReport.model_validate_json((directory / "report.json").read_text()) == second
    table = second.table().splitlines()
    assert [line.split()[0] for line in table] == ["model", "vista", "mean_pool", "no_history"]


def test_the_split_follows_the_dates_of_the_files(data_folder: Path, tmp_path: Path) -> None:
    split = Split.open(kuairand(str(data_folder)), tmp_path)
    assert [len(part) for part in (split.train, split.valid, split.test)] == [160, 80, 160]


@pytest.mark.real_data
def test_the_public_split_of_kuairand(data_dir: Path, tmp_path: Path) -> None:
    """The counts and label rates that the description of the data states."""
    split = Split.open(kuairand(str(data_dir / "kuairand-pure")), tmp_path)
    labels_C = split.dataset.candidates.labels_CT[:, 0]
    found = [
        (len(part.candidate_ids()), round(float(labels_C[part.candidate_ids()].mean()), 4))
        for part in (split.train, split.valid, split.test)
    ]
    assert found == [(180_384, 0.4501), (13_580, 0.4292), (28_905, 0.4515)]
    assert int(split.dataset.examples(0, 99).history_length_E.max()) <= 190


def test_unknown_names_are_refused(data_folder: Path, tmp_path: Path) -> None:
    config = ExperimentConfig(data_dir=str(data_folder), models="vista,dien")
    with pytest.raises(InputError, match="'dien' does not exist: choose from vista, din"):
        run_experiment("kuairand", config, settings_of(tmp_path))
    with pytest.raises(InputError, match="'netflix' does not exist: choose one of kuairand"):
        run_experiment("netflix", config, settings_of(tmp_path))
    shown = CliRunner().invoke(commands, ["experiment", "--help"])
    assert shown.exit_code == 0
    assert "--data-dir" in shown.output
