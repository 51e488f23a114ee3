"""The files of a run: whole or not at all, and damage is named with its remedy."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from vista.__main__ import main
from vista.config import Frozen, RefreshConfig
from vista.errors import CheckpointError, InputError, StageError
from vista.runs import RunDirectory, read_as, read_sealed, write_sealed

CONFIG = RefreshConfig(recipe="smoke", run_id="r")


class Delivered(Frozen):
    space: str
    epoch: int
    regions: dict[str, float]


REPORT = Delivered(space="s-1", epoch=7, regions={"east": 1.0})

DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "no fields": lambda _: b"{}",
    "no report": lambda _: b'{"seconds": 1.0, "report": {}}',
    "a list": lambda _: b"[1]",
    "cut off": lambda whole: whole[: len(whole) // 2],
    "another number": lambda whole: whole.replace(b'"epoch": 7', b'"epoch": 3'),
    "not UTF-8": lambda whole: whole.replace(b"s-1", b"\xff\xfe1"),
    "a folder's bytes": lambda whole: bytes(len(whole)),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_report_of_a_stage_is_named_with_its_remedy(tmp_path: Path, damage: str) -> None:
    run = RunDirectory.open(tmp_path, CONFIG)
    run.keep_stage_report("deliver", REPORT, seconds=1.5)
    assert run.report_of("deliver") == REPORT.model_dump()
    file = tmp_path / "r" / "stages" / "deliver.json"
    whole = file.read_bytes()
    file.write_bytes(DAMAGE[damage](whole))
    assert file.read_bytes() != whole
    with pytest.raises(StageError) as raised:
        run.report_of("deliver")
    assert str(raised.value).startswith(f"{file} cannot be read (")
    assert "delete it, then `make run RESUME=1` does the stage deliver of the run again" in str(raised.value)
    file.unlink()
    with pytest.raises(InputError, match="run that stage first"):
        run.report_of("deliver")


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"recipe": "smoke", "colour": "red"}', '{"seeds": "many"}']
)
def test_a_run_s_damaged_configuration_is_a_message(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VISTA_RUNS", str(tmp_path))
    run = RunDirectory.open(tmp_path, CONFIG)
    run.config_file.write_text(content)
    assert main(["prepare", "--recipe", "smoke", "--run-id", "r"]) == 1
    shown = capsys.readouterr().err
    assert f"error: {run.config_file} cannot be read (" in shown
    assert "restore it, or start a new run" in shown
    assert not run.data.exists()


def test_a_run_is_the_same_however_its_configuration_is_written(tmp_path: Path) -> None:
    run = RunDirectory.open(tmp_path, CONFIG)
    run.config_file.write_text(CONFIG.model_dump_json(exclude_defaults=True))
    assert RunDirectory.open(tmp_path, CONFIG) == run
    with pytest.raises(InputError, match=r"other values \(seeds is None, not 3; /"):
        RunDirectory.open(tmp_path, CONFIG.model_copy(update={"seeds": 3}))


def test_a_sealed_value_comes_back_and_an_unsealed_one_does_not(tmp_path: Path) -> None:
    file = tmp_path / "value.json"
    write_sealed(file, REPORT.model_dump(mode="json"))
    assert read_sealed(Delivered, file, "") == REPORT
    file.write_text(REPORT.model_dump_json())
    with pytest.raises(StageError, match=r"its content is not that of its sha256\): look again"):
        read_sealed(Delivered, file, "look again")


def test_what_is_wrong_is_said_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "value.json"
    file.write_text(json.dumps({"space": "s", "epoch": "seven", "regions": {}}))
    with pytest.raises(
        CheckpointError, match=r"value\.json cannot be read \(epoch: Input should be a valid int"
    ):
        read_as(Delivered, file, "train it again", raising=CheckpointError)
    with pytest.raises(StageError, match="No such file"):
        read_as(Delivered, tmp_path / "none.json", "make it")
