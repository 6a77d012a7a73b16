"""What models give the completions of held-out rows: each in its own tokens, all of the same rows."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from alignment.config.data import BadRow, DataConfig, ExampleKind
from alignment.config.errors import ConfigError, UserError, error_prefix
from alignment.config.evaluate import EvaluateConfig
from alignment.config.sources import Format
from alignment.data.load import load_split
from alignment.data.loaded import Loaded
from alignment.data.tokenize import Example
from alignment.evaluate.positions import bounds
from alignment.evaluate.results import CompletionsResult
from alignment.runs.scores import text_id
from alignment.tasks.compared import ComparedPolicy, ComparedRun, only
from alignment.terminal import quiet, say
from alignment.training.setup import require_positions, say_split

BROKEN = "\ufffd"  # what a part of a character is decoded to
LONGEST_CHARACTER = 4  # bytes in UTF-8
BYTE = re.compile(r"<0x[0-9A-F]{2}>")  # a piece of one byte, in vocabularies that fall back on them


def completions(config: EvaluateConfig, runs: dict[str, ComparedRun]) -> dict[str, Loaded]:
    """The rows with a completion as each run reads them, the same for all; {} where perplexity is not measured.

    Raises:
        ConfigError: perplexity is asked for and rows have no completion, or one is beyond a model's positions.
    """
    if config.num_samples == 0:
        return {name: entry.prompts for name, entry in runs.items()}
    if config.perplexity is False or (config.perplexity is None and config.data.format is Format.toy):
        return {}  # the embedded task has prompts of its own for each kind of rows
    found: dict[str, Loaded] = {}
    for name, entry in runs.items():
        like = next((other for other in found if runs[other].reads_like(entry.tokenizer)), None)
        loaded = _read(config, entry) if like is None else found[like]
        if loaded is None:
            return {}
        with error_prefix(f"runs.{name}"):
            require_positions(entry.settings, [loaded], config.data)
        found[name] = loaded
    common = set.intersection(*({record.source for record in each.records} for each in found.values()))
    if len(common) < 2:
        if config.perplexity:
            raise ConfigError(f"perplexity needs at least 2 rows of data.eval with a completion, got {len(common)}")
        return {}
    found = {name: only(loaded, common) for name, loaded in found.items()}
    say(f"perplexity: of the {len(common)} completions of data.eval")
    return found


def _read(config: EvaluateConfig, entry: ComparedRun) -> Loaded | None:
    """None where nobody asked for completions, and no row has one."""
    if config.perplexity:
        return say_split(load_split("eval", config.data, entry.tokenizer, ExampleKind.demonstrations), "completions")
    lenient: DataConfig = replace(config.data, on_bad_row=BadRow.skip)
    try:
        with quiet():
            return load_split("eval", lenient, entry.tokenizer, ExampleKind.demonstrations)
    except ConfigError:  # no row has a completion
        return None


def perplexity_of(policy: ComparedPolicy, name: str, loaded: Loaded) -> CompletionsResult:
    """All processes together.

    Raises:
        UserError: the model gives what is no finite number; names the run and the first such row.
    """
    counts = span_counts(loaded.examples)
    by_span = policy.logprobs_by_span(loaded.examples, counts)
    logprobs = by_span.sum(1)
    if not logprobs.isfinite().all():
        first = loaded.examples[int((~logprobs.isfinite()).nonzero()[0, 0])].source
        rule = f"runs.{name} must give finite log-probs: look for weights that are no finite numbers"
        raise UserError(f"{rule}, got {logprobs[~logprobs.isfinite()][0].item()} for {first}")
    learned = [
        example.completion_ids[0] if example.learned is None else example.completion_ids[0][example.learned[0]]
        for example in loaded.examples
    ]
    return CompletionsResult(
        nll=(-logprobs).tolist(),
        tokens=[len(ids) for ids in learned],
        num_bytes=[bytes_of(policy.entry.tokenizer, ids) for ids in learned],
        span_nll=(-by_span).tolist(),
        span_tokens=counts,
    )


def span_counts(examples: Sequence[Example]) -> list[list[int]]:
    """[G][K] how many learned tokens of each one's completion are in each span of its row."""
    ends = bounds(max(len(each.prompt_ids) + len(each.completion_ids[0]) for each in examples))
    found = []
    for each in examples:
        size = len(each.completion_ids[0])
        at = np.arange(size) if each.learned is None else np.flatnonzero(each.learned[0])
        counts = np.bincount(np.searchsorted(ends, at + len(each.prompt_ids) + 1), minlength=len(ends))
        found.append([int(count) for count in counts])
    return found


def completion_rows(name: str, loaded: Loaded, result: CompletionsResult) -> Iterator[dict[str, Any]]:
    """Of `scores.jsonl`."""
    figures = zip(loaded.records, result.nll, result.tokens, result.num_bytes, strict=True)
    for record, nll, tokens, num_bytes in figures:
        row_id = text_id(record.prompt, *record.completions)
        row = {"part": "completions", "method": name, "id": row_id, "nll": nll, "tokens": tokens, "bytes": num_bytes}
        yield row


def bytes_of(tokenizer: PreTrainedTokenizerBase, ids: np.ndarray) -> int:
    """Of the tokens' text, without what ends a reply; a text of none, such as a bare end, counts as one. Of a character
    that a cut has left in pieces the bytes count that its tokens have, not those of the sign that stands for it."""
    text, whole = _text(tokenizer, ids), len(ids)
    while whole > max(0, len(ids) - LONGEST_CHARACTER) and _text(tokenizer, ids[:whole]).endswith(BROKEN):
        whole -= 1
    if whole < len(ids) and text.endswith(BROKEN):
        pieces = tokenizer.convert_ids_to_tokens(ids[whole:].tolist())
        return len(_text(tokenizer, ids[:whole]).encode(errors="replace")) + sum(map(_bytes_of_piece, pieces))
    return max(1, len(text.encode(errors="replace")))


def _text(tokenizer: PreTrainedTokenizerBase, ids: np.ndarray) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True))


def _bytes_of_piece(piece: str) -> int:
    """Of a piece with a part of a character: <0xE4> is one byte; in byte-level BPE each sign stands for one."""
    return 1 if BYTE.fullmatch(piece) else len(piece)
