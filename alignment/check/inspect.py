"""What is in a file of rows, told line by line: as it is in the file, and as a run would read it."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

from transformers import PreTrainedTokenizerBase

from alignment.check import text
from alignment.check.rows import RATINGS
from alignment.config.data import BadRow, DataConfig, ExampleKind
from alignment.config.errors import UserError
from alignment.config.margin import MarginScale
from alignment.config.run import TrainingConfig
from alignment.config.sources import Format
from alignment.data.formats import parse
from alignment.data.layout import Laid, laid_out
from alignment.data.load import Loaded, load_split
from alignment.data.margins import margin_from
from alignment.data.records import DataError, Record
from alignment.models.tokenizer import prepare_tokenizer
from alignment.runs.scores import text_id
from alignment.terminal import quiet, say

VALUES = (*RATINGS, "label", "score", "subset", "source", "tags", "weight")
ENDLESS: dict[str, Any] = {"max_length": 2**31 - 1, "max_prompt_length": 2**31 - 2}
FEW = 8  # different values that are named one by one
SHOWN = 40  # characters of a value, and rules that are named
KINDS = {
    ExampleKind.prompts: "prompts, for ppo, grpo, rejection and the replies of evaluate",
    ExampleKind.demonstrations: "demonstrations, for sft",
    ExampleKind.pairs: "pairs, for reward, dpo and their kin",
    ExampleKind.labeled: "replies that are desirable or not, for kto",
    ExampleKind.scored: "replies with a score, for reward_regression",
    ExampleKind.steps: "replies in steps, for reward_process",
}


def kind_of(data: DataConfig) -> ExampleKind:
    """What the first row that can be read has; the embedded task's are pairs."""
    if data.format is Format.toy:
        return ExampleKind.pairs
    for at, row, format in _laid(data, ExampleKind.demonstrations, "train"):
        if isinstance(row, DataError):
            continue
        has = {key for key, value in row.items() if value is not None}
        known = (
            ({"chosen", "rejected"}, ExampleKind.pairs),
            ({"completions", "labels"}, ExampleKind.steps),
            ({"label"}, ExampleKind.labeled),
        )
        found = next((kind for keys, kind in known if keys <= has), None)
        if found is not None:
            return found
        none = partial(margin_from, scale=MarginScale.none)
        try:
            parse(row, at, format, ExampleKind.demonstrations, none, template=data.template)
        except DataError:
            return ExampleKind.prompts
        return ExampleKind.scored if "score" in has else ExampleKind.demonstrations
    return ExampleKind.demonstrations


def inspect(config: TrainingConfig, kind: ExampleKind, *, has_model: bool) -> None:
    """Args:
        has_model: whether the tokenizer is the user's, so that its tokens are worth counting.

    Raises:
        UserError: a file cannot be read, or no row of it can be used; the rest is told before.
    """
    data, tokenizer = config.data, prepare_tokenizer(config.model)
    loaded: dict[str, Loaded] = {}
    failed: UserError | None = None
    for name in ("train", "eval"):
        laid = list(_laid(data, kind, name, tell=True))
        if not laid and data.format is not Format.toy:
            continue
        _of_the_file(name, laid, kind)
        try:
            with quiet():
                lenient: DataConfig = replace(data, on_bad_row=BadRow.skip)
                split = load_split(name, lenient, tokenizer, kind)
                uncut = load_split(name, replace(lenient, **ENDLESS), tokenizer, kind) if has_model else None
        except UserError as error:
            failed = failed or error
            continue
        if split is not None:
            loaded[name] = split
            _of_the_rows(split, data, uncut)
    if len(loaded) == 2:
        _overlap(loaded["train"], loaded["eval"])
    if "train" in loaded:
        _show(loaded["train"], tokenizer, has_model=has_model)
    if failed is not None:
        raise failed


def _laid(data: DataConfig, kind: ExampleKind, name: str, *, tell: bool = False) -> Iterable[Laid]:
    source = {"train": data.train, "eval": data.eval}[name]
    if data.format is Format.toy or source.path is None:
        return []
    return islice(laid_out(source, data, kind, f"data.{name}", say if tell else lambda _: None), source.limit)


def _kind(value: Any) -> str:
    """As people who write JSON and tables call it."""
    names = {bool: "truth", str: "text", int: "number", float: "number", list: "list", dict: "object"}
    return next((name for kind, name in names.items() if isinstance(value, kind)), type(value).__name__)


