"""Bad input through the command line: one message that a newcomer understands, exit code 2, nothing
half-written. What can be used all the same (copies, any order) is used, and counted."""

import gzip
import io
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from vista.__main__ import main

MAPPING = "user: user_id\nitem: item_id\ntime: ts\ntime_unit: s\nlabel: clicked\n"
HEADER = "user_id,item_id,ts,clicked\n"
DAYS, USERS, EVENTS = 5, 30, 2


def good_rows() -> list[str]:
    """EVENTS events a day of every user, each at its own second, in the order of time."""
    clicks = random.Random(0)
    rows = []
    for day in range(DAYS):
        for number in range(USERS * EVENTS):
            second = 1_700_006_400 + day * 86_400 + number * 60
            rows.append(f"{number % USERS},{clicks.randrange(20)},{second},{clicks.randrange(2)}\n")
    return rows


def column(place: int, change: Callable[[str], str]) -> str:
    """The good file with one column changed in every row."""
    rows = [row.strip().split(",") for row in good_rows()]
    changed = [[*row[:place], change(row[place]), *row[place + 1 :]] for row in rows]
    return HEADER + "".join(",".join(row) + "\n" for row in changed)


@dataclass(frozen=True, slots=True)
class Case:
    """A data folder, and what the message about it must hold."""

    files: dict[str, bytes | str]
    message: tuple[str, ...]
    mapping: str = MAPPING


def parquet(columns: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    pl.DataFrame(columns).write_parquet(file)
    return file.getvalue()


BOMB = (
    "a0: &a0 [x, x]\n"
    + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 20))
    + MAPPING.replace("user_id", "*a19")
)
"""Written out it would be 9^19 words."""

