"""What the programs that measure the log and the store say of their ratios, and how they end."""

import pytest

from vista.delivery import bench_log, bench_store
from vista.delivery.bench_load_report import judge


def test_a_ratio_that_is_missed_is_said_and_ends_the_program(capsys: pytest.CaptureFixture[str]) -> None:
    judge(bench_log.verdicts_of({"produce_of_bare": 1.22, "consume_of_bare": 0.8}))
    judge(bench_store.verdicts_of({"apply_to_bare_set": {"median": 0.6}}))
    assert "MISSED" not in capsys.readouterr().out
    for missed, says in [
        (
            bench_log.verdicts_of({"produce_of_bare": 0.79, "consume_of_bare": 0.9}),
            [
                "MISSED produce / bare loop: 0.79, at least 0.8",
                "holds  consume / bare loop: 0.9, at least 0.8",
            ],
        ),
        (
            bench_store.verdicts_of({"apply_to_bare_set": {"median": 0.59}}),
            ["MISSED apply / bare SET: 0.59, at least 0.6"],
        ),
    ]:
        with pytest.raises(SystemExit, match="1"):
            judge(missed)
        assert capsys.readouterr().out.splitlines() == says
