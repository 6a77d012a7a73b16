"""What an evaluation found, as tables in the terminal and as plain JSON."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from alignment.evaluate.columns import Column, columns, completion_columns, mark
from alignment.evaluate.comparison import MethodRow, compare, deciding_score
from alignment.evaluate.metrics import Interval
from alignment.evaluate.pairs import groupings, overall_accuracy, rewardbench, rewardbench_lacking, summary_of
from alignment.evaluate.positions import Span, span_words, spans_of
from alignment.evaluate.quantized import (
    FULL,
    QuantizedRow,
    quantized_columns,
    quantized_notes,
    quantized_summary,
    rows_of,
    title_of,
)
from alignment.evaluate.results import Evaluation, RewardModelResult
from alignment.evaluate.rewardbench import SOURCE

MOSTLY = 0.5  # of a model's replies
NUM_LACKING = 3  # subsets of RewardBench that are named


def terminal_tables(evaluation: Evaluation) -> Iterator[Table]:
    """All that the terminal shows: the replies, the completions, the reward model, those of them that there are."""
    if evaluation.prompts and evaluation.methods:
        yield terminal_table(evaluation)
    rows = compare(evaluation) if evaluation.methods else []
    completions = next((method.completions for method in evaluation.methods if method.completions is not None), None)
    if completions is not None:
        title = f"{_counted(len(rows), 'model')} on {len(completions.nll)} completions"
        words = "lower is better; models of different tokens compare by bits per byte"
        yield _compared(evaluation.baseline, rows, completion_columns(evaluation, rows), title, words, over="rows")
    if (quantized := evaluation.quantized) is not None:
        shown = quantized_columns(quantized)
        over = "pairs" if quantized.is_reward_model else "completions"
        yield _compared(FULL, rows_of(quantized), shown, title_of(quantized), over=over)
    if by_position := spans_of(evaluation):
        yield _position_table(by_position)
    if evaluation.reward_model is not None:
        yield reward_table(evaluation.reward_model)


def terminal_table(evaluation: Evaluation) -> Table:
    """The comparison in 80 columns: scores with their 95% interval beneath; the report has the others' too."""
    rows = compare(evaluation)
    title = f"{_counted(len(evaluation.methods), 'model')} on {len(evaluation.prompts)} prompts"
    return _compared(evaluation.baseline, rows, columns(evaluation, rows), title, over="prompts")


def _compared(
    baseline: str, rows: Sequence[MethodRow | QuantizedRow], shown: list[Column], title: str, *words: str, over: str
) -> Table:
    """`words`: lines beneath the table, with what its brackets are where it has any."""
    has_intervals = any(column.is_score and isinstance(cell, Interval) for column in shown for cell in column.cells)
    lines = [*words, *([f"[ ] 95% confidence interval over {over}"] if has_intervals else [])]
    caption = Text("\n".join(lines), "table.caption") if lines else None
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True, title=title, caption=caption)
    table.add_column("Model")
    for column in shown:
        table.add_column(Text(column.short), justify="right")
    texts = [column.texts() for column in shown]
    for index, row in enumerate(rows):
        cells = [Text(row.name + ("\nbaseline" if row.name == baseline and len(rows) > 1 else ""))]
        for column, text in zip(shown, texts, strict=True):
            cell, lines = column.cells[index], [part for part in text[index] if part][: 2 if column.is_score else 1]
            if column.is_difference and isinstance(cell, Interval):
                lines.append(mark(cell))
            cells.append(Text("\n".join(lines)))
        table.add_row(*cells)
    return table


def _position_table(found: dict[str, list[Span]]) -> Table:
    """A row for each span, a column for each model."""
    caption = "of prompt and completion, in a model's own tokens; [ ] 95% confidence interval over rows"
    table = Table(box=SIMPLE_HEAD, pad_edge=False, title="perplexity by position", caption=Text(caption))
    table.add_column("Position")
    for name in found:
        table.add_column(Text(name), justify="right")
    for after, to in sorted({(span.after, span.to) for each in found.values() for span in each}):
        at = [next((span for span in each if span.to == to), None) for each in found.values()]
        table.add_row(f"{after + 1} to {to}", *(Text("" if span is None else span_words(span)) for span in at))
    return table


