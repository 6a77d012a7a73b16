"""What became of the rows: read, skipped, cut; their lengths, margins and labels."""

from collections import Counter
from collections.abc import Iterator
from itertools import islice

import numpy as np
from transformers import PreTrainedConfig

from alignment.check.subject import ROWS
from alignment.check.verdict import Grade, Verdict, graded, worst
from alignment.config.data import DataConfig, ExampleKind, Format, SourceConfig, each_source
from alignment.config.margin import MarginScale
from alignment.data.json_rows import Row
from alignment.data.labels import SINGLE_REPLIES
from alignment.data.layout import laid_out
from alignment.data.loaded import Loaded
from alignment.data.margins import SCALES, margin_words
from alignment.data.numbers import numbers
from alignment.data.records import DataError
from alignment.models.positions import max_positions

MANY = 0.5  # of rows, prompts or completions: what is left is no longer the data that the user means
SOME = 0.01  # of them: a row in a hundred is what real data lose
_SMALL, _LARGE = SCALES[MarginScale.small], SCALES[MarginScale.large]
MARGINS = (
    "reward models and DPO learn with ratings as margins by data.margin.scale=small "
    f"('better' is {_SMALL['better']:.3g}, 'slightly better' {_SMALL['slightly_better']:.3g}) or large "
    f"({_LARGE['better']:.3g} and {_LARGE['slightly_better']:.3g}), with numbers in margin by "
    "data.margin.scale=given, and with scores in chosen_score and rejected_score by data.margin.scale=score"
)
RATINGS = ("rating", "margin", "chosen_score", "rejected_score", "score_chosen", "score_rejected")
SCORES = (("chosen_score", "rejected_score"), ("score_chosen", "score_rejected"))
"""The names under which data sets have the scores of a pair's replies, the chosen one's first."""
SHOWN = 6  # different margins or labels


def read(name: str, loaded: Loaded, data: DataConfig) -> Verdict:
    """That rows were neither skipped nor cut, and are laid out once. Most rows skipped, most prompts without their
    beginning or most completions without their end are a fault: a model that learns from cut replies does not learn to
    end."""
    rows, completions = len(loaded.examples), sum(len(example.completion_ids) for example in loaded.examples)
    cut, skipped = loaded.truncation, len(loaded.skipped)
    share = _percent(skipped, rows + skipped)
    figure = f"{rows} of the first {rows + skipped} rows are used, {skipped} skipped ({share})"
    ways = []
    if skipped:
        figure += f", the first of them {loaded.skipped[0]}"
    figure += f"; {cut.prompts} prompts lost their beginning ({_percent(cut.prompts, rows)})"
    if cut.prompts:
        ways.append(f"data.max_prompt_length is {data.max_prompt_length}")
    if completions:
        lost = _percent(cut.completions, completions)
        figure += f", {cut.completions} of {completions} completions their end ({lost})"
    if cut.completions:
        ways.append(f"data.max_length is {data.max_length}")
    if ways:
        figure += f": {' and '.join(ways)} tokens, more keep them whole"
    twice = loaded.laid_out_twice()
    figure += f"; {twice}" if twice else ""
    shares = (skipped / (rows + skipped), cut.prompts / rows, cut.completions / max(1, completions))
    grades = [graded(max(shares) <= SOME and not twice, Grade.warn), graded(max(shares) <= MANY)]
    return Verdict(f"rows, {name}", worst(grades), figure)


def lengths(loaded: Loaded, config: PreTrainedConfig, new_tokens: int = 0) -> Verdict:
    """That the longest row, or prompt with a reply of `new_tokens`, lies within the positions that the model knows."""
    sizes = sorted(
        len(example.prompt_ids) + max([new_tokens, *map(len, example.completion_ids)]) for example in loaded.examples
    )
    known = max_positions(config)
    figure = f"prompt and one reply: median {sizes[len(sizes) // 2]}, longest {sizes[-1]} tokens"
    figure += f", replies of up to {new_tokens} in them" if new_tokens else ""
    if known.limit is None:
        return Verdict("lengths", Grade.ok, f"{figure}; the model names no limit")
    beyond = sum(size > known.limit for size in sizes)
    figure += f"; the model knows {known.limit} positions, {beyond} rows are beyond"
    if beyond:
        figure += f": data.max_length{' and generation.max_new_tokens' if new_tokens else ''} must keep within them"
        figure += "" if known.hard else ", or model.rope scale its RoPE"
    return Verdict("lengths", graded(not beyond), figure)


