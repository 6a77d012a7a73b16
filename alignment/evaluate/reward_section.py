"""The report's part on a reward model: its accuracy, by all that is known of its pairs, and how sure it is."""

from alignment.evaluate import page
from alignment.evaluate.metrics import Interval, calibration
from alignment.evaluate.pairs import groupings, overall_accuracy, rewardbench
from alignment.evaluate.plots import calibration_plot
from alignment.evaluate.results import RewardModelResult
from alignment.evaluate.rewardbench import SOURCE


def reward_section(result: RewardModelResult) -> str:
    """HTML."""
    scores = result.chosen_scores, result.rejected_scores
    grouped = groupings(result)
    by_margin = next((grouping for grouping in grouped if grouping.key == "margin"), None)
    first = [] if by_margin is None else [(group.name, group.accuracy) for group in by_margin.groups]
    caption = (
        "Dots: bins of pairs, with Wilson's 95% interval. Below the dashed line the model is surer than it should be."
    )
    tables = [
        _accuracies(grouping.title, [(group.name, group.accuracy) for group in grouping.groups])
        for grouping in grouped
        if grouping is not by_margin
    ]
    lengths = "Length: how much the two replies of a pair differ, in characters, of the longer one's."
    return page.section(
        "Reward model",
        page.note("Accuracy: the share of held-out pairs whose chosen reply scores above the rejected one."),
        page.beside(
            _accuracies("Margin" if first else "Pairs", [*first, ("all pairs", overall_accuracy(result))]),
            page.figure(calibration_plot(calibration(*scores)), caption),
        ),
        *([page.beside(*tables)] if tables else []),
        *([page.note(lengths)] if result.lengths is not None else []),
        *_rewardbench(rewardbench(result)),
    )


def _accuracies(title: str, rows: list[tuple[str, Interval]]) -> str:
    body = [
        [
            page.cell(name),
            page.cell(str(accuracy.n)),
            page.cell(f"{100 * accuracy.mean:.1f}", f"[{100 * accuracy.low:.1f}, {100 * accuracy.high:.1f}]"),
        ]
        for name, accuracy in rows
    ]
    headings = [page.heading_cell(title), page.heading_cell("Pairs"), page.heading_cell("Accuracy", "%")]
    return page.table(headings, body, narrow=True)


def _rewardbench(scores: dict[str, float]) -> list[str]:
    if not scores:
        return []
    body = [[page.cell(name), page.cell(f"{100 * score:.1f}")] for name, score in scores.items()]
    headings = [page.heading_cell("RewardBench"), page.heading_cell("Score", "%")]
    return [page.table(headings, body, narrow=True), page.note(f"Sections as in {SOURCE}.")]