def reward_table(result: RewardModelResult) -> Table:
    """The accuracy of a reward model on its pairs, by all that is known of them."""
    overall = overall_accuracy(result)
    table = Table(
        box=SIMPLE_HEAD,
        pad_edge=False,
        title=f"reward model on {overall.n} pairs",
        caption="accuracy: the chosen reply scores above the rejected one; [ ] 95% confidence interval",
    )
    table.add_column("Pairs")
    for heading in ("number", "accuracy %", "95%"):
        table.add_column(heading, justify="right")
    table.add_row(Text("all"), *_accuracy(overall))
    for grouping in groupings(result):
        table.add_section()
        table.add_row(Text(f"by {grouping.title.lower()}"))
        for group in grouping.groups:
            table.add_row(Text(f"  {group.name}"), *_accuracy(group.accuracy))
    sections = rewardbench(result)
    if sections:
        table.add_section()
        table.add_row(Text("RewardBench, weighted means"))
        for name, score in sections.items():
            table.add_row(Text(f"  {name}"), "", f"{100 * score:.1f}", "")
    return table


def _accuracy(accuracy: Interval) -> tuple[Text, Text, Text]:
    interval = f"[{100 * accuracy.low:.1f}, {100 * accuracy.high:.1f}]"
    return Text(str(accuracy.n)), Text(f"{100 * accuracy.mean:.1f}"), Text(interval)


def notes(evaluation: Evaluation) -> Iterator[str]:
    """What must be said of the figures, a line each."""
    if evaluation.prompts and evaluation.methods:
        shown = columns(evaluation, compare(evaluation))
        yield from (column.words for column in shown if column.words)
        if any(column.is_difference for column in shown):
            yield "▲ and ▼: the interval of a difference excludes 0; ○: it includes 0, no clear difference"
        yield from _cut(evaluation)
    if evaluation.quantized is not None:
        yield from quantized_notes(evaluation.quantized)
    result = evaluation.reward_model
    if result is None or not rewardbench(result):
        return
    lacking = rewardbench_lacking(result)
    more = f" and {len(lacking) - NUM_LACKING} more" if lacking[NUM_LACKING:] else ""
    without = f"; without {', '.join(lacking[:NUM_LACKING])}{more}, so that there is no overall score"
    yield f"RewardBench: sections as in {SOURCE}{without if lacking else ''}"


def _cut(evaluation: Evaluation) -> Iterator[str]:
    """Models most of whose replies did not end: what is measured of them is of beginnings."""
    quantized = evaluation.quantized
    selves = set() if quantized is None else {f"{quantized.model} {each.name}" for each in quantized.selves}
    for method in evaluation.methods:
        if method.name in selves:  # whose replies end as seldom as the model's own
            continue
        if method.finished and sum(method.finished) < MOSTLY * len(method.finished):
            cut = len(method.finished) - sum(method.finished)
            what = f"{cut} of {len(method.finished)} replies of {method.name} are cut at generation.max_new_tokens"
            way = "raise it, or, where replies never end, teach the end by SFT (alignment check says how likely it is)"
            yield f"WARNING: {what}, and so is what is measured of them: {way}"


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def summary(evaluation: Evaluation) -> dict[str, Any]:
    """Every figure of the report as plain JSON values; a figure that does not exist has no key."""
    found: dict[str, Any] = {"facts": dict(evaluation.facts)}
    if evaluation.methods:
        rows = [asdict(row) for row in compare(evaluation)]
        found["num_prompts"] = len(evaluation.prompts)
        found["baseline"] = evaluation.baseline
        found["methods"] = [{key: value for key, value in row.items() if value is not None} for row in rows]
    if by_position := spans_of(evaluation):
        found["perplexity_by_position"] = {name: list(map(asdict, each)) for name, each in by_position.items()}
    if evaluation.methods and (score := deciding_score(evaluation)) is not None:
        found["wins_by"] = score
    if evaluation.quantized is not None:
        found["quantized"] = quantized_summary(evaluation.quantized)
    if evaluation.reward_model is not None:
        found["reward_model"] = summary_of(evaluation.reward_model)
    return found
