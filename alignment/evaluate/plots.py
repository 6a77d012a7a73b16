"""Figures as inline SVG: drawn without pyplot, the same bytes for the same input, in the colours of the page.

Lines and text are drawn in placeholder colours that become CSS variables, so that one figure serves a light page,
a dark one and paper.
"""

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from alignment.evaluate.metrics import CalibrationBin, Interval

WIDTH = 10.3  # inches: the width of the page's column
ROUND_STEPS = [1, 2, 2.5, 5, 10]  # between ticks; matplotlib would also take 1.5 and 8
# Okabe and Ito's palette (2008), told apart by readers of every colour vision; markers repeat the distinction.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D46")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
INK, MUTED, GRID = "#010203", "#040506", "#070809"
_CSS = {INK: "currentColor", MUTED: "var(--muted)", GRID: "var(--grid)"}
_STYLE: dict[Any, Any] = {  # Any: matplotlib's stubs list every key as a literal
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "text.parse_math": False,  # a method may be named "$a$"
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "axes.formatter.useoffset": False,
}


@dataclass(frozen=True, slots=True)
class Style:
    """How a method looks in every figure."""

    colour: str
    marker: str


@dataclass(frozen=True, slots=True)
class DotPanel:
    """One figure per method, to be drawn as dots with whiskers."""

    title: str
    intervals: list[Interval | None]


def styles(names: Sequence[str]) -> dict[str, Style]:
    """A look for each distinct name, by order of appearance."""
    distinct = dict.fromkeys(names)
    return {
        name: Style(_COLOURS[index % len(_COLOURS)], _MARKERS[index % len(_MARKERS)])
        for index, name in enumerate(distinct)
    }


def render(label: str, size: tuple[float, float], draw: Callable[[Figure], None]) -> str:
    """The `<svg>` element of a figure of `size` inches; `label` is read out to who cannot see it."""
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": label}):
        figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(wspace=0.06, hspace=0.1))
        draw(figure)
        buffer = io.StringIO()
        no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=no_metadata)
    text = buffer.getvalue()
    svg = text[text.index("<svg") :]
    targets = set(re.findall(r'(?:url\(|href=")#([^")]+)', svg))
    # The ids that nothing refers to, such as axes_1, repeat from figure to figure: a page must have each id once.
    svg = re.sub(r' id="([^"]*)"', lambda match: match[0] if match[1] in targets else "", svg)
    svg = re.sub(r' (d|x|y)="[^"]*"', _to_hundredths, svg)
    for placeholder, variable in _CSS.items():
        svg = svg.replace(placeholder, variable)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{escape(label)}" ', 1)


def _to_hundredths(attribute: re.Match[str]) -> str:
    """Coordinates to a hundredth of a point: the other decimals are half of the file and nobody sees them."""
    return re.sub(r"(\.\d\d)\d+", r"\1", attribute[0])


def grid(figure: Figure, num_panels: int, num_columns: int) -> list[Axes]:
    """`num_panels` axes in reading order, `num_columns` to a row; the rest of the last row stays empty."""
    num_rows = -(-num_panels // num_columns)
    return [figure.add_subplot(num_rows, num_columns, index + 1) for index in range(num_panels)]


def comparison(names: list[str], baseline: str, looks: dict[str, Style], panels: list[DotPanel]) -> str:
    """Dots with 95% whiskers, one row per method and one panel per figure; a dashed line at the baseline's mean."""
    num_columns = min(4, len(panels))
    num_rows = -(-len(panels) // num_columns)

    def draw(figure: Figure) -> None:
        for index, (axes, panel) in enumerate(zip(grid(figure, len(panels), num_columns), panels, strict=True)):
            _dots(axes, panel, names, baseline, looks)
            axes.set_yticks(range(len(names)), names if index % num_columns == 0 else [""] * len(names))
            axes.tick_params(axis="y", labelcolor=INK)

    label = "Comparison of models: " + ", ".join(panel.title for panel in panels)
    return render(label, (WIDTH, num_rows * (0.85 + 0.27 * len(names))), draw)


def _dots(axes: Axes, panel: DotPanel, names: list[str], baseline: str, looks: dict[str, Style]) -> None:
    for row, (name, interval) in enumerate(zip(names, panel.intervals, strict=True)):
        if interval is None:
            continue
        look = looks[name]
        if name == baseline:
            axes.axvline(interval.mean, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
        axes.plot([interval.low, interval.high], [row, row], color=look.colour, linewidth=2, solid_capstyle="butt")
        axes.plot(interval.mean, row, marker=look.marker, color=look.colour, markersize=6.5)
    axes.set_title(panel.title)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.margins(x=0.08)
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(4, steps=ROUND_STEPS))


def calibration_plot(bins: list[CalibrationBin]) -> str:
    """Observed against predicted probability above, the share of pairs at each prediction below."""

    def draw(figure: Figure) -> None:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
        upper.plot([0.5, 1], [0.5, 1], color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
        predicted = np.array([row.predicted for row in bins])
        colour = _COLOURS[0]
        for row in bins:
            upper.plot([row.predicted] * 2, [row.observed.low, row.observed.high], color=colour, linewidth=2)
        upper.plot(predicted, [row.observed.mean for row in bins], "o", color=colour, markersize=6)
        upper.set(ylabel="observed share", xlim=(0.49, 1.01))
        counts = np.array([row.observed.n for row in bins])
        lower.bar(predicted, 100 * counts / counts.sum(), width=0.018, color=colour, alpha=0.55)
        lower.set(xlabel="predicted probability that the higher-scored reply is preferred", ylabel="% of pairs")
        lower.yaxis.set_major_locator(MaxNLocator(2, integer=True))

    return render("Calibration of the reward model", (6.2, 3.9), draw)
