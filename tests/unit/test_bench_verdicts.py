"""What the programs that measure the log and the store say of their ratios, and how they end."""

import pytest

from vista.delivery import bench_log, bench_store
from vista.evaluate.verdicts import judge
from vista.train import bench_memory
from vista.train.bench_memory import Phase


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


def test_memory_and_seconds_are_judged_by_case(capsys: pytest.CaptureFixture[str]) -> None:
    def phases(step_bytes: int, step_s: float) -> list[Phase]:
        prepare = Phase(name="prepare", tokens=1, wall_s=99.0, cpu_s=99.0, peak_bytes=10**11)
        step = Phase(name="step", tokens=1, wall_s=step_s, cpu_s=1.0, peak_bytes=step_bytes)
        return [prepare, step, Phase(name="export", tokens=1, wall_s=1.0, cpu_s=1.0, peak_bytes=10**9)]

    judge(bench_memory.verdicts_of("million", phases(8 * 10**9, 10.0)))
    judge(bench_memory.verdicts_of("industrial", phases(4 * 10**9, 20.0)))
    shown = capsys.readouterr().out
    assert len(shown.splitlines()) == 6
    assert "MISSED" not in shown
    for name, missed, says in [
        ("million", phases(8_100_000_000, 1.0), "MISSED GB of million's step: 8.1, at most 8"),
        ("million", phases(10**9, 10.1), "MISSED s of million's step: 10.1, at most 10"),
        ("industrial", phases(4_100_000_000, 1.0), "MISSED GB of industrial's step: 4.1, at most 4"),
    ]:
        with pytest.raises(SystemExit, match="1"):
            judge(bench_memory.verdicts_of(name, missed))
        assert says in capsys.readouterr().out
