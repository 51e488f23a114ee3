"""The pictures of a report, as SVG text to place in an HTML page: no address, no script, readable text.

A function that draws returns one `<svg>` element; the same input gives the same bytes.
"""

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vista.evaluate.bootstrap import Interval, PairedDifference
from vista.evaluate.metrics import CalibrationBins
from vista.evaluate.refresh_report import SummaryMap, TrainingCurve

INK, FAINT = "#1f2933", "#d5dbe1"
COLOURS = ("#0b5fa5", "#d55e00", "#00805f", "#a34a86", "#8a6d00", "#4f9fd4", "#5c6670", "#b03030")
"""Colours that remain distinct with the common colour blindnesses, all readable on white."""

DOTS_PER_INCH = 150
CURVE_POINTS = 60
"""Of the longest line of a panel; each is the mean of as many steps as it takes."""

STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": FAINT,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "font.family": "sans-serif",
    "font.size": 9,
    "grid.color": "#eceff2",
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text: selectable, and in the page's own font
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": INK,
    "ytick.color": INK,
}


def training_curves(curves: Sequence[TrainingCurve]) -> str:
    """One panel per metric, one line per model; a metric that no model has twice has none. Empty without a
    panel."""
    metrics = list(dict.fromkeys(curve.metric for curve in curves if len(curve.steps) > 1))
    models = list(dict.fromkeys(curve.model for curve in curves))
    if not metrics:
        return ""
    with mpl.rc_context(STYLE):
        figure, panels = _panels(len(metrics), columns=2, width=8.8 / min(2, len(metrics)), height=3.0)
        drawn: dict[str, Artist] = {}
        for metric, panel in zip(metrics, panels, strict=True):
            shown = [one for one in curves if one.metric == metric]
            together = -(-max(len(one.steps) for one in shown) // CURVE_POINTS)
            for curve in shown:
                steps, values = _means(curve, together)
                marker = "o" if len(steps) < 10 else ""
                colour = COLOURS[models.index(curve.model) % len(COLOURS)]
                (drawn[curve.model],) = panel.plot(steps, values, color=colour, marker=marker, markersize=4)
            panel.set(title=metric, xlabel="step")
        figure.legend(drawn.values(), drawn.keys(), loc="outside lower left", ncols=4)
        return _svg(figure, "training-curves")


def _means(curve: TrainingCurve, together: int) -> tuple[list[float], list[float]]:
    """The ends and the mean values of so many steps each; the last part may hold fewer."""
    firsts = np.arange(0, len(curve.steps), together)
    ends = np.append(firsts[1:], len(curve.steps))
    means = np.add.reduceat(curve.values, firsts) / (ends - firsts)
    return np.array(curve.steps)[ends - 1].tolist(), means.tolist()


def calibration(bins: Mapping[str, CalibrationBins]) -> str:
    """Observed against predicted rate, one panel per model; a point's area is its share of the rows."""
    with mpl.rc_context(STYLE):
        figure, panels = _panels(len(bins), columns=4, width=2.4, height=2.5)
        for (model, one), panel in zip(bins.items(), panels, strict=False):
            panel.plot((0, 1), (0, 1), color="#9aa5b1", linewidth=1, linestyle="--")
            area = [3 + 300 * rows / sum(one.rows) for rows in one.rows]
            panel.scatter(one.predicted, one.observed, s=area, color=COLOURS[0], alpha=0.75, linewidth=0)
            panel.set(
                title=model, xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), xlabel="predicted", ylabel="observed"
            )
            panel.set(xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
            panel.set_aspect("equal")
        return _svg(figure, "calibration")


def paired_differences(paired: Mapping[str, PairedDifference]) -> str:
    """AUC and NE of each model minus the reference's, with 95% intervals; better is to the right in both."""
    with mpl.rc_context(STYLE):
        figure, (left, right) = _panels(2, columns=2, width=4.6, height=0.7 + 0.34 * len(paired))
        _intervals(left, {model: one.auc for model, one in paired.items()}, "AUC difference")
        _intervals(right, {model: one.ne for model, one in paired.items()}, "NE difference (axis reversed)")
        right.invert_xaxis()
        right.tick_params(axis="y", left=False, labelleft=False)
        return _svg(figure, "paired-differences")


def summary_map(points: SummaryMap) -> str:
    """Users on two principal components of their summaries, coloured by an attribute that parts them."""
    place = np.array([points.groups.index(one) for one in points.group])
    shown = np.unique(place).tolist()
    ramp = mpl.colormaps["viridis"](np.linspace(0, 0.82, max(2, len(points.groups))))
    palette = list(ramp) if points.ordered else list(COLOURS)
    x, y = np.array(points.x), np.array(points.y)
    with mpl.rc_context(STYLE):
        figure, (panel,) = _panels(1, columns=1, width=6.4, height=4.2)
        for group in shown:
            inside = place == group
            colour = palette[group % len(palette)] if len(shown) > 1 else COLOURS[0]
            label = f"{points.groups[group]} ({inside.sum():,})"
            panel.scatter(x[inside], y[inside], s=11, alpha=0.75, linewidth=0, color=colour, label=label)
        panel.set(
            xlabel=f"component 1 ({points.explained[0]:.0%} of the variance)",
            ylabel=f"component 2 ({points.explained[1]:.0%})",
        )
        if len(shown) > 1:
            figure.legend(title=points.attribute, loc="outside right center", alignment="left", markerscale=2)
        panel.set_aspect("equal", adjustable="datalim")  # distances are what a map is for
        return _svg(figure, "summary-map")


def as_file(svg: str) -> str:
    """A picture with the namespaces that a file of its own needs, on white."""
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return svg.replace("<svg ", f'<svg {spaces} style="background: white" ', 1)


def _intervals(panel: Axes, intervals: Mapping[str, Interval], title: str) -> None:
    panel.axvline(0, color="#9aa5b1", linewidth=1, linestyle="--")
    for place, one in enumerate(intervals.values()):
        colour = COLOURS[6] if one.low <= 0 <= one.high else COLOURS[0]
        panel.plot((one.low, one.high), (place, place), color=colour, linewidth=2, solid_capstyle="butt")
        panel.plot(one.point, place, "o", color=colour, markersize=5)
    panel.set_yticks(range(len(intervals)), list(intervals))
    panel.set(title=title, ylim=(len(intervals) - 0.5, -0.5))
    panel.grid(axis="y", visible=False)


def _panels(count: int, *, columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A figure with `count` axes, `width` x `height` inches each."""
    columns = min(columns, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(columns * width, rows * height), layout="constrained")
    return figure, [figure.add_subplot(rows, columns, place + 1) for place in range(count)]


def save_both(figure: Figure, path: Path) -> None:
    """Write `path` with the suffixes .png and .svg."""
    figure.savefig(path.with_suffix(".png"), dpi=DOTS_PER_INCH)
    figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})


def _svg(figure: Figure, name: str) -> str:
    """The `<svg>` element, without the prologue, metadata and namespaces that only a file of its own needs.

    `name` keeps the ids of one page's pictures apart.
    """
    drawn = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": name}):
        figure.savefig(drawn, format="svg", transparent=True, metadata={"Date": None})
    text = drawn.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text)
    text = re.sub(r'\b(id="|xlink:href="#|url\(#)', rf"\1{name}-", text)
    return text.replace("<svg ", f'<svg role="img" aria-label="{name.replace("-", " ")}" ', 1)
