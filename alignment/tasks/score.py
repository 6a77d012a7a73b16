"""What a reward model gives the replies of a file: its rows again, each with its score or its two."""

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from alignment.config.data import ExampleKind, Learn
from alignment.config.errors import ConfigError, error_prefix
from alignment.config.evaluate import EvaluateConfig
from alignment.config.model import ModelConfig
from alignment.data.columns import own_columns
from alignment.data.layout import laid_out
from alignment.data.load import load_split
from alignment.data.records import DataError, Source
from alignment.evaluate.metrics import pair_accuracy
from alignment.generation.score import reward_model_scorer
from alignment.models.tokenizer import prepare_tokenizer
from alignment.tasks.max_tokens import with_max_tokens
from alignment.terminal import say
from alignment.training.setup import require_positions, say_split

PAIR = ("chosen_score", "rejected_score")


def score(config: EvaluateConfig) -> Iterator[str]:
    """JSON lines, in the order of the file; those that `pairs.on_bad_row=skip` leaves out are not among them.

    Raises:
        UserError: there is no reward model, or a row has no reply that could be scored; names file and line.
    """
    assert config.reward is not None  # the verb has seen to it
    rows = _rows(config)
    kind = _kind(rows)
    trusted = config.trust_remote_code
    settings = ModelConfig(path=config.reward, trust_remote_code=trusted)
    with error_prefix("reward"):
        tokenizer = prepare_tokenizer(settings)
    data = replace(config.pairs, learn=Learn.last) if kind is ExampleKind.demonstrations else config.pairs
    loaded = say_split(load_split("eval", data, tokenizer, kind, part="pairs"), "rows")
    assert loaded is not None
    with error_prefix("reward"):
        require_positions(settings, [loaded], config.pairs, part="pairs")
    batch = with_max_tokens(config).batch  # when the rows are found good, so that a mistake in them stands alone
    scorer = reward_model_scorer(config.reward, batch, config.distributed, key="reward", trusted=trusted)
    scores = scorer.score_examples(loaded.examples, describe="scoring").tolist()
    names = PAIR if kind is ExampleKind.pairs else ("score",)
    replaced = [name for name in names if any(name in own_columns(rows[example.source]) for example in loaded.examples)]
    for example, own in zip(loaded.examples, scores, strict=True):
        scored = {**own_columns(rows[example.source]), **dict(zip(names, own, strict=True))}
        yield json.dumps(scored, ensure_ascii=False, default=str)
    if replaced:
        say(f"WARNING: the rows' own {' and '.join(replaced)} gave way to the model's")
    say(_told(scores))


def _rows(config: EvaluateConfig) -> dict[Source, dict[str, Any]]:
    every = laid_out(config.pairs.eval, config.pairs, ExampleKind.pairs, "pairs.eval", tell=lambda _: None)
    found = {at: row for at, row, _ in every if not isinstance(row, DataError)}
    if not found:
        raise ConfigError(f"the file must have rows that can be read, got none in {config.pairs.eval.path!r}")
    return found


def _kind(rows: dict[Source, dict[str, Any]]) -> ExampleKind:
    """By the first row: what has two replies, one with a label, one without."""
    first = next(iter(rows.values()))
    if first.get("chosen") is not None and first.get("rejected") is not None:
        return ExampleKind.pairs
    return ExampleKind.labeled if first.get("label") is not None else ExampleKind.demonstrations


def _told(scores: list[list[float]]) -> str:
    if len(scores[0]) == 2:
        chosen, rejected = ([pair[place] for pair in scores] for place in (0, 1))
        accuracy = pair_accuracy(chosen, rejected)
        share = f"{100 * accuracy.mean:.1f}% [{100 * accuracy.low:.1f}, {100 * accuracy.high:.1f}]"
        gap = sum(one - other for one, other in scores) / len(scores)
        return f"{len(scores)} pairs: the chosen reply scores higher in {share}, by {gap:.3g} in the mean"
    single = [score for [score] in scores]
    mean = sum(single) / len(single)
    return f"{len(single)} replies: {mean:.3g} in the mean, from {min(single):.3g} to {max(single):.3g}"
