"""The page: well formed, complete, safe against what models write, and the same for the same study."""

import math
import re
from html.parser import HTMLParser

import matplotlib
import pytest

from alignment.evaluate.columns import columns
from alignment.evaluate.comparison import compare
from alignment.evaluate.curves import num_unplottable, series
from alignment.evaluate.report import report, write_report
from alignment.evaluate.results import TrainingRun

VOID = {"meta", "br", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """Checks that tags nest, and keeps the text and the attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.words)


@pytest.fixture(scope="module")
def html(new_study) -> str:
    """The report of the unchanged study."""
    return report(new_study())


def test_page_nests_and_shows_every_method_with_its_numbers(study, html):
    page = Page(html)
    rows = compare(study)
    assert all(row.name in page.text for row in rows)
    for column in columns(study, rows):
        for figure, interval in column.texts():
            assert figure in page.words
            assert not interval or interval in page.words
    assert all(key in page.text and value in page.text for key, value in study.facts.items())
    assert page.tags.count("svg") == 1 + 1 + 1 + 1 + 4  # comparison, calibration, two preference runs, four for PPO
    assert page.tags.count("details") == len(study.runs)
    assert "kl_weight: 0.0" in page.text


def test_page_loads_nothing_and_runs_nothing(html):
    page = Page(html)
    assert not {"script", "link", "iframe", "img"} & set(page.tags)
    links = [value for name, value in page.attributes if name in ("src", "href", "xlink:href")]
    assert links
    assert all(value.startswith("#") for value in links)
    assert "url(h" not in html
    assert "@import" not in html


def test_every_reference_inside_a_figure_has_exactly_one_target(html):
    ids = re.findall(r' id="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:url\(|href=")#([^")]+)', html)) <= set(ids)


def test_what_models_and_users_wrote_is_text(study):
    attack = '<script>alert("x")</script>'
    study.prompts[0] = study.methods[1].replies[0] = study.runs[0].config = study.facts["Date"] = attack
    study.methods[2].name = study.runs[1].name = "<b>$dpo$ & 'co'</b>"
    html = report(study)
    assert "<script" not in html
    assert "<b>$dpo" not in html
    page = Page(html)
    assert page.words.count(attack) == 4
    assert "<b>$dpo$ & 'co'</b>" in page.words


def test_equal_studies_give_equal_bytes(study, html, tmp_path):
    write_report(study, tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == html
    assert (tmp_path / "report.html").stat().st_size < 1_000_000


def test_drawing_leaves_matplotlib_as_it_was(study):
    before = dict(matplotlib.rcParams)
    report(study)
    assert dict(matplotlib.rcParams) == before


def test_findings_name_winners_losers_and_over_optimisation(html):
    text = re.sub(r"\s+", " ", Page(html).text)
    assert "Against sft , the gold score is higher with dpo , orpo , ppo and rejection sampling ; lower with" in text
    assert "Over-optimised: the learned reward rose while the gold score fell with ppo, no KL ." in text


def test_without_gold_nothing_speaks_of_it(study):
    for method in study.methods:
        method.gold = None
    for run in study.runs:
        run.metrics = [{key: value for key, value in row.items() if key != "gold"} for row in run.metrics]
    html = report(study)
    assert "Gold score" not in html
    assert "gold score" not in html
    assert "no evidence of quality" in html
    assert "Over-optimised" not in html


def test_missing_parts_leave_no_empty_frames(study):
    study.reward_model, study.runs = None, [TrainingRun("sft", "sft", [{"step": 1, "time/step_s": 9}], "")]
    page = Page(report(study))
    assert "Reward model" not in page.text
    assert "the run logged no metric" in page.text
    assert page.tags.count("svg") == 1
    study.runs = []
    assert "Resolved configurations" not in report(study)


def test_reward_model_without_margins_shows_its_overall_accuracy(study):
    study.reward_model.margins, study.runs = None, []
    page = Page(report(study))
    assert "all pairs" in page.text
    assert "82.9" in page.words


def test_infinite_losses_are_counted_and_never_printed(study):
    study.runs[1].metrics[3]["loss"] = math.nan
    study.runs[1].metrics[4]["loss"] = math.inf
    assert num_unplottable(study.runs[1]) == 2
    assert len(series(study.runs[1], "loss")) == 598
    page = Page(report(study))
    assert "2 logged values were infinite or undefined" in page.text
    assert not re.search(r"\b(nan|inf)\b", page.text, re.IGNORECASE)
    assert not any(re.search(r"\b(nan|inf)\b", value or "", re.IGNORECASE) for _, value in page.attributes)


def test_empty_reply_is_said_to_be_empty(study):
    study.runs, study.methods[1].replies[0] = [], ""
    assert "<em>(empty)</em>" in report(study)


def test_one_logged_step_and_one_held_out_step_are_drawn(study):
    study.runs = [TrainingRun("sft", "sft", [{"step": 1, "loss": 2.0}, {"step": 1, "eval/loss": 3.0}], "")]
    page = Page(report(study))
    assert page.tags.count("svg") == 3
    assert "held out" in page.words
