"""The comparison: what it shows, what it leaves out, and that each outlet shows the same."""

import io
import json
import math

import pytest
from rich.console import Console

from alignment.evaluate.columns import Column, columns, mark
from alignment.evaluate.comparison import compare
from alignment.evaluate.metrics import Interval, confidence_interval, distinct_n, paired_difference, win_rate
from alignment.evaluate.results import Evaluation, MethodResult
from alignment.evaluate.table import notes, summary, terminal_table


def printed(evaluation: Evaluation) -> str:
    page = io.StringIO()
    Console(width=200, file=page).print(terminal_table(evaluation))
    return page.getvalue()


def test_rows_hold_the_figures_of_their_method(study):
    sft, dpo = compare(study)[:2]
    base, method = study.methods[:2]
    assert dpo.gold == confidence_interval(method.gold)
    assert dpo.gold_difference == paired_difference(method.gold, base.gold)
    assert dpo.reward_difference == paired_difference(method.reward, base.reward)
    assert dpo.win_rate == win_rate(method.gold, base.gold)
    assert dpo.kl == confidence_interval(method.kl)
    assert dpo.distinct_2 == distinct_n(method.replies, 2)
    assert (sft.gold_difference, sft.win_rate, sft.kl) == (None, None, None)


def test_summary_is_json_with_every_figure(study):
    found = json.loads(json.dumps(summary(study), allow_nan=False))
    dpo = found["methods"][1]
    assert set(dpo) == {
        "name", "gold", "gold_difference", "reward", "reward_difference", "kl", "length", "distinct_2", "win_rate"
    }  # fmt: skip
    assert dpo["gold"]["mean"] == pytest.approx(sum(study.methods[1].gold) / len(study.prompts))
    assert found["wins_by"] == "gold score"
    assert [row["low"] for row in found["reward_model"]["accuracy_by_margin"]] == [0, 1, 2, 3]
    assert sum(row["observed"]["n"] for row in found["reward_model"]["calibration"]) == 1500


def test_without_gold_the_columns_vanish_and_reward_decides(study):
    for method in study.methods:
        method.gold = None
    titles = [column.title for column in columns(study, compare(study))]
    assert "Gold score" not in titles
    assert "Difference in learned reward" in titles
    assert compare(study)[1].win_rate == win_rate(study.methods[1].reward, study.methods[0].reward)
    assert "gold" not in json.dumps(summary(study))
    assert summary(study)["wins_by"] == "learned reward"
    assert "gold" not in printed(study).lower()


def test_the_same_reply_is_a_tie_however_its_reward_was_rounded():
    base = MethodResult("sft", None, [1.0, 2.0, 3.0], None, [3, 4, 5], ["a", "b", "c"])
    other = MethodResult("dpo", None, [1.0000001, 1.9999999, 4.0], None, [3, 4, 6], ["a", "b", "C"])
    row = compare(make(prompts=["p", "q", "r"], methods=[base, other]))[1]
    assert row.win_rate == win_rate([0.0, 0.0, 1.0], [0.0, 0.0, 0.0])


def test_without_any_score_only_lengths_and_words_remain(study):
    for method in study.methods:
        method.gold = method.reward = method.kl = None
    assert [column.title for column in columns(study, compare(study))] == ["Reply length", "Distinct bigrams"]
    assert "wins_by" not in summary(study)


def test_terminal_table_names_each_method_and_marks_differences(study):
    text = printed(study)
    assert all(method.name in text for method in study.methods)
    assert text.count("▲ above 0") == 4
    assert text.count("▼ below 0") == 1
    assert "nats" in text
    assert "baseline" in text


def test_terminal_table_shows_markup_in_names_as_it_is(study):
    study.methods[1].name = "[bold]dpo[/bold]"
    assert "[bold]dpo[/bold]" in printed(study)


def test_mark_follows_the_interval_not_the_mean():
    assert mark(Interval(1, 0.1, 2, 5)) == "▲ above 0"
    assert mark(Interval(-1, -2, -0.1, 5)) == "▼ below 0"
    assert mark(Interval(1, -0.1, 2, 5)) == "○ includes 0"


def test_decimals_follow_the_width_of_the_interval():
    wide, narrow = Interval(123.456, 113.0, 133.0, 9), Interval(0.61234, 0.6, 0.62, 9)
    assert Column("", "", "", [wide]).texts() == [("123", "[113, 133]")]
    assert Column("", "", "", [narrow]).texts() == [("0.612", "[0.600, 0.620]")]
    assert Column("", "", "", [narrow], scale=100).texts() == [("61.2", "[60.0, 62.0]")]
    assert Column("", "", "", [Interval(1, 1, 1, 9), None], is_difference=True).texts() == [
        ("+1.00", "[+1.00, +1.00]"),
        ("–", ""),
    ]


def test_no_end_of_an_interval_reads_as_zero_that_is_none():
    def texts(*cells: Interval) -> list[tuple[str, str]]:
        return Column("", "", "", list(cells), is_difference=True).texts()

    assert texts(Interval(5.2, 0.3, 10.1, 9)) == [("+5.2", "[+0.3, +10.1]")]
    assert texts(Interval(-5.2, -10.1, -0.04, 9)) == [("-5.20", "[-10.10, -0.04]")]
    assert texts(Interval(5, 0.004, 10, 9), Interval(1, -3, 5, 9))[0] == ("+5.000", "[+0.004, +10.000]")
    assert texts(Interval(5, 1e-9, 10, 9)) == [("+5.000", "[+1e-09, +10.000]")]
    assert texts(Interval(-5.0, -10.0, -0.0, 9)) == [("-5.0", "[-10.0, +0.0]")]


WORDS = ["learned reward", "win", "KL", "distinct", "▲ and ▼"]


def test_brackets_are_explained_where_there_are_any(study):
    def caption(evaluation: Evaluation) -> str:
        return str(terminal_table(evaluation).caption or "")

    assert caption(study) == "[ ] 95% confidence interval over prompts"
    assert [line.partition(":")[0] for line in notes(study)] == WORDS
    assert list(notes(study))[1].startswith("win: replies whose gold score is above sft's to the same prompt")
    assert terminal_table(study).columns[0].header == "Model"
    study.reward_model, study.runs = None, []
    for method in study.methods:
        method.gold = method.reward = None
    assert caption(study) == ""


def test_replies_too_short_for_a_bigram_have_no_share(study):
    study.methods[1].replies = [""] * len(study.prompts)
    assert compare(study)[1].distinct_2 is None
    assert "distinct_2" not in summary(study)["methods"][1]


def make(**changed) -> Evaluation:
    method = MethodResult("sft", [1.0, 2.0], None, None, [3, 4], ["a", "b"])
    fields = {
        "prompts": ["p", "q"],
        "methods": [method],
        "baseline": "sft",
        "reward_model": None,
        "runs": [],
        "facts": {},
    }
    return Evaluation(**(fields | changed))


def test_a_study_of_one_method_has_no_differences():
    (row,) = compare(make())
    assert row.gold.mean == 1.5
    assert row.gold_difference is None
    assert math.isfinite(row.length.high)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"baseline": "dpo"}, "baseline must be one of the methods .*'dpo'"),
        ({"prompts": ["p", "q", "r"]}, r"method 'sft': gold must have one entry per prompt \(3\), got 2"),
        ({"prompts": ["p"]}, "at least 2 prompts, got 1"),
        ({"methods": [MethodResult("sft", None, None, None, [1, 1], ["", ""])] * 2}, "names must differ"),
    ],
)
def test_parts_that_do_not_fit_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        make(**changed)