GOOD = HEADER + "".join(good_rows())
CASES = {
    "no folder": Case({}, ("data folder", "does not exist", "--data-dir"), mapping=""),
    "no mapping": Case({"a.csv": GOOD}, ("holds no mapping", "python -m vista describe-events"), mapping=""),
    "no files": Case({}, ("holds no file that matches *.csv or *.csv.gz or *.parquet",)),
    "empty file": Case({"a.csv": ""}, ("a.csv is empty", "first line must name the columns")),
    "empty gzip file": Case({"a.csv.gz": gzip.compress(b"")}, ("a.csv.gz is empty",)),
    "header only": Case({"a.csv": HEADER}, ("holds no rows, only the names of columns",)),
    "wrong delimiter": Case(
        {"a.csv": GOOD.replace(",", ";")},
        ("no column 'user_id'", "separated by a semicolon", "separator: ';'"),
    ),
    "not UTF-8": Case({"a.csv": GOOD.encode("utf-16")}, ("a.csv is not UTF-8 text", "save it as UTF-8")),
    "rows that are not UTF-8": Case(
        {"a.csv": column(1, lambda item: item + "é").encode("latin-1")},
        ("300 of 300 rows", "a.csv, line 2: is not UTF-8 text"),
    ),
    "negative ids": Case(
        {"a.csv": column(0, lambda user: f"-{user}1")},
        (
            "300 of 300 rows",
            "more than the 1.00% that may be left out",
            "a.csv, line 2: user '-01' is negative",
        ),
    ),
    "text ids": Case(
        {"a.csv": column(0, "u{}".format)}, ("user 'u0' is not a whole number", "string_ids: [user]")
    ),
    "milliseconds": Case(
        {"a.csv": column(2, "{}000".format)}, ("is the year 55841", "it looks like time_unit: ms")
    ),
    "seconds as milliseconds": Case(
        {"a.csv": GOOD},
        ("is the year 1970", "it looks like time_unit: s"),
        MAPPING.replace("unit: s", "unit: ms"),
    ),
    "no clicks": Case(
        {"a.csv": column(3, lambda _: "0")},
        ("events.yaml: label: 'clicked' is 0 in all 300 rows", "nothing to learn"),
    ),
    "only clicks": Case({"a.csv": column(3, lambda _: "1")}, ("label: 'clicked' is 1 in all 300 rows",)),
    "words as label": Case(
        {"a.csv": column(3, lambda click: ("no", "yes")[int(click)])},
        ("label: clicked 'yes' is not 0, 1, true or false", "== 'yes'"),
    ),
    "unknown column": Case(
        {"a.csv": GOOD.replace("item_id", "itemid")},
        ("events.yaml: item: a.csv has no column 'item_id'", "Did you mean 'itemid'", "clicked"),
    ),
    "unknown key": Case(
        {"a.csv": GOOD}, ("there is no key 'usr'. Did you mean 'user'",), MAPPING + "usr: x\n"
    ),
    "broken YAML": Case({"a.csv": GOOD}, ("events.yaml, line", "not YAML"), MAPPING + "value: 'x\n"),
    "cut gzip file": Case(
        {"a.csv.gz": gzip.compress(GOOD.encode())[:-20]}, ("a.csv.gz cannot be read", "is it whole")
    ),
    "carriage returns only": Case(
        {"a.csv": GOOD.replace("\n", "\r")}, ("a.csv: line 1 does not name columns", "end with a line feed")
    ),
    "gzip without its ending": Case(
        {"a.csv": gzip.compress(GOOD.encode())}, ("name it a.csv.gz, it looks like gzip",)
    ),
    "another ending": Case({"a.CSV": GOOD}, ("holds no file that matches *.csv", "but a.CSV, events.yaml")),
    "a date as seconds": Case(
        {"a.csv": column(2, lambda second: f"2024-05-0{int(second) // 86_400 % 9 + 1}")},
        ("time '2024-05-0", "in unit s: it looks like time_unit: iso8601"),
    ),
    "American dates": Case(
        {"a.csv": column(2, lambda _: "5/1/2024")},
        ("time '5/1/2024' is not a time", "write it as 2024-05-01T12:30:00Z"),
        MAPPING.replace("unit: s", "unit: iso8601"),
    ),
    "times of day": Case(
        {"a.parquet": parquet({"user_id": [1], "item_id": [2], "ts": [time(12, 30)], "clicked": [1]})},
        ("a.parquet: column 'ts' holds Time", "write it in another type"),
        MAPPING.replace("unit: s", "unit: iso8601"),
    ),
    "ids that floats cannot tell apart": Case(
        {
            "a.parquet": parquet(
                {
                    "user_id": pl.Series([2**25 + row for row in range(300)], dtype=pl.Float32),
                    "item_id": [1] * 300,
                    "ts": [1_700_000_000] * 300,
                    "clicked": [1] * 300,
                }
            )
        },
        ("300 of 300 rows", "is not a whole number"),
    ),
    "one column for two": Case(
        {"a.csv": GOOD},
        ("events.yaml: user, item and time are user_id, user_id, ts: name three columns",),
        MAPPING.replace("item_id", "user_id"),
    ),
    "the label as context": Case(
        {"a.csv": GOOD},
        ("the label is made of 'clicked': leave it out",),
        MAPPING + "context: {clicked: 2}\n",
    ),
    "a context of ids": Case(
        {"a.csv": GOOD},
        ("item_id has 5,000,000 values, more than",),
        MAPPING + "context: {item_id: 5000000}\n",
    ),
    "aliases without end": Case(
        {"a.csv": GOOD}, ("events.yaml: user: Input should be a valid string",), BOMB
    ),
    "not Parquet": Case({"a.parquet": GOOD}, ("a.parquet is not a Parquet file",)),
    "open quote": Case(
        {"a.csv": GOOD.replace(",1\n", ',"1\n', 1)}, ("a.csv", "line breaks lie inside quoted fields")
    ),
    "one day": Case({"a.csv": HEADER + "".join(good_rows()[:60])}, ("labels on 1 days", "at least 3")),
}


