"""What `bench_load` found, and what is judged."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vista.delivery.bench_load_clients import LIVE_PER_S
from vista.evaluate.verdicts import Verdict

DRAIN_OF_BARE = 0.7
READ_P99_S = 0.005
SENT_SHARE = 0.99
"""Of the live producer's rate: below it the load was another one."""
LAG_SLOPE_PER_S = LIVE_PER_S / 500
"""Of the fitted line: in five minutes .6 s of the stream."""
MEMORY_RISE_BYTES = 32 * 2**20
"""Of the fitted line from the first sample to the last, of each process."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What the worker said at a time, its lag once it knows it, and the memory of the processes."""

    at_s: float
    written: int
    lag: float | None
    memory_bytes: Mapping[str, int]


@dataclass
class Phase:
    """Samples of the worker, and [reads, 3] when each read was due, began and ended."""

    started_s: float = field(default_factory=time.monotonic)
    """When the reader was there."""
    samples: list[Sample] = field(default_factory=list)
    reads: NDArray[np.float64] = field(default_factory=lambda: np.empty((0, 3)))
    read_counts: dict[str, int] = field(default_factory=dict)

    @property
    def idle_until_s(self) -> float:
        """The last time at which the worker had written nothing, in `drain` while it was starting."""
        return max((one.at_s for one in self.samples if not one.written), default=self.started_s)


def report_of(phases: Mapping[str, Phase], measured: Mapping[str, Any]) -> dict[str, Any]:
    """Everything as JSON takes it, judged."""
    drained_per_s = drain_rate(phases["drain"])
    live = live_figures(phases["live"].samples)
    reads = {name: read_figures(phase) for name, phase in phases.items()}
    verdicts = [
        Verdict("drained / bare loop", drained_per_s / max(measured["bare_per_s"]), DRAIN_OF_BARE, True),
        Verdict("ms a read takes while draining (p99)", reads["drain"]["p99_ms"], READ_P99_S * 1e3),
        Verdict("live records sent per s", measured["sent_per_s"], SENT_SHARE * LIVE_PER_S, True),
        Verdict("lag's slope, records per s", abs(live["lag_slope_per_s"]), LAG_SLOPE_PER_S),
        *(
            Verdict(f"MB that the {name} grows", rise / 1e6, MEMORY_RISE_BYTES / 1e6)
            for name, rise in live["memory_rise_bytes"].items()
        ),
        Verdict("reads not answered by the region", sum(one["unanswered"] for one in reads.values()), 0),
        Verdict("summaries lost", measured["lost"], 0),
        Verdict("summaries of another user", measured["mixed"], 0),
    ]
    return {
        **measured,
        "drained_per_s": round(drained_per_s),
        "live": live,
        "reads": reads,
        "verdicts": [asdict(one) | {"holds": one.holds, "said": str(one)} for one in verdicts],
        "samples": {name: [asdict(one) for one in phase.samples] for name, phase in phases.items()},
    }


def drain_rate(phase: Phase) -> float:
    """From the last time at which nothing was written to when all was."""
    return phase.samples[-1].written / (phase.samples[-1].at_s - phase.idle_until_s)


def live_figures(samples: Sequence[Sample]) -> dict[str, Any]:
    """Lag, and what fitted lines say."""
    at_s = np.array([one.at_s for one in samples])
    lag = np.array([one.lag for one in samples], np.float64)
    took_s = float(at_s[-1] - at_s[0])
    return {
        "seconds": round(took_s, 1),
        "lag_median": float(np.median(lag)),
        "lag_max": float(lag.max()),
        "lag_slope_per_s": slope(at_s, lag),
        "memory_rise_bytes": {
            name: round(slope(at_s, np.array([one.memory_bytes[name] for one in samples])) * took_s)
            for name in samples[0].memory_bytes
        },
    }


def slope(at_s: NDArray[np.float64], values: NDArray[Any]) -> float:
    """Per second, of the line with the least squares."""
    return float(np.polyfit(at_s - at_s[0], values, 1)[0])


def read_figures(phase: Phase) -> dict[str, Any]:
    """Milliseconds from when a read was due to its answer, of those that were answered while there was load;
    `call` is from when it began."""
    due_s, began_s, ended_s = phase.reads[phase.reads[:, 2] >= phase.idle_until_s].T
    p50_ms, p99_ms, p999_ms = (1e3 * np.percentile(ended_s - due_s, (50, 99, 99.9))).tolist()
    return {
        "reads": len(due_s),
        "unanswered": sum(count for name, count in phase.read_counts.items() if name != "nearest"),
        "p50_ms": round(p50_ms, 3),
        "p99_ms": round(p99_ms, 3),
        "p999_ms": round(p999_ms, 3),
        "call_p99_ms": round(1e3 * float(np.percentile(ended_s - began_s, 99)), 3),
    }
