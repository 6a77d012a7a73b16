"""One self-contained HTML file on a whole study: models, reward model, training, samples, configurations."""

import math
from html import escape
from pathlib import Path

from alignment.evaluate import page
from alignment.evaluate.alarms import alarm_box, raised
from alignment.evaluate.columns import Column, columns, completion_columns
from alignment.evaluate.comparison import MethodRow, compare, deciding_score
from alignment.evaluate.curves import (
    MAX_POINTS,
    length_against_reward,
    num_unplottable,
    policy_overview,
    reward_against_kl,
    training_curves,
)
from alignment.evaluate.plots import DotPanel, Style, comparison, styles
from alignment.evaluate.positions import span_words, spans_of
from alignment.evaluate.quantized_section import mark_html, quantized_section
from alignment.evaluate.results import Evaluation, MethodResult, TrainingRun
from alignment.evaluate.reward_section import reward_section

NUM_SAMPLES = 5
_LINES = f"Faint: as logged, or averages of neighbours beyond {MAX_POINTS} points. Bold: averages over longer spans."
_DOTS = " Dots: held-out data."
_ALARM = "Dashed line: an alarm is first raised. "
_COURSE = "Faint: steps. Line: the course of training, averaged over 20 equal spans of steps."


def write_report(evaluation: Evaluation, path: Path) -> None:
    """Writes the report to `path`: no scripts, nothing loaded from elsewhere, equal bytes for equal input."""
    path.write_text(report(evaluation), encoding="utf-8")


def report(evaluation: Evaluation) -> str:
    """The HTML of the report."""
    looks = styles([method.name for method in evaluation.methods] + [run.name for run in evaluation.runs])
    rows = compare(evaluation)
    title = _title(evaluation)
    parts = [
        f"<header><h1>{escape(title)}</h1>{alarm_box(evaluation.runs)}{_findings(evaluation, rows)}"
        f"{page.facts(evaluation.facts)}</header>",
        *([_methods(evaluation, rows, looks)] if evaluation.prompts else []),
        *([_completions(evaluation, rows, looks)] if any(row.nll is not None for row in rows) else []),
    ]
    if evaluation.quantized is not None:
        parts.append(quantized_section(evaluation.quantized))
    if evaluation.reward_model is not None:
        parts.append(reward_section(evaluation.reward_model))
    if evaluation.runs:
        parts.append(page.section("Training", *(_run(run, looks[run.name]) for run in evaluation.runs)))
    if evaluation.prompts:
        parts.append(_samples(evaluation, looks))
    if evaluation.runs:
        configs = (
            page.collapsed(f"{run.name} ({run.task})", f"<pre>{escape(run.config)}</pre>") for run in evaluation.runs
        )
        parts.append(page.section("Resolved configurations", *configs))
    return page.document(title, "\n".join(parts))


def _title(evaluation: Evaluation) -> str:
    count = len(evaluation.methods)
    if evaluation.prompts:
        return f"{count} model{'s' if count > 1 else ''} on {len(evaluation.prompts)} held-out prompts"
    if count:
        return f"{count} model{'s' if count > 1 else ''} on held-out completions"
    assert evaluation.reward_model is not None
    return f"A reward model on {len(evaluation.reward_model.chosen_scores)} held-out pairs"


def _findings(evaluation: Evaluation, rows: list[MethodRow]) -> str:
    """What the intervals say, in a sentence or two."""
    score = deciding_score(evaluation) if rows else None
    if score is None or len(rows) == 1:
        return ""
    differences = {row.name: row.gold_difference if score == "gold score" else row.reward_difference for row in rows}
    named = {name: difference for name, difference in differences.items() if difference is not None}
    higher = [name for name, difference in named.items() if difference.low > 0]
    lower = [name for name, difference in named.items() if difference.high < 0]
    unclear = [name for name, difference in named.items() if not difference.excludes_zero]
    groups = (("higher with", higher), ("lower with", lower), ("not told apart from it with", unclear))
    clauses = "; ".join(f"{words} {page.listed(names)}" for words, names in groups if names)
    sentences = [f"Against {page.listed([evaluation.baseline])}, the {score} is {clauses}."] if clauses else []
    if exploited := [row.name for row in rows if _is_exploiting(row)]:
        sentences.append(
            f"Over-optimised: the learned reward rose while the gold score fell with {page.listed(exploited)}."
        )
    return f"<p>{' '.join(sentences)}</p>"


def _is_exploiting(row: MethodRow) -> bool:
    reward, gold = row.reward_difference, row.gold_difference
    return reward is not None and gold is not None and reward.low > 0 and gold.high < 0


def _methods(evaluation: Evaluation, rows: list[MethodRow], looks: dict[str, Style]) -> str:
    words = [
        f"In brackets: 95% confidence interval over the {len(evaluation.prompts)} prompts.",
        "It is a percentile bootstrap, and Wilson's for win rates.",
        "Differences are paired by prompt. No correction is made for the number of comparisons.",
    ]
    if (score := deciding_score(evaluation)) is not None:
        words.append(f"A win is a higher {score} on the same prompt; a tie counts one half.")
    if score == "learned reward":
        words.append(
            "Models trained on the learned reward are expected to raise it: that alone is no evidence of quality."
        )
    caption = "Means with 95% confidence intervals. Dashed: the baseline's mean."
    return page.section(
        "Models",
        _compared(evaluation, rows, columns(evaluation, rows), looks),
        page.note(" ".join(words)),
        page.figure(comparison([row.name for row in rows], evaluation.baseline, looks, _dot_panels(rows)), caption),
    )