def folder_of(path: Path, files: dict[str, bytes | str], mapping: str) -> Path:
    path.mkdir()
    for name, content in files.items():
        (path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    if mapping:
        (path / "events.yaml").write_text(mapping)
    return path


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VISTA_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("VISTA_HOME", str(tmp_path / "home"))
    return tmp_path / "runs"


def prepare(folder: Path) -> int:
    return main(["prepare", "--recipe", "events", "--data-dir", str(folder), "--run-id", "r"])


def files_below(path: Path) -> list[str]:
    return sorted(file.relative_to(path).as_posix() for file in path.rglob("*"))


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_explained(
    name: str, tmp_path: Path, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = CASES[name]
    folder = tmp_path / "data"
    if case.files or case.mapping:
        folder_of(folder, case.files, case.mapping)
    assert prepare(folder) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    message = shown.err[shown.err.index("error: ") :]
    for part in case.message:
        assert part in message
    assert "Traceback" not in shown.err
    too_many = "that may be left out" in message
    assert files_below(runs) == ["r", "r/config.json", *(["r/rejects.jsonl"] if too_many else [])]
    if too_many:
        kept = [json.loads(line) for line in (runs / "r/rejects.jsonl").read_text().splitlines()]
        assert len(kept) == DAYS * USERS * EVENTS
        assert str(runs / "r/rejects.jsonl") in message
    if case.files:
        before = {file.name: file.read_bytes() for file in folder.iterdir()}
        assert set(before) == {*case.files, *(["events.yaml"] if case.mapping else [])}


def prepared(
    folder: Path, runs: Path, capsys: pytest.CaptureFixture[str]
) -> tuple[dict[str, int], pl.DataFrame]:
    """What is counted, and the events in the order of time."""
    assert prepare(folder) == 0
    report = json.loads(capsys.readouterr().out)["dataset"]
    events = pl.concat([pl.read_parquet(file) for file in sorted((runs / "r/data/events").glob("*.parquet"))])
    columns = ["user_id", "item_id", "event_time_us", "action_mask", "category_id"]
    return report, events.select(columns).sort("event_time_us")


def test_copies_and_any_order_change_nothing_but_the_count(
    tmp_path: Path, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, expected = prepared(folder_of(tmp_path / "good", {"a.csv": GOOD}, MAPPING), runs, capsys)
    (runs / "r").rename(runs / "first")
    mixed = good_rows() + good_rows()[:40]
    random.Random(1).shuffle(mixed)
    files: dict[str, bytes | str] = {
        "a.csv": HEADER + "".join(mixed[:200]),
        "b.csv": HEADER + "".join(mixed[200:]),
    }
    report, found = prepared(folder_of(tmp_path / "mixed", files, MAPPING), runs, capsys)
    assert (report["rows"], report["duplicates"], report["rejects"]) == (300, 40, 0)
    assert found.equals(expected)


def test_few_bad_rows_are_kept_aside_with_line_and_reason(
    tmp_path: Path, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = good_rows()
    rows.insert(100, "-5,1,1700006400,1\n")
    rows.insert(200, "5,1\n")
    folder = folder_of(tmp_path / "data", {"a.csv": HEADER + "".join(rows)}, MAPPING)
    report, events = prepared(folder, runs, capsys)
    assert (report["rows"], report["duplicates"], report["rejects"], events.height) == (300, 0, 2, 300)
    kept = [json.loads(line) for line in (runs / "r/data/rejects.jsonl").read_text().splitlines()]
    assert sorted(kept, key=lambda row: row["line"]) == [
        {"file": "a.csv", "line": 102, "reason": "user '-5' is negative: ids start at 0"},
        {"file": "a.csv", "line": 202, "reason": "has 2 fields instead of 4"},
    ]


def test_the_command_itself_exits_with_2_and_draws_a_mapping(tmp_path: Path, runs: Path) -> None:
    """In processes of their own, as a newcomer starts: prepare, describe-events, prepare."""
    folder = folder_of(tmp_path / "data", {"a.csv": GOOD}, "")

    def vista(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "vista", *arguments]
        root = Path(__file__).parents[2]
        return subprocess.run(command, capture_output=True, text=True, cwd=root, env=os.environ, check=False)

    arguments = ("prepare", "--recipe", "events", "--data-dir", str(folder), "--run-id", "r")
    refused = vista(*arguments)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.splitlines()[-1].startswith("error: ")
    assert "describe-events" in refused.stderr
    drawn = vista("describe-events", str(folder))
    assert drawn.returncode == 0
    (folder / "events.yaml").write_text(drawn.stdout)
    accepted = vista(*arguments)
    assert accepted.returncode == 0, accepted.stderr
    assert json.loads(accepted.stdout)["dataset"]["rows"] == DAYS * USERS * EVENTS
