"""The pictures of a report, as SVG text to place in an HTML page: no address, no script, readable text.

Every function returns one `<svg>` element; the same input gives the same bytes.
"""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vista.evaluate.bootstrap import Interval, PairedDifference
from vista.evaluate.metrics import CalibrationBins
from vista.evaluate.refresh_report import SummaryMap, TrainingCurve

INK, FAINT = "#1f2933", "#d5dbe1"
COLOURS = ("#0b5fa5", "#d55e00", "#00805f", "#a34a86", "#8a6d00", "#4f9fd4", "#5c6670", "#b03030")
"""Colours that remain distinct with the common colour blindnesses, all readable on white."""

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
    """One panel per metric, one line per model."""
    metrics = list(dict.fromkeys(curve.metric for curve in curves))
    models = list(dict.fromkeys(curve.model for curve in curves))
    with mpl.rc_context(STYLE):
        figure, panels = _panels(len(metrics), columns=2, width=4.6, height=2.9)
        for metric, panel in zip(metrics, panels, strict=False):
            for curve in (one for one in curves if one.metric == metric):
                marker = "o" if len(curve.steps) < 30 else ""
                colour = COLOURS[models.index(curve.model) % len(COLOURS)]
                panel.plot(
                    curve.steps, curve.values, label=curve.model, color=colour, marker=marker, markersize=3
                )
            panel.set(title=metric, xlabel="step")
            panel.legend(fontsize=8)
        return _svg(figure, "training-curves")


def calibration(bins: Mapping[str, CalibrationBins]) -> str:
    """Observed against predicted rate, one panel per model; a point's area is its share of the rows."""
    with mpl.rc_context(STYLE):
        figure, panels = _panels(len(bins), columns=4, width=2.4, height=2.5)
        for (model, one), panel in zip(bins.items(), panels, strict=False):
            panel.plot((0, 1), (0, 1), color="#9aa5b1", linewidth=1, linestyle="--")
            area = [8 + 220 * rows / sum(one.rows) for rows in one.rows]
            panel.plot(one.predicted, one.observed, color=COLOURS[0], linewidth=1, alpha=0.5)
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
    """Users on two principal components of their summaries, coloured by an attribute."""
    ramp = mpl.colormaps["viridis"]
    with mpl.rc_context(STYLE):
        figure, (panel,) = _panels(1, columns=1, width=6.4, height=4.2)
        for place, group in enumerate(points.groups):
            inside = [one == group for one in points.group]
            if not any(inside):
                continue
            panel.scatter(
                [x for x, here in zip(points.x, inside, strict=True) if here],
                [y for y, here in zip(points.y, inside, strict=True) if here],
                s=11,
                alpha=0.75,
                linewidth=0,
                color=ramp(0.82 * place / max(1, len(points.groups) - 1)),
                label=f"{group} ({sum(inside):,})",
            )
        panel.set(
            xlabel=f"component 1 ({points.explained[0]:.0%} of the variance)",
            ylabel=f"component 2 ({points.explained[1]:.0%})",
        )
        panel.legend(title=points.attribute, loc="center left", bbox_to_anchor=(1.01, 0.5), alignment="left")
        return _svg(figure, "summary-map")


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
