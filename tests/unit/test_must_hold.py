"""The table of what must hold: what no test counts is not said to be 0."""

from dataclasses import asdict
from typing import Any

from must_hold import Found, rows_of, table_of


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
