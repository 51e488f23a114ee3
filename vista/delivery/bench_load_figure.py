"""The picture of `bench_load`: rate, lag, reads and memory over time, as PNG and SVG."""

from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from vista.delivery.bench_load_clients import LIVE_PER_S
from vista.delivery.bench_load_report import DRAIN_OF_BARE, READ_P99_S, Phase
from vista.evaluate.figures import COLOURS, STYLE, save_both

WINDOW_S = 5.0
"""Of a rate and of a percentile: of 1,000 reads."""


def save_figure(phases: Mapping[str, Phase], bare_per_s: float, path: Path) -> None:
    """Write `path` with the suffixes .png and .svg; a column for the drain, one for the live producer."""
    with mpl.rc_context(STYLE | {"svg.hashsalt": path.name}):
        figure = Figure(figsize=(9.2, 9.6), layout="constrained")
        panels = figure.subplots(4, 2, sharex="col")
        panels[0, 0].set_title("waiting records are drained")
        panels[0, 1].set_title("a live producer sends")
        _draw_rate(
            panels[0, 0], phases["drain"], DRAIN_OF_BARE * bare_per_s, f"{DRAIN_OF_BARE:.0%} of the bare loop"
        )
        _draw_rate(panels[0, 1], phases["live"], LIVE_PER_S, "the producer")
        for column, name in enumerate(("drain", "live")):
            _draw_lag(panels[1, column], phases[name])
            _draw_reads(panels[2, column], phases[name])
            _draw_memory(panels[3, column], phases[name])
            panels[3, column].set_xlabel("time (s)")
        labels = ("written (records/s)", "lag (records)", "one read, p99 (ms)", "memory since the start (MB)")
        for axes, label in zip(panels[:, 0], labels, strict=True):
            axes.set_ylabel(label)
        save_both(figure, path)


def _draw_rate(axes: Axes, phase: Phase, wanted_per_s: float, label: str) -> None:
    at_s, written = _times(phase), np.array([one.written for one in phase.samples])
    firsts = list(_window_starts(at_s))
    rates = [(written[end] - written[first]) / (at_s[end] - at_s[first]) for first, end in pairwise(firsts)]
    axes.plot(at_s[firsts[1:]], rates, color=COLOURS[0])
    axes.axhline(wanted_per_s, color=COLOURS[1], linewidth=1, linestyle="--", label=label)
    axes.set_ylim(bottom=0)
    axes.legend(loc="lower right")


def _draw_lag(axes: Axes, phase: Phase) -> None:
    lag = np.array([one.lag for one in phase.samples], np.float64)
    axes.plot(_times(phase), lag, color=COLOURS[0], linewidth=1)
    axes.set_ylim(bottom=0)


def _draw_reads(axes: Axes, phase: Phase) -> None:
    due_s = phase.reads[:, 0] - phase.started_s
    took_ms = 1e3 * (phase.reads[:, 2] - phase.reads[:, 0])
    firsts = list(_window_starts(due_s))
    p99_ms = [np.percentile(took_ms[first:end], 99) for first, end in pairwise(firsts)]
    axes.plot(due_s[firsts[1:]], p99_ms, color=COLOURS[0])
    axes.axhline(READ_P99_S * 1e3, color=COLOURS[1], linewidth=1, linestyle="--", label="the limit")
    axes.set_ylim(bottom=0)
    axes.legend(loc="best")


def _draw_memory(axes: Axes, phase: Phase) -> None:
    at_s = _times(phase)
    for name, colour in zip(phase.samples[-1].memory_bytes, COLOURS, strict=False):
        size = np.array([one.memory_bytes[name] for one in phase.samples])
        axes.plot(at_s, (size - size[0]) / 1e6, color=colour, label=name)
    axes.legend(loc="best")


def _times(phase: Phase) -> NDArray[np.float64]:
    return np.array([one.at_s for one in phase.samples]) - phase.started_s


def _window_starts(at_s: NDArray[np.float64]) -> Iterator[int]:
    """Places in rising times that are a window apart, and the last one."""
    first_s = at_s[0]
    yield 0
    for place, time_s in enumerate(at_s):
        if time_s - first_s >= WINDOW_S:
            first_s = time_s
            yield place
