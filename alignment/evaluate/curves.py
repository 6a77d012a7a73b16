"""Training curves: the rows of a run's metrics.jsonl as small multiples."""

import math
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from alignment.evaluate.plots import INK, MUTED, ROUND_STEPS, WIDTH, Style, grid, render
from alignment.evaluate.results import TrainingRun

MAX_POINTS = 400
_NUM_TREND = 40  # points of the bold line through a long, noisy curve
_NUM_COLUMNS = 3
_EVAL = "eval/"


@dataclass(frozen=True, slots=True)
class Panel:
    """A small plot of one metric, or of two that belong on one axis (the second is dashed)."""

    title: str
    metrics: tuple[str, ...]


PANELS = (
    Panel("Loss", ("loss",)),
    Panel("Pair accuracy (share)", ("rewards/accuracy",)),
    Panel("Reward margin, chosen - rejected", ("rewards/margin",)),
    Panel("Rewards", ("rewards/chosen", "rewards/rejected")),
    Panel("Log-probability (nats)", ("logps/chosen", "logps/rejected")),
    Panel("Policy loss", ("policy/loss",)),
    Panel("Value loss", ("value/loss",)),
    Panel("Entropy (nats per token)", ("entropy",)),
    Panel("Clipped ratios (share)", ("policy/clip_fraction",)),
    Panel("KL of one update (nats per token)", ("policy/approx_kl",)),
    Panel("Gradient norm", ("grad_norm",)),
)
_REWARD = Panel("Learned reward (mean per reply)", ("reward",))
_GOLD = Panel("Gold score (mean per reply)", ("gold",))
_OVERVIEW = (
    _REWARD,
    _GOLD,
    Panel("KL to the reference (nats per reply)", ("kl",)),
    Panel("Length (tokens)", ("length",)),
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


def training_curves(run: TrainingRun, look: Style) -> str | None:
    """Every known metric that the run logged; None where there is none."""
    panels = [panel for panel in PANELS if _is_logged(run, panel)]
    if not panels:
        return None
    return _small_multiples(run, look, panels)


def policy_overview(run: TrainingRun, look: Style) -> str | None:
    """Learned reward, gold score, KL and length over time; None unless the run logged a reward and a KL."""
    if not (len(series(run, "reward")) and len(series(run, "kl"))):
        return None
    panels = [panel for panel in _OVERVIEW if _is_logged(run, panel)]
    return _small_multiples(run, look, panels, num_columns=2)


def reward_against_kl(run: TrainingRun, look: Style) -> str | None:
    """Learned reward, and gold score, against the square root of KL (Gao et al., arXiv:2210.10760, figure 1).

    None unless the run logged a reward and a KL. Where reward goes on rising and gold turns down, the policy is
    exploiting the reward model. Estimates of KL below 0 are drawn at 0.
    """
    pairs = [(panel, _joined(run, "kl", panel.metrics[0])) for panel in (_REWARD, _GOLD)]
    pairs = [(panel, points) for panel, points in pairs if len(points)]
    if not pairs:
        return None

    def draw(figure: Figure) -> None:
        for axes, (panel, points) in zip(grid(figure, len(pairs), 2), pairs, strict=True):
            for limit, options in ((MAX_POINTS, {"alpha": 0.3, "linestyle": "none"}), (20, {"linewidth": 1.8})):
                kl, value = thin(points, limit).T
                size = 3.0 if limit == MAX_POINTS else 4.0
                axes.plot(np.sqrt(kl.clip(min=0)), value, color=look.colour, marker="o", markersize=size, **options)
            axes.set(title=panel.title, xlabel="√KL to the reference (√nats)")
            _ticks(axes)

    return render(f"Reward against the square root of KL of {run.name}", (WIDTH, 2.7), draw)


def _small_multiples(run: TrainingRun, look: Style, panels: list[Panel], num_columns: int = _NUM_COLUMNS) -> str:
    num_rows = -(-len(panels) // num_columns)

    def draw(figure: Figure) -> None:
        for index, (axes, panel) in enumerate(zip(grid(figure, len(panels), num_columns), panels, strict=True)):
            _curve(axes, run, look, panel)
            if index + num_columns >= len(panels):
                axes.set_xlabel("step")

    label = f"Training curves of {run.name}: " + ", ".join(panel.title for panel in panels)
    return render(label, (WIDTH, 2.15 * num_rows + 0.2), draw)


def _curve(axes: Axes, run: TrainingRun, look: Style, panel: Panel) -> None:
    for metric, dash in zip(panel.metrics, ("-", (0, (3, 1.5))), strict=False):
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
            label = f"{name}, held out" if len(panel.metrics) > 1 else "held out"
            face = INK if dash == "-" else "none"
            axes.plot(
                *thin(held_out).T,
                color=INK,
                marker="o",
                markersize=4,
                markerfacecolor=face,
                linestyle="none",
                label=label,
            )
    axes.set_title(panel.title)
    _ticks(axes)
    if len(axes.get_legend_handles_labels()[0]) > 1:
        axes.legend(fontsize=7.5, labelcolor=MUTED, loc="best", handlelength=1.8)


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
