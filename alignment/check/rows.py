"""What became of the rows: read, skipped, cut; their lengths, margins and labels."""

from collections import Counter
from collections.abc import Iterator
from itertools import islice

from transformers import PreTrainedConfig

from alignment.check.subject import ROWS
from alignment.check.verdict import Verdict, graded, worst
from alignment.config.parts import DataConfig, SourceConfig
from alignment.config.vocabulary import Format, Grade, MarginScale, Need
from alignment.data.load import Loaded
from alignment.data.read import Row, read_rows
from alignment.models.positions import max_positions

MANY = 0.5  # of the completions: a model that learns from cut ones does not learn to end
RATINGS = ("rating", "margin", "chosen_score", "rejected_score")
SHOWN = 6  # different margins or labels


def read(name: str, loaded: Loaded) -> Verdict:
    """That rows were neither skipped nor cut; where most completions lost their end, none is learned."""
    rows, completions = len(loaded.examples), sum(len(example.completion_ids) for example in loaded.examples)
    cut = loaded.truncation
    figure = (
        f"{rows} of the first {rows + len(loaded.skipped)}, {len(loaded.skipped)} skipped; {cut.prompts} prompts lost "
        f"their beginning ({_percent(cut.prompts, rows)})"
    )
    if completions:
        lost = _percent(cut.completions, completions)
        figure += f", {cut.completions} of {completions} completions their end ({lost})"
    if loaded.skipped:
        figure += f"; first skipped: {loaded.skipped[0]}"
    any_lost = bool(loaded.skipped or cut.prompts or cut.completions)
    grades = [graded(not any_lost, Grade.warn), graded(cut.completions <= MANY * completions)]
    return Verdict(f"rows, {name}", worst(grades), figure)


def lengths(loaded: Loaded, config: PreTrainedConfig, new_tokens: int = 0) -> Verdict:
    """That the longest row, or prompt with a reply of `new_tokens`, lies within the positions that the model knows."""
    sizes = sorted(
        len(example.prompt_ids) + max([new_tokens, *map(len, example.completion_ids)]) for example in loaded.examples
    )
    known = max_positions(config)
    figure = f"median {sizes[len(sizes) // 2]}, longest {sizes[-1]} tokens"
    figure += f", replies of up to {new_tokens} in them" if new_tokens else ""
    if known.limit is None:
        return Verdict("lengths", Grade.ok, f"{figure}; the model names no limit")
    beyond = sum(size > known.limit for size in sizes)
    figure += f"; the model knows {known.limit} positions, {beyond} rows are beyond"
    return Verdict("lengths", graded(not beyond), figure)


def margins(data: DataConfig, loaded: Loaded) -> Verdict:
    """That ratings of pairs are used where the rows have some: each pair's margin, or the columns that nobody reads."""
    values = Counter(example.margin for example in loaded.examples)
    if data.margin.scale is not MarginScale.none:
        known = sum(count for margin, count in values.items() if margin is not None)
        most = ", ".join(f"{margin:g}: {count}" for margin, count in values.most_common(SHOWN) if margin is not None)
        figure = (
            f"{known} of {len(loaded.examples)} pairs have one ({most}), data.margin.scale={data.margin.scale.value}"
        )
        return Verdict("margins", graded(known == len(loaded.examples)), figure)
    columns = Counter(
        column for row in raw_rows(data.train, data.format) for column in RATINGS if row.get(column) is not None
    )
    if not columns:
        return Verdict("margins", Grade.ok, "none is asked for, and the rows have no rating and no scores")
    seen = ", ".join(f"{column} in {count} rows" for column, count in columns.items())
    return Verdict("margins", Grade.warn, f"{seen}, and data.margin.scale=none: they are not read")


def labels(data: DataConfig, need: Need) -> Verdict | None:
    """What rows with a `label` call their replies; None where they have none."""
    seen = Counter(str(row["label"]) for row in raw_rows(data.train, data.format) if "label" in row)
    if not seen or need is not Need.demonstrations:
        return None
    shown = ", ".join(f"{label}: {count}" for label, count in seen.most_common(SHOWN))
    return Verdict("labels", Grade.ok, f"of the rows as they are in the file, {shown}; only the desirable are learned")


def raw_rows(source: SourceConfig, format: Format) -> Iterator[Row]:
    """The rows as they are in the file; none of the embedded task, which has no file."""
    if format is Format.world or source.path is None:
        return iter(())
    return (row for _, row in islice(read_rows(source.path), source.limit or ROWS))


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / max(1, whole):.1f}%"
