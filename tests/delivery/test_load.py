"""A region under load: the program that measures it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from must_hold import Found

from vista.delivery.bench_load_clients import LIVE_PER_S

ROOT = Path(__file__).parents[2]


@pytest.mark.must_hold(9)
def test_a_region_drains_what_waits_and_follows_what_comes_while_it_is_read(
    tmp_path: Path, found: Found, full_size: bool
) -> None:
    """Must hold 9: 250k waiting records drained at 70% of a bare loop's rate with reads' p99 < 5 ms, then 5
    minutes at 1,000/s with flat lag and memory. Small, only what was counted is judged: times are not."""
    records, live_s = (250_000, 300) if full_size else (2_000, 4)
    out = (ROOT / "build" / "bench-load" if full_size else tmp_path / "load").with_suffix(".json")
    arguments = ["--records", str(records), "--live-s", str(live_s), "--out", str(out)]
    subprocess.run([sys.executable, "-m", "vista.delivery.bench_load", *arguments], cwd=ROOT, check=True)
    report = json.loads(out.read_text())
    found.rounds, found.lost, found.mixed = 1, report["lost"], report["mixed"]
    assert (found.lost, found.mixed) == (0, 0)
    assert set(report["reads"]) == {"bare_0", "bare_1", "drain", "live"}
    for reads in report["reads"].values():
        assert reads["reads"] > 0
        assert reads["unanswered"] == 0
    drained, live = report["samples"]["drain"][-1], report["samples"]["live"][-1]
    assert 0 < drained["written"] <= records
    assert drained["written"] < live["written"] <= records + live_s * LIVE_PER_S
    assert set(live["memory_bytes"]) == {"worker", "store", "producer"}
    assert len(report["bare_per_s"]) == 2
    for suffix, first in ((".png", b"\x89PNG"), (".svg", b"<?xml")):
        assert out.with_suffix(suffix).read_bytes().startswith(first)
    if full_size:
        assert [one["said"] for one in report["verdicts"] if not one["holds"]] == []
