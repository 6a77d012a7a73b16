"""The figures of a run: each metric once, whatever the method is."""

from collections import Counter

import numpy as np
import pytest
from matplotlib.axes import Axes

from alignment.evaluate.curves import MAX_POINTS, length_against_reward, policy_overview, series, thin, training_curves
from alignment.evaluate.plots import Style
from alignment.evaluate.report import report
from alignment.evaluate.results import TrainingRun

LOOK = Style("#0072B2", "o")
LEARNED = ("loss", "grad_norm", "lr", "skipped_steps")
PAIRS = ("rewards/accuracy", "rewards/margin", "rewards/chosen", "rewards/rejected", "logps/chosen", "logps/rejected")
REPLIES = ("reward", "reward/helpful", "length", "length/reward_correlation", "distinct_1", "distinct_2", "distinct_3")
LOGGED = {
    "ppo": (*LEARNED, *REPLIES, "gold", "kl", "kl/sqrt", "kl/weight", "entropy", "value/loss", "eval/reward"),
    "online_dpo": (*LEARNED, *REPLIES, *PAIRS, "gold", "pairs", "alarm/over_optimisation"),
    "kto": (*LEARNED, "kl", "rewards/chosen", "rewards/rejected", "eval/kl", "eval/loss"),
    "my.method": ("loss", "step_size", "stepwise/accuracy", "length/penalty", "timeout", "kl/sqrt_2", "eval/theirs"),
    "judged by gold alone": (*LEARNED, "gold", "kl", "kl/sqrt"),
    "judged when held out": (*LEARNED, "eval/reward", "eval/length", "eval/length/reward_correlation", "kl/sqrt"),
    "rejection": ("reward", "reward/best", "reward/worst", "rows"),
}


@pytest.mark.parametrize("task", LOGGED)
def test_every_metric_of_a_run_is_drawn_once(task, study, monkeypatch):
    """Over the steps, where the root of the KL is not what a reward is drawn against; `step` and `time/*` never are."""
    steps, names, drawn, plot = [1, 2, 3], LOGGED[task], Counter(), Axes.plot

    def watched(axes, x, y, *more, **options):
        if np.array_equal(x, steps):
            drawn[names[int(y[0]) // 10]] += 1
        return plot(axes, x, y, *more, **options)

    rows = [{name: 10 * index + step for index, name in enumerate(names)} for step in steps]
    rows = [{"step": step, "time/step_s": 1000 + step, **row} for step, row in zip(steps, rows, strict=True)]
    study.runs = [TrainingRun("mine", task, rows, "")]
    monkeypatch.setattr(Axes, "plot", watched)
    if "√KL to the reference" in report(study):
        drawn["kl/sqrt"] += 1
    assert drawn == Counter(names)


def test_two_of_its_metrics_make_an_overview(study):
    run = study.runs[2]
    run.metrics = [{name: row[name] for name in ("step", "reward", "length")} for row in run.metrics]
    assert policy_overview(run, LOOK).metrics == ("reward", "length")
    run.metrics = [{name: row[name] for name in ("step", "reward")} for row in run.metrics]
    assert policy_overview(run, LOOK) is None


def test_length_against_reward_needs_both(study):
    run = study.runs[2]
    assert length_against_reward(study.runs[0], LOOK) is None
    assert ">length/reward_correlation<" in length_against_reward(run, LOOK).svg
    study.runs = [run]
    assert "Right: Pearson" in report(study)
    run.metrics = [{name: row[name] for name in ("step", "length", "reward")} for row in run.metrics]
    assert "Correlation" not in length_against_reward(run, LOOK).svg
    assert "Right: Pearson" not in report(study)
    assert "length (tokens, mean per reply)" in length_against_reward(run, LOOK).svg
    run.metrics = [{name: row[name] for name in ("step", "reward")} for row in run.metrics]
    assert length_against_reward(run, LOOK) is None


def test_three_metrics_of_a_panel_are_three_lines(study):
    html = report(study)
    assert all(f">distinct_{n}</text>" in html for n in (1, 2, 3))


def test_thinning_averages_equal_stretches():
    points = np.column_stack([np.arange(10.0), np.arange(10.0) ** 2])
    assert thin(points, 10) is points
    assert thin(points, 4).tolist() == [[1.0, 5 / 3], [4.0, 50 / 3], [7.0, 149 / 3], [9.0, 81.0]]
    assert len(thin(np.zeros((100_001, 2)))) <= MAX_POINTS


def test_series_keeps_only_rows_with_the_metric():
    run = TrainingRun("r", "dpo", [{"step": 1, "loss": 2.0}, {"step": 2, "lr": 0.1}, {"step": 3, "loss": None}], "")
    assert series(run, "loss").tolist() == [[1.0, 2.0]]
    assert series(run, "gold").shape == (0, 2)


def test_a_curve_has_its_metric_s_name_and_below_it_the_glossary_s_words():
    rows = [{"step": step, "grad_norm": 1.0, "kl": 0.5, "of_mine": 2.0} for step in (1, 2)]
    svg = training_curves(TrainingRun("a", "dpo", rows, ""), LOOK, ()).svg
    for text in (
        "grad_norm",
        "norm of the gradient, before it is clipped",
        "kl",
        "KL of the policy to its reference; of KTO the z of its",
        "loss (nats per reply)",
        "of_mine",
    ):
        assert f">{text}<" in svg, text
