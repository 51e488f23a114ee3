"""Reading files: lines are right, and whatever is wrong with a file is an InputError or a reject."""

import gzip
import json
from pathlib import Path

import polars as pl
import pytest

from vista.data.rejects import Rejects
from vista.data.sources.tables import BLOCK_BYTES, LINE, TableFile, columns_of, files_in, read_table
from vista.errors import InputError, RejectedDataError


def table(path: Path, content: bytes) -> TableFile:
    path.write_bytes(content)
    return TableFile(path, path.name)


def rows_of(file: TableFile, *columns: str, rejects: Rejects | None = None) -> pl.DataFrame:
    return pl.concat(list(read_table(file, columns, rejects or Rejects())))


def test_lines_stay_right_across_blocks_and_bad_rows(tmp_path: Path) -> None:
    rows = 3 * BLOCK_BYTES // 40
    bad = {7, rows // 2, rows - 1}
    lines = [b"short" if row in bad else b"%d,%s,x" % (row, b"y" * 30) for row in range(rows)]
    rejects = Rejects()
    file = table(tmp_path / "a.csv.gz", gzip.compress(b"id,text,end\n" + b"\n".join(lines), 1))
    frame = rows_of(file, "id", rejects=rejects)
    assert (frame["id"].cast(pl.Int64) + 2 == frame[LINE]).all()
    assert frame.height == rows - 3
    assert rejects.rows == rows
    assert rejects.first == [f"a.csv.gz, line {row + 2}: has 1 fields instead of 3" for row in sorted(bad)]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"\xef\xbb\xbfid,n\r\n1,2\r\n3,4\r\n", [("1", "2", 2), ("3", "4", 3)]),  # BOM, Windows line ends
        (b"id,n\n1,2\n\n\n", [("1", "2", 2)]),  # blank lines at the end
        (b'id,n\n1,"2"\n', [("1", "2", 2)]),
        (b"id,n\n1,", [("1", None, 2)]),
        (b"id,n\n", []),
        (b"id,n", []),
    ],
)
def test_plain_variants(tmp_path: Path, content: bytes, expected: list[tuple[object, ...]]) -> None:
    rows = [
        row
        for frame in read_table(table(tmp_path / "a.csv", content), ("id", "n"), Rejects())
        for row in frame.rows()
    ]
    assert rows == expected


def test_blank_line_in_the_middle_is_a_row(tmp_path: Path) -> None:
    frame = rows_of(table(tmp_path / "a.csv", b"id,n\n1,2\n\n3,4\n"), "id", "n")
    assert frame.rows() == [("1", "2", 2), (None, None, 3), ("3", "4", 4)]


def test_rows_that_are_not_utf8_are_rejected(tmp_path: Path) -> None:
    rejects = Rejects(tmp_path / "rejects.jsonl")
    frame = rows_of(table(tmp_path / "a.csv", b"id,n\n1,2\n\xe9t\xe9,2\n5,6\n"), "id", "n", rejects=rejects)
    assert frame["id"].to_list() == ["1", "5"]
    kept = json.loads((tmp_path / "rejects.jsonl").read_text())
    assert kept == {"file": "a.csv", "line": 3, "reason": "is not UTF-8 text: save the file as UTF-8"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", "a.csv is empty"),
        ("a.csv.gz", b"", "a.csv.gz is empty"),
        ("a.csv.gz", gzip.compress(b"", mtime=0), "a.csv.gz is empty"),
        ("a.csv.gz", b"id,n\n1,2\n", "is it a gzip file"),
        (
            "a.csv.gz",
            gzip.compress(b"id,n\n" + bytes(range(48, 58)) * 10_000, mtime=0)[:-40],
            "(Truncated compressed stream): is it whole",
        ),
        ("a.csv", "id,n\n1,2\n".encode("utf-16"), "not UTF-8"),
        ("a.csv", b"id,n,id\n1,2,3\n", "column 'id' is there twice"),
        ("a.csv", b"id,m\n1,2\n", "no column 'n'. There are: id, m"),
        ("a.csv", b"id;n\n1;2\n", "look separated by a semicolon: write `separator: ';'`"),
        ("a.csv", b'id,n,t\n1,2,"3\n4,5,6\n7,8,9\n', "line breaks lie inside quoted fields"),
        ("a.parquet", b"id,n\n1,2\n", "is not a Parquet file"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    with pytest.raises(InputError, match="a\\.") as raised:
        list(read_table(table(tmp_path / name, content), ("id", "n"), Rejects()))
    assert message in str(raised.value)


def test_parquet_keeps_types_and_counts_rows(tmp_path: Path) -> None:
    pl.DataFrame(
        {"id": [5, 6], "kind": pl.Series(["a", "b"], dtype=pl.Categorical), "other": [1, 2]}
    ).write_parquet(tmp_path / "a.parquet")
    rejects = Rejects()
    frame = rows_of(TableFile(tmp_path / "a.parquet", "a.parquet"), "kind", "id", rejects=rejects)
    assert frame.select("id", "kind", LINE).rows() == [(5, "a", 1), (6, "b", 2)]
    assert rejects.rows == 2


def test_nested_parquet_columns_are_refused(tmp_path: Path) -> None:
    pl.DataFrame({"id": [[1, 2]]}).write_parquet(tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"column 'id' holds List"):
        rows_of(TableFile(tmp_path / "a.parquet", "a.parquet"), "id")


def test_files_are_sorted_and_hidden_ones_left_out(tmp_path: Path) -> None:
    for name in ("b.csv", "a.csv", ".c.csv", "a.txt"):
        (tmp_path / name).write_text("x\n1\n")
    assert [file.name for file in files_in(tmp_path, "*.csv", "a.*")] == ["a.csv", "a.txt", "b.csv"]
    assert columns_of(files_in(tmp_path, "a.csv")[0]) == ["x"]


def test_rejects_refuse_only_above_the_fraction(tmp_path: Path) -> None:
    rejects = Rejects(tmp_path / "rejects.jsonl")
    for line in range(10):
        rejects.reject(line, "a.csv", f"bad {line}")
    rejects.check(1_000, 0.01)
    with pytest.raises(RejectedDataError) as raised:
        rejects.check(999, 0.01)
    message = str(raised.value)
    assert "10 of 999 rows" in message
    assert "1.00%" in message
    assert [f"a.csv, line {line}: bad {line}" in message for line in range(6)] == [True] * 5 + [False]
    assert len((tmp_path / "rejects.jsonl").read_text().splitlines()) == 10
