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

from alignment.check import columns, text
from alignment.check.columns import distribution, percent, spread
from alignment.check.rows import MANY, RATINGS
from alignment.config.data import BadRow, DataConfig, ExampleKind, SourceConfig, each_source, has_rows
from alignment.config.errors import UserError
from alignment.config.margin import MarginScale
from alignment.config.run import TrainingConfig
from alignment.config.sources import Format
from alignment.data.carried import NOTHING
from alignment.data.columns import own_columns
from alignment.data.detect import UnknownLayout
from alignment.data.formats import parse
from alignment.data.held_out import hold_out, num_prompts
from alignment.data.layout import Laid, laid_out
from alignment.data.load import load_source
from alignment.data.loaded import Loaded, joined
from alignment.data.margins import margin_from
from alignment.data.read import read_each
from alignment.data.records import DataError, Record
from alignment.models.tokenizer import prepare_tokenizer
from alignment.runs.scores import text_id
from alignment.terminal import quiet, say
from alignment.training.setup import say_margins

VALUES = (*RATINGS, "label", "score", "subset", "source", "tags", "weight")
ENDLESS: dict[str, Any] = {"max_length": 2**31 - 1, "max_prompt_length": 2**31 - 2}
SHOWN = 40  # rules that are named
KINDS = {
    ExampleKind.prompts: "prompts, for ppo, grpo, rejection and the replies of evaluate",
    ExampleKind.demonstrations: "demonstrations, for sft",
    ExampleKind.pairs: "pairs, for reward, dpo and other methods of pairs; sft learns from chosen alone",
    ExampleKind.labeled: "replies that are desirable or not, for kto",
    ExampleKind.scored: "replies with a score, for reward_regression",
    ExampleKind.steps: "replies in steps, for reward_process",
}


def kind_of(data: DataConfig) -> ExampleKind:
    """What the first row that can be read has; the embedded task's are pairs.

    Raises:
        UserError: a file cannot be read, or its layout is not known; its columns are told before.
    """
    for _, source, own in _sources(data, "train"):
        if own.format is Format.toy:
            return ExampleKind.pairs
        try:
            return _kind_of(laid_out(source, own, None, "data.train", lambda _: None), own)
        except UnknownLayout:
            raw = [
                row for path in source.paths() for _, row in islice(read_each(path, own.columns.values()), source.limit)
            ]
            say(f"train: {len(raw)} rows, of no layout that is known")
            columns.tell([row for row in raw if not isinstance(row, DataError)])
            raise
    return ExampleKind.demonstrations


def _kind_of(laid: Iterable[Laid], data: DataConfig) -> ExampleKind:
    for at, row, format in laid:
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
    splits: dict[str, dict[str, Loaded]] = {"train": {}, "eval": {}}
    failed: UserError | None = None
    for split, found in splits.items():
        for name, source, own in _sources(data, split):
            try:
                laid = [] if source.path is None else list(laid_out(source, own, kind, f"data.{name}", say))
                if laid:
                    _of_the_file(name, laid, kind, own)
                with quiet():
                    lenient = replace(own, on_bad_row=BadRow.skip)
                    loaded = load_source(name, source, lenient, tokenizer, kind, "data", NOTHING)
                    endless = replace(lenient, **ENDLESS)
                    uncut = load_source(name, source, endless, tokenizer, kind, "data", NOTHING) if has_model else None
            except UserError as error:
                failed = failed or error
                continue
            if loaded is not None:
                found[name] = loaded
                _of_the_rows(loaded, own, uncut)
    _of_both(splits["train"], splits["eval"], config)
    if splits["train"]:
        _show(next(iter(splits["train"].values())), tokenizer, has_model=has_model)
    if failed is not None:
        raise failed


def _sources(data: DataConfig, split: str) -> list[tuple[str, SourceConfig, DataConfig]]:
    """(what it is in `data`, source, its config) of each source of a split that names rows."""
    if not has_rows(data, split) or (split == "eval" and data.eval.fraction is not None):
        return []
    source, several = {"train": (data.train, "train.mix"), "eval": (data.eval, "eval.sets")}[split]
    return [(f"{several}.{name}" if name else split, one, own) for name, one, own in each_source(source, data)]


def _of_both(train: dict[str, Loaded], held_out: dict[str, Loaded], config: TrainingConfig) -> None:
    """What is held out of training rows, and the prompts that both have."""
    if not train:
        return
    whole, fraction = joined(train), config.data.eval.fraction
    if fraction is not None:
        whole, out = hold_out(whole, fraction, config.seed)
        held, left = (f"{len(each.examples)} rows of {num_prompts(each)} prompts" for each in (out, whole))
        share = percent(len(out.examples), len(out.examples) + len(whole.examples))
        way = f"data.eval.fraction={fraction:g}, seed={config.seed}"
        say(f"eval: {held} ({share}), held out of the training rows by {way}; {left} are left")
        held_out = {"eval": out}
    for name, loaded in held_out.items():
        _overlap(whole, loaded, name)


