"""Alarms of a run, read off its rows and told at the top of the page."""

import re

from alignment.evaluate.alarms import Raised, alarm_box, raised
from alignment.evaluate.curves import policy_overview
from alignment.evaluate.plots import Style
from alignment.evaluate.report import report
from alignment.evaluate.results import TrainingRun

LOOK = Style("#0072B2", "o")


def run_of(*flags, name="ppo", alarm="over_optimisation"):
    rows = [{"step": step} | ({} if flag is None else {f"alarm/{alarm}": flag}) for step, flag in enumerate(flags, 1)]
    return TrainingRun(name, "ppo", rows, "")


def test_since_when_and_how_often():
    assert raised(run_of(None, None, 0.0, 1.0, 0.0, 1.0)) == [Raised("ppo", "over_optimisation", 4, 2, 4)]
    assert raised(run_of(None, 0.0, 0.25, 0.0)) == [Raised("ppo", "over_optimisation", 3, 1, 3)]  # a row of 4 steps


def test_none_where_none_was_raised_or_judged():
    assert raised(run_of(None, 0.0, 0.0)) == raised(run_of(None)) == []
    assert alarm_box([run_of(None, 0.0), TrainingRun("dpo", "dpo", [{"step": 1, "loss": 1.0}], "")]) == ""


def test_the_first_raised_comes_first():
    run = run_of(0.0, 0.0, 1.0)
    for row, flag in zip(run.metrics, (0.0, 1.0, 1.0), strict=True):
        row["alarm/kl"] = flag
    assert [(alarm.name, alarm.since) for alarm in raised(run)] == [("kl", 2), ("over_optimisation", 3)]


def test_the_box_tells_it_in_words_and_escapes_names():
    html = alarm_box([run_of(0.0, 1.0, name="<i>no KL</i>"), run_of(1.0, name="b", alarm="kl")])
    assert "<b>&lt;i&gt;no KL&lt;/i&gt;</b>: the learned reward rises while the gold score falls." in html
    assert "Raised at step 2, and at 1 of 2 logged steps (over_optimisation)." in html
    assert "<b>b</b>: the KL to the reference is above alarm.max_kl. Raised at step 1" in html
    assert "<strong>2 alarms</strong>" in html
    assert "<strong>Alarm</strong>" in alarm_box([run_of(1.0)])


def test_it_stands_at_the_top_of_the_page(study):
    assert 'class="alarm"' not in report(study)
    for row in study.runs[2].metrics:
        row["alarm/over_optimisation"] = float(row["step"] > 120)
    html = report(study)
    header = html[html.index("<header>") : html.index("</header>")]
    assert re.search(r'class="alarm" role="alert".*ppo, no KL.*Raised at step 121, and at 180 of 300', header)


def test_the_overview_marks_its_first_step(study):
    calm = policy_overview(study.runs[2], LOOK).svg
    study.runs[2].metrics[119]["alarm/over_optimisation"] = 1.0
    marked = policy_overview(study.runs[2], LOOK).svg
    assert marked.count("stroke-dasharray") == calm.count("stroke-dasharray") + 4  # a line in each of four panels
