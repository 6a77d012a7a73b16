"""Training curves: the rows of a run's metrics.jsonl as small multiples."""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from textwrap import wrap

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from alignment.config.metrics import PAIRS, STDERR
from alignment.config.metrics import metric as known_metric
from alignment.evaluate.alarms import raised
from alignment.evaluate.plots import INK, MUTED, ROUND_STEPS, WIDTH, Style, grid, render
from alignment.evaluate.results import TrainingRun

MAX_POINTS = 400
_NUM_TREND = 40  # points of the bold line through a long, noisy curve
_NUM_COLUMNS = 3
_SMALL = 7.5  # points of the words below a name
_EVAL = "eval/"
_DASHES = ("-", (0, (3, 1.5)), (0, (1, 1)))


@dataclass(frozen=True, slots=True)
class Panel:
    """A small plot of one metric, or of two or three that belong on one axis (the second dashed, the third dotted)."""

    metrics: tuple[str, ...]
    said: str = ""  # of several together; one alone has its words in the glossary

    @property
    def title(self) -> str:
        """The names that the metrics have in the rows."""
        return ", ".join(self.metrics)

    @property
    def words(self) -> str:
        """What they are, with their unit; nothing of a metric that only a method from outside knows."""
        known = known_metric(self.metrics[0])
        return self.said or ("" if known is None else known.words())


@dataclass(frozen=True, slots=True)
class Plot:
    """A figure, and the metrics that are shown in it and need no curve elsewhere."""

    svg: str
    metrics: tuple[str, ...]


_REWARD, _GOLD, _KL, _LENGTH = (Panel((name,)) for name in ("reward", "gold", "kl", "length"))
_OVERVIEW = (_REWARD, _GOLD, _KL, _LENGTH)
_CORRELATION = Panel(("length/reward_correlation",))
FIRST = (  # the order of those that every reader looks for, and metrics that belong together; others by their names
    *(Panel((name,)) for name in ("loss", "rewards/accuracy", "rewards/margin")),
    Panel(("rewards/chosen", "rewards/rejected"), "rewards of the chosen and of the rejected reply"),
    Panel(("logps/chosen", "logps/rejected"), "log-probabilities of the chosen and of the rejected reply (nats)"),
    *(Panel((name,)) for name in ("value/loss", "entropy")),
    Panel(
        ("distinct_1", "distinct_2", "distinct_3"), "distinct n-grams of tokens among all of the replies, n 1-3 (share)"
    ),
    *(Panel((name,)) for name in ("finished", "policy/clip_fraction", "policy/approx_kl", "grad_norm")),
    *(_REWARD, _GOLD, _KL, _LENGTH, _CORRELATION),
)


def series(run: TrainingRun, metric: str) -> np.ndarray:
    """(step, value) rows [N, 2] of a metric; rows that lack it, or where it is not a finite number, are left out."""
    points = [(row["step"], row[metric]) for row in run.metrics if _is_number(row.get(metric))]
    return np.array(points, dtype=np.float64).reshape(-1, 2)


def num_unplottable(run: TrainingRun) -> int:
    """How many logged values are infinite or not a number: the page says so, since a plot cannot."""
    return sum(isinstance(v, float) and not math.isfinite(v) for row in run.metrics for v in row.values())


