"""The picture of an experiment's table: a panel per metric and block, every seed a mark, as PNG and SVG."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vista.evaluate.figures import COLOURS, STYLE, save_both


@dataclass(frozen=True, slots=True)
class Panel:
    """Values of each model by seed; `label` names the metric and what the bars are."""

    title: str
    label: str
    values: Mapping[str, Sequence[float]]


def save_figure(panels: Sequence[Panel], path: Path) -> None:
    """Write `path` with the suffixes .png and .svg; two panels beside each other."""
    rows = -(-len(panels) // 2)
    tallest = max(len(panel.values) for panel in panels)
    with mpl.rc_context(STYLE | {"svg.hashsalt": path.name}):
        figure = Figure(figsize=(9.2, rows * (1.0 + 0.3 * tallest)), layout="constrained")
        for place, panel in enumerate(panels, start=1):
            _draw(figure.add_subplot(rows, 2, place), panel)
        save_both(figure, path)


def _draw(axes: Axes, panel: Panel) -> None:
    for place, values in enumerate(panel.values.values()):
        error = stdev(values) if len(values) > 1 else 0.0
        axes.errorbar(fmean(values), place, xerr=error, fmt="o", color=COLOURS[0], markersize=5, capsize=3)
        axes.plot(values, [place] * len(values), "|", color=COLOURS[6], markersize=9)
    axes.set_yticks(range(len(panel.values)), list(panel.values))
    axes.set(title=panel.title, xlabel=panel.label, ylim=(len(panel.values) - 0.5, -0.5))
    axes.grid(axis="y", visible=False)