def _completions(evaluation: Evaluation, rows: list[MethodRow], looks: dict[str, Style]) -> str:
    words = (
        "What each model gives the completions of the data, their ends included; lower is better. In brackets: 95% "
        "confidence interval over the rows, a percentile bootstrap. Perplexities are of a model's own tokens and "
        "compare between models of one tokenizer, bits per byte between all."
    )
    measured = [row for row in rows if row.nll is not None]
    table = _compared(evaluation, measured, completion_columns(evaluation, measured), looks)
    return page.section("Completions", table, page.note(words), *_by_position(evaluation))


def _by_position(evaluation: Evaluation) -> list[str]:
    """Perplexity against length, where rows are long enough for more than one span."""
    found = spans_of(evaluation)
    if not found:
        return []
    headings = [page.heading_cell("Perplexity at position")] + [page.heading_cell(name) for name in found]
    body = []
    for after, to in sorted({(span.after, span.to) for each in found.values() for span in each}):
        at = [next((span_words(span) for span in each if span.to == to), "") for each in found.values()]
        figures = (text.partition("\n")[::2] for text in at)
        body.append([page.cell(f"{after + 1} to {to}"), *(page.cell(one, more) for one, more in figures)])
    note = "Positions count prompt and completion, in a model's own tokens."
    return [page.table(headings, body), page.note(note)]


def _compared(evaluation: Evaluation, rows: list[MethodRow], shown: list[Column], looks: dict[str, Style]) -> str:
    texts = [column.texts() for column in shown]
    body = []
    for index, row in enumerate(rows):
        baseline = "<small>baseline</small>" if row.name == evaluation.baseline else ""
        cells = [f"<td>{page.dot(looks[row.name].colour)}{escape(row.name)}{baseline}</td>"]
        for column, text in zip(shown, texts, strict=True):
            value = column.cells[index]
            html = mark_html(value) if column.is_difference else ""
            cells.append(page.cell(*text[index], html=html))
        body.append(cells)
    headings = [page.heading_cell("Model")] + [page.heading_cell(column.title, column.unit) for column in shown]
    return page.table(headings, body)


def _dot_panels(rows: list[MethodRow]) -> list[DotPanel]:
    panels = [
        DotPanel("Gold score", [row.gold for row in rows]),
        DotPanel("Learned reward", [row.reward for row in rows]),
        DotPanel("KL to baseline (nats/reply)", [row.kl for row in rows]),
        DotPanel("Reply length (tokens)", [row.length for row in rows]),
    ]
    return [panel for panel in panels if any(interval is not None for interval in panel.intervals)]


def _run(run: TrainingRun, look: Style) -> str:
    task = f"<small>{escape(run.task)}</small>" if run.task != run.name else ""
    html = [f"<h3>{page.dot(look.colour)}{escape(run.name)}{task}</h3>"]
    lengths = length_against_reward(run, look)
    has_correlation = lengths is not None and lengths.metrics
    right = "Left: " + _COURSE + " Right: Pearson's correlation over the replies of a step."
    plots = [
        (
            policy_overview(run, look),
            "Means over each step's replies. " + (_ALARM if raised(run) else "") + _LINES + _DOTS,
        ),
        (reward_against_kl(run, look), _COURSE),
        (lengths, right if has_correlation else _COURSE),
    ]
    shown = {metric for plot, _ in plots if plot is not None for metric in plot.metrics}
    plots.append((training_curves(run, look, shown), _LINES + _DOTS))
    html += [page.figure(plot.svg, caption) for plot, caption in plots if plot is not None]
    if len(html) == 1:
        html.append(page.note("No curves: the run logged no metric."))
    if count := num_unplottable(run):
        html.append(page.note(f"{count} logged values were infinite or undefined and are not drawn."))
    return "\n".join(html)


def _samples(evaluation: Evaluation, looks: dict[str, Style]) -> str:
    count = min(NUM_SAMPLES, len(evaluation.prompts))
    chosen = [index * len(evaluation.prompts) // count for index in range(count)]
    num_columns = math.ceil(len(evaluation.methods) / math.ceil(len(evaluation.methods) / 4))  # equally full rows
    html = [page.note("Prompts at even distances through the held-out set, not picked by hand.")]
    for index in chosen:
        replies = "".join(_reply(method, index, looks[method.name]) for method in evaluation.methods)
        prompt = f'<div class="prompt">{escape(evaluation.prompts[index])}</div>'
        side_by_side = f'<div class="replies" style="--columns: {num_columns}">{replies}</div>'
        html.append(f'<div class="sample">{prompt}{side_by_side}</div>')
    return page.section("Samples", *html)


def _reply(method: MethodResult, index: int, look: Style) -> str:
    figures = [f"{method.lengths[index]} tokens"]
    if method.reward is not None:
        figures.insert(0, f"reward {method.reward[index]:.2f}")
    if method.gold is not None:
        figures.insert(0, f"gold {method.gold[index]:.2f}")
    text = escape(method.replies[index]) or "<em>(empty)</em>"
    head = f"<h4>{page.dot(look.colour)}{escape(method.name)}</h4>"
    details = " · ".join(figure.replace(" ", "&nbsp;") for figure in figures)
    return f'<div class="reply">{head}<div class="note">{details}</div><div class="text">{text}</div></div>'