def margins(data: DataConfig, loaded: Loaded, unread: Grade = Grade.warn) -> Verdict:
    """That ratings of pairs are used where the rows have some: each pair's margin, or the columns that are not read,
    which are graded `unread`."""
    margins = numbers(loaded.examples, "margin")
    if data.margin.scale is not MarginScale.none:
        known = int((~np.isnan(margins)).sum())
        figure = f"{known} of {len(margins)} pairs have one (data.margin.scale={data.margin.scale.value})"
        return Verdict(
            "margins", graded(known == len(margins)), f"{figure}: {margin_words(margins, data.margin.scale)}"
        )
    columns = Counter(column for row in raw_rows(data.train, data) for column in RATINGS if row.get(column) is not None)
    if not columns:
        return Verdict("margins", Grade.ok, "none is asked for, and the rows have no rating and no scores")
    seen = ", ".join(f"{column} in {count} rows" for column, count in columns.items())
    figure = f"{seen}, and data.margin.scale=none: they are not read; {MARGINS}"
    return Verdict("margins", unread, figure)


def labels(data: DataConfig, need: ExampleKind | None, train: Loaded) -> Verdict | None:
    """What rows say themselves of their replies: a demonstration by its `label`, a pair by the scores of its two, what
    is judged by what is learned. None where they say nothing."""
    if need is ExampleKind.pairs:
        return _preferred(data)
    if need in SINGLE_REPLIES:
        return _labels([label for example in train.examples for label in example.labels], need)
    seen = Counter(str(row["label"]) for row in raw_rows(data.train, data) if "label" in row)
    if not seen:
        return None
    shown = ", ".join(f"{label}: {count}" for label, count in seen.most_common(SHOWN))
    return Verdict("labels", Grade.ok, f"of the rows as they are in the file, {shown}; only the desirable are learned")


def _labels(found: list[bool | float], need: ExampleKind) -> Verdict:
    """That there is a difference to learn."""
    if need is ExampleKind.scored:
        figure = f"{len(found)} scores from {min(found):g} to {max(found):g}, {sum(found) / len(found):.3g} in the mean"
    else:
        what = "replies are desirable" if need is ExampleKind.labeled else "steps are right"
        figure = f"{sum(found):g} of {len(found)} {what}"
    return Verdict("labels", graded(len(set(found)) > 1, Grade.warn), figure)


def _preferred(data: DataConfig) -> Verdict | None:
    """That the reply which is called chosen has the higher score: where most have the lower one, they are swapped."""
    names = {*SCORES, (data.margin.chosen_column, data.margin.rejected_column)}
    gaps = [
        row[chosen] - row[rejected]
        for row in raw_rows(data.train, data)
        for chosen, rejected in names
        if _is_number(row.get(chosen)) and _is_number(row.get(rejected))
    ]
    if not gaps:
        return None
    right, wrong = sum(gap > 0 for gap in gaps), sum(gap < 0 for gap in gaps)
    figure = f"the chosen reply has the higher score in {right} of {len(gaps)} pairs, the lower one in {wrong}"
    if wrong > right:
        figure += ": chosen and rejected are swapped"
    return Verdict("labels", worst([graded(not wrong, Grade.warn), graded(wrong <= right)]), figure)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def raw_rows(source: SourceConfig, data: DataConfig) -> Iterator[Row]:
    """The rows as they are in the files, their columns under our names, those that cannot be read left out; none of the
    embedded task, which has no file."""
    for _, one, own in each_source(source, data):
        if own.format is not Format.toy and one.path is not None:
            laid = laid_out(one, own, ExampleKind.pairs, "data.train", tell=lambda _: None)
            yield from (row for _, row, _ in islice(laid, one.limit or ROWS) if not isinstance(row, DataError))


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / max(1, whole):.1f}%"