def _of_the_file(name: str, laid: Sequence[Laid], kind: ExampleKind) -> None:
    rows = [row for _, row, _ in laid if not isinstance(row, DataError)]
    bad = len(laid) - len(rows)
    unread = f", {bad} of them no rows that can be read" if bad else ""
    say(f"{name}: {len(laid)} rows{unread}: {KINDS[kind]}")
    names = list(dict.fromkeys(key for row in rows for key in row))
    width = max(map(len, names), default=0)
    for key in names:
        values = [row[key] for row in rows if row.get(key) is not None]
        types = ", ".join(kind for kind, _ in Counter(_kind(value) for value in values).most_common())
        share = "" if len(values) == len(rows) else f" in {len(values)} of {len(rows)} rows"
        sample = json.dumps(values[0], ensure_ascii=False, default=str) if values else ""
        cut = sample if len(sample) <= SHOWN else f"{sample[:SHOWN]}..."
        say(f"  {key:<{width}}  {types or 'null'}{share}  {cut}")
    for key in VALUES:
        values = [row[key] for row in rows if row.get(key) is not None]
        if values:
            say(f"{key}: {_distribution(values)}")
    same = len(rows) - len({text_id(json.dumps(row, sort_keys=True, default=str)) for row in rows})
    say(f"the same row again: {same} ({_percent(same, len(rows))})")


def _of_the_rows(loaded: Loaded, data: DataConfig, uncut: Loaded | None) -> None:
    prompts = Counter(text_id(record.prompt) for record in loaded.records)
    again = len(loaded.records) - len(prompts)
    say(f"the same prompt again: {again} of {len(loaded.records)} ({_percent(again, len(loaded.records))})")
    margins = [example.margin for example in loaded.examples if example.margin is not None]
    if margins:
        say(f"margins by data.margin.scale={data.margin.scale.value}: {_distribution(margins)}")
    for what, sizes in _sizes(loaded).items():
        say(f"characters of {what}: {_spread(sizes)}")
    if uncut is not None:
        _tokens(loaded, uncut, data)
    twice = loaded.laid_out_twice()
    if twice:
        say(twice)
    rules: dict[str, list[DataError]] = {}
    for error in loaded.skipped:
        rules.setdefault(re.sub(r"'[^']*'|\"[^\"]*\"|\d+", "...", error.what), []).append(error)
    say(f"rows that break a rule: {len(loaded.skipped)}" + (" (data.on_bad_row=skip leaves them out)" if rules else ""))
    for errors in sorted(rules.values(), key=lambda errors: -len(errors))[:SHOWN]:
        say(f"  {len(errors)}, the first {errors[0]}")


def _sizes(loaded: Loaded) -> dict[str, list[int]]:
    found = {"prompts": [_characters(record.prompt) for record in loaded.records]}
    names = ("chosen", "rejected") if loaded.records and len(loaded.records[0].completions) == 2 else ("completions",)
    for place, name in enumerate(names):
        sizes = [_characters(record.completions[place]) for record in loaded.records if record.completions]
        if sizes:
            found[name] = sizes
    return found


def _characters(turns: Sequence[dict[str, Any]]) -> int:
    return sum(len(turn["content"]) for turn in turns)


def _tokens(loaded: Loaded, uncut: Loaded, data: DataConfig) -> None:
    """As the rows have them, and what the limits cut."""
    prompts = [len(example.prompt_ids) for example in uncut.examples]
    completions = [len(ids) for example in uncut.examples for ids in example.completion_ids]
    cut = loaded.truncation
    lost = f"{cut.prompts} ({_percent(cut.prompts, len(prompts))}) lose their beginning"
    say(f"tokens of prompts: {_spread(prompts)}; {lost} to data.max_prompt_length={data.max_prompt_length}")
    if completions:
        lost = f"{cut.completions} ({_percent(cut.completions, len(completions))}) lose their end"
        say(f"tokens of completions: {_spread(completions)}; {lost} to data.max_length={data.max_length}")


def _overlap(train: Loaded, held_out: Loaded) -> None:
    known = {text_id(record.prompt) for record in train.records}
    both: list[Record] = [record for record in held_out.records if text_id(record.prompt) in known]
    first = f", the first {both[0].source}" if both else ""
    share = _percent(len(both), len(held_out.records))
    say(f"prompts of eval that train has too: {len(both)} of {len(held_out.records)} ({share}){first}")


def _show(loaded: Loaded, tokenizer: PreTrainedTokenizerBase, *, has_model: bool) -> None:
    if not has_model:
        say("laid out by the small tokenizer of the package (model.path=FOLDER: by that model's, with its tokens)")
    text.show(loaded.examples, tokenizer, "what carries loss")


def _distribution(values: Sequence[Any]) -> str:
    """Each value by its number; of many numbers their spread."""
    flat = [each for value in values for each in (value if isinstance(value, list) else [value])]
    counts = Counter(str(value) for value in flat)
    numbers = [value for value in flat if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(counts) > FEW and len(numbers) == len(flat):
        return f"{_spread(numbers)}, least {min(numbers):g}"
    named = ", ".join(f"{value[:SHOWN]} {count}" for value, count in counts.most_common(FEW))
    return named + (f" and {len(counts) - FEW} more values" if len(counts) > FEW else "")


def _spread(numbers: Sequence[float]) -> str:
    ordered = sorted(numbers)
    high = ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]
    return f"median {ordered[len(ordered) // 2]:g}, 95% up to {high:g}, most {ordered[-1]:g}"


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / max(1, whole):.1f}%"