def _of_the_file(name: str, laid: Sequence[Laid], kind: ExampleKind, data: DataConfig) -> None:
    rows = [row for _, row, _ in laid if not isinstance(row, DataError)]
    bad = len(laid) - len(rows)
    unread = f", {bad} of them no rows that can be read" if bad else ""
    say(f"{name}: {len(laid)} rows{unread}: {KINDS[kind]}")
    own = [own_columns(row) for row in rows]
    columns.tell(own)
    columns.tell_use(own, laid[0][2], kind, data)
    for key in VALUES:
        values = [row[key] for row in rows if row.get(key) is not None]
        if values:
            say(f"{key}: {distribution(values)}")
    same = len(own) - len({text_id(json.dumps(row, sort_keys=True, default=str)) for row in own})
    say(f"duplicate rows: {same} ({percent(same, len(own))})")


def _of_the_rows(loaded: Loaded, data: DataConfig, uncut: Loaded | None) -> None:
    prompts = Counter(text_id(record.prompt) for record in loaded.records)
    again = len(loaded.records) - len(prompts)
    say(f"duplicate prompts: {again} of {len(loaded.records)} ({percent(again, len(loaded.records))})")
    say_margins(loaded, data)
    for what, sizes in _sizes(loaded).items():
        say(f"characters of {what}: {spread(sizes)}")
    if uncut is not None:
        _tokens(loaded, uncut, data)
        _warn_of_cuts(loaded, uncut, data)
    twice = loaded.laid_out_twice()
    if twice:
        say(twice)
    rules: dict[str, list[DataError]] = {}
    for error in loaded.skipped:
        rules.setdefault(re.sub(r"'[^']*'|\"[^\"]*\"|\d+", "...", error.what), []).append(error)
    way = " (data.on_bad_row=skip leaves them out)" if rules else ""
    say(f"rows that cannot be learned from: {len(loaded.skipped)}{way}")
    for errors in sorted(rules.values(), key=lambda errors: -len(errors))[:SHOWN]:
        say(f"  {len(errors)}, the first {errors[0]}")
    rows = len(loaded.skipped) + len(loaded.records)
    if len(loaded.skipped) > MANY * rows:
        worst = max(rules.values(), key=len)
        what = f"{len(loaded.skipped)} of {rows} rows break a rule, most of them this one: {worst[0].what}"
        say(f"WARNING: {what}; with data.on_bad_row=skip {len(loaded.records)} rows are left to learn from")


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
    lost = f"{cut.prompts} ({percent(cut.prompts, len(prompts))}) lose their beginning"
    say(f"tokens of prompts: {spread(prompts)}; {lost} to data.max_prompt_length={data.max_prompt_length}")
    if completions:
        lost = f"{cut.completions} ({percent(cut.completions, len(completions))}) lose their end"
        say(f"tokens of completions: {spread(completions)}; {lost} to data.max_length={data.max_length}")


def _warn_of_cuts(loaded: Loaded, uncut: Loaded, data: DataConfig) -> None:
    """Where most rows are cut, the limits that would keep all of them whole."""
    sizes = [(len(each.prompt_ids), max(map(len, each.completion_ids), default=0)) for each in uncut.examples]
    completions = sum(len(each.completion_ids) for each in uncut.examples)
    of_prompts = loaded.truncation.prompts > MANY * len(sizes)
    of_completions = loaded.truncation.completions > MANY * completions
    if not (of_prompts or of_completions):
        return
    limit = max(prompt for prompt, _ in sizes) if of_prompts else data.max_prompt_length
    whole = max(min(prompt, limit) + max(completion, 1) for prompt, completion in sizes)
    settings = [f"data.max_prompt_length={limit}"] if limit != data.max_prompt_length else []
    settings += [f"data.max_length={whole}"] if whole > data.max_length else []
    cut = [f"{loaded.truncation.prompts} of {len(sizes)} prompts lose their beginning"] if of_prompts else []
    cut += [f"{loaded.truncation.completions} of {completions} completions their end"] if of_completions else []
    say(f"WARNING: {' and '.join(cut)}: {' '.join(settings)} keeps them whole")


def _overlap(train: Loaded, held_out: Loaded, name: str) -> None:
    known = {text_id(record.prompt) for record in train.records}
    both: list[Record] = [record for record in held_out.records if text_id(record.prompt) in known]
    first = f", the first {both[0].source}" if both else ""
    share = percent(len(both), len(held_out.records))
    say(f"prompts of {name} that train has too: {len(both)} of {len(held_out.records)} ({share}){first}")


def _show(loaded: Loaded, tokenizer: PreTrainedTokenizerBase, *, has_model: bool) -> None:
    if not has_model:
        say("laid out by the small tokenizer of the package (model.path=FOLDER: by that model's, with its tokens)")
    text.show(loaded.examples, tokenizer, "what carries loss")
