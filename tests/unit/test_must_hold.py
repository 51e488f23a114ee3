"""The table of what must hold: what no test counts is not said to be 0, and a test without its load fails."""

import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from must_hold import Found, rows_of, table_of

ROOT = Path(__file__).parents[2]


def line(number: int, found: Found) -> dict[str, Any]:
    return {"must_hold": number, "held": True, "seconds": 1.5} | asdict(found)


def test_a_count_is_the_sum_of_those_who_counted_and_a_dash_if_nobody_did() -> None:
    counted = Found(rounds=2)
    counted.add(lost=0)
    counted.add(lost=3)
    rows = rows_of([line(7, counted), line(7, Found(rounds=1, lost=1, mixed=0)), line(12, Found(rounds=1))])
    assert table_of(rows) == [
        "| must hold | rounds | lost | duplicated | mixed | seconds | held |",
        "|----------:|-------:|-----:|-----------:|------:|--------:|-----:|",
        "|         7 |      3 |    4 |          - |     0 |     3.0 |  yes |",
        "|        12 |      1 |    - |          - |     - |     1.5 |  yes |",
    ]


def test_a_test_whose_thread_dies_fails(tmp_path: Path) -> None:
    """The thread may be the load, or the reader, of a test of what must hold."""
    test = tmp_path / "test_thread.py"
    test.write_text(
        "import threading\n\n\ndef test_thread():\n"
        "    thread = threading.Thread(target=lambda: 1 / 0)\n    thread.start()\n    thread.join()\n"
    )
    command = [sys.executable, "-m", "pytest", "-c", ROOT / "pyproject.toml", "-p", "no:cacheprovider", test]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 1, ended.stdout
    assert "ZeroDivisionError" in ended.stdout