def thin(points: np.ndarray, limit: int = MAX_POINTS) -> np.ndarray:
    """At most `limit` points [<= limit, K], each the average of equally many neighbours in the curve [N, K].

    Equally many, but for the last point: stretches of one and of two would show a curve whose noise changes halfway.
    """
    if len(points) <= limit:
        return points
    stretch = -(-len(points) // limit)
    return np.array([points[start : start + stretch].mean(axis=0) for start in range(0, len(points), stretch)])


def training_curves(run: TrainingRun, look: Style, elsewhere: Collection[str]) -> Plot | None:
    """Every metric that the run logged, whatever its method is, but for those shown `elsewhere`, for `step` and
    `time/*`, which say where the run was and how fast, and for what intervals are made from; None where there is
    none."""
    logged = {name.removeprefix(_EVAL) for row in run.metrics for name, value in row.items() if _is_number(value)}
    left = {name for name in logged - {"step", PAIRS, *elsewhere} if not name.startswith(("time/", STDERR))}
    panels = [panel for panel in FIRST if left.intersection(panel.metrics)]
    left = left.difference(*(panel.metrics for panel in panels))
    panels += [Panel((name,)) for name in sorted(left)]
    return _small_multiples(run, look, panels) if panels else None


def policy_overview(run: TrainingRun, look: Style) -> Plot | None:
    """Learned reward, gold score, KL and length over time; None unless the run logged two of them or more."""
    panels = [panel for panel in _OVERVIEW if _is_logged(run, panel)]
    if len(panels) < 2:
        return None
    return _small_multiples(run, look, panels, num_columns=2, marks=[alarm.since for alarm in raised(run)])


def reward_against_kl(run: TrainingRun, look: Style) -> Plot | None:
    """Learned reward, and gold score, against the square root of KL (Gao et al., arXiv:2210.10760, figure 1).

    None unless the run logged one of them and a KL. Where reward goes on rising and gold turns down, the policy is
    exploiting the reward model. Estimates of KL below 0 are drawn at 0.
    """
    pairs = [(panel, _joined(run, "kl", panel.metrics[0])) for panel in (_REWARD, _GOLD)]
    pairs = [(panel, points) for panel, points in pairs if len(points)]
    if not pairs:
        return None

    def draw(figure: Figure) -> None:
        for axes, (panel, points) in zip(grid(figure, len(pairs), 2), pairs, strict=True):
            _course(axes, points, look, lambda kl: np.sqrt(kl.clip(min=0)))
            _head(axes, panel, 2)
            axes.set_xlabel("√KL to the reference (√nats)")

    return Plot(render(f"Reward against the square root of KL of {run.name}", (WIDTH, 3.0), draw), ("kl/sqrt",))


def length_against_reward(run: TrainingRun, look: Style) -> Plot | None:
    """Learned reward against length, and their correlation within a step; None unless the run logged both.

    A reward that goes with length, over training or among the replies of one step, is paid for length (Singhal et al.,
    arXiv:2310.03716).
    """
    points = _joined(run, "length", "reward")
    if not len(points):
        return None
    correlation = _CORRELATION.metrics if _is_logged(run, _CORRELATION) else ()

    def draw(figure: Figure) -> None:
        left, *right = grid(figure, 1 + len(correlation), 2)
        _course(left, points, look, lambda length: length)
        _head(left, _REWARD, 2)
        left.set_xlabel("length (tokens, mean per reply)")
        for axes in right:
            _curve(axes, run, look, _CORRELATION)
            _head(axes, _CORRELATION, 2)
            axes.set_xlabel("step")

    return Plot(render(f"Length against reward of {run.name}", (WIDTH, 3.0), draw), correlation)


def _course(axes: Axes, points: np.ndarray, look: Style, scale: Callable[[np.ndarray], np.ndarray]) -> None:
    """The steps [N, 2], and the course of training through them; `scale` turns averages into what is drawn along x."""
    for limit, options in ((MAX_POINTS, {"alpha": 0.3, "linestyle": "none"}), (20, {"linewidth": 1.8})):
        x, y = thin(points, limit).T
        size = 3.0 if limit == MAX_POINTS else 4.0
        axes.plot(scale(x), y, color=look.colour, marker="o", markersize=size, **options)
    _ticks(axes)


def _small_multiples(
    run: TrainingRun, look: Style, panels: list[Panel], num_columns: int = _NUM_COLUMNS, marks: Sequence[int] = ()
) -> Plot:
    """The curves of `panels`, each with a dashed line at the steps in `marks`."""
    num_rows = -(-len(panels) // num_columns)

    def draw(figure: Figure) -> None:
        for index, (axes, panel) in enumerate(zip(grid(figure, len(panels), num_columns), panels, strict=True)):
            _curve(axes, run, look, panel)
            _head(axes, panel, num_columns)
            for step in marks:
                axes.axvline(step, color=INK, linewidth=0.9, linestyle=(0, (4, 3)))
            if index + num_columns >= len(panels):
                axes.set_xlabel("step")

    label = f"Training curves of {run.name}: " + ", ".join(panel.title for panel in panels)
    svg = render(label, (WIDTH, 2.45 * num_rows + 0.2), draw)
    return Plot(svg, tuple(metric for panel in panels for metric in panel.metrics))


def _curve(axes: Axes, run: TrainingRun, look: Style, panel: Panel) -> None:
    for metric, dash in zip(panel.metrics, _DASHES, strict=False):
        name = metric.split("/")[-1]
        trained, held_out = series(run, metric), series(run, _EVAL + metric)
        label = name if len(panel.metrics) > 1 else "training"
        if len(trained) > 2 * _NUM_TREND:
            axes.plot(*thin(trained).T, color=look.colour, linewidth=0.7, alpha=0.35)
            axes.plot(*thin(trained, _NUM_TREND).T, color=look.colour, linewidth=1.8, linestyle=dash, label=label)
        elif len(trained):
            alone = "o" if len(trained) == 1 else None
            axes.plot(*trained.T, color=look.colour, linewidth=1.6, linestyle=dash, marker=alone, label=label)
        if len(held_out):
            # With three metrics the dots have no name: six names would hide the lines.
            dots_label = ("held out", f"{name}, held out", None)[len(panel.metrics) - 1]
            face = INK if dash == "-" else "none"
            axes.plot(
                *thin(held_out).T,
                color=INK,
                marker="o",
                markersize=4,
                markerfacecolor=face,
                linestyle="none",
                label=dots_label,
            )
    _ticks(axes)
    if len(axes.get_legend_handles_labels()[0]) > 1:
        axes.legend(fontsize=7.5, labelcolor=MUTED, loc="best", handlelength=1.8)


def _head(axes: Axes, panel: Panel, num_columns: int) -> None:
    """A metric's name, and below it what it is, in lines that a column of `num_columns` has room for."""
    lines = wrap(panel.words, 168 // num_columns)
    axes.set_title("\n".join(lines), fontsize=_SMALL, color=MUTED)
    above = 8 + len(lines) * _SMALL * 1.35
    axes.annotate(panel.title, (0, 1), (0, above), xycoords="axes fraction", textcoords="offset points", fontsize=9.5)


def _ticks(axes: Axes) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=ROUND_STEPS))
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=ROUND_STEPS))


def _joined(run: TrainingRun, first: str, second: str) -> np.ndarray:
    """Rows [N, 2] of two metrics logged at the same time."""
    points = [
        (row[first], row[second]) for row in run.metrics if _is_number(row.get(first)) and _is_number(row.get(second))
    ]
    return np.array(points, dtype=np.float64).reshape(-1, 2)


def _is_logged(run: TrainingRun, panel: Panel) -> bool:
    return any(len(series(run, prefix + metric)) for metric in panel.metrics for prefix in ("", _EVAL))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
