"""A reward model on held-out pairs: what it gives both replies, beside all that the rows say of them."""

from collections.abc import Iterator
from typing import Any

from alignment.config.data import ExampleKind
from alignment.config.errors import error_prefix
from alignment.config.evaluate import EvaluateConfig
from alignment.config.model import ModelConfig
from alignment.config.sources import Format
from alignment.data.layout import laid_out
from alignment.data.load import load_split
from alignment.data.loaded import Loaded
from alignment.data.records import DataError, Message
from alignment.evaluate.pairs import COLUMNS
from alignment.evaluate.results import RewardModelResult
from alignment.generation.score import RewardModelScorer, reward_model_scorer
from alignment.runs.scores import text_id
from alignment.tasks.compared import ComparedRun
from alignment.training.setup import require_positions, say_split


def scorer_of(config: EvaluateConfig, baseline: ComparedRun | None) -> RewardModelScorer | None:
    """The reward model of the learned score; None where there is none. `baseline`: whose prompts' replies it scores.

    Raises:
        ConfigError: it cannot be had, or its chat template refuses one of the prompts.
    """
    if config.reward is None:
        return None
    trusted = config.trust_remote_code
    scorer = reward_model_scorer(config.reward, config.batch, config.distributed, key="reward", trusted=trusted)
    if baseline is not None:
        scorer.reader.check(baseline.prompts.records, baseline.tokenizer)
    return scorer


def held_out_pairs(config: EvaluateConfig, scorer: RewardModelScorer) -> Loaded | None:
    """Held-out pairs as the reward model reads them, in its own tokens and template."""
    pairs = say_split(
        load_split("eval", config.pairs, scorer.reader.tokenizer, ExampleKind.pairs, part="pairs"), "pairs"
    )
    with error_prefix("reward"):
        settings = ModelConfig(path=config.reward, trust_remote_code=config.trust_remote_code)
        require_positions(settings, [pairs], config.pairs, part="pairs")
    return pairs


def judged(config: EvaluateConfig, scorer: RewardModelScorer, pairs: Loaded) -> RewardModelResult:
    """The reward model's scores of the pairs, in the order of the data. All processes together."""
    table = scorer.score_examples(pairs.examples, describe="reward model")
    margins = [example.margin for example in pairs.examples]
    known = [margin for margin in margins if margin is not None]
    lengths = [tuple(_characters(turns) for turns in record.completions) for record in pairs.records]
    return RewardModelResult(
        table[:, 0].tolist(),
        table[:, 1].tolist(),
        known if known else None,
        [(chosen, rejected) for chosen, rejected in lengths],
        _columns(config, pairs),
    )


def pair_rows(pairs: Loaded, result: RewardModelResult) -> Iterator[dict[str, Any]]:
    """Of `scores.jsonl`."""
    scores = zip(pairs.records, result.chosen_scores, result.rejected_scores, strict=True)
    for record, chosen, rejected in scores:
        yield {
            "part": "pairs",
            "method": "reward model",
            "id": text_id(record.prompt, *record.completions),
            "chosen": chosen,
            "rejected": rejected,
            "correct": int(chosen > rejected),
        }


def _characters(turns: list[Message]) -> int:
    return sum(len(turn["content"]) for turn in turns if turn["role"] == "assistant")


def _columns(config: EvaluateConfig, pairs: Loaded) -> dict[str, list[tuple[str, ...]]]:
    """column -> what each pair's row has there, of the columns that tell groups of pairs; one without has nothing."""
    if config.pairs.format is Format.toy:
        return {}
    kept = {record.source for record in pairs.records}
    every = laid_out(config.pairs.eval, config.pairs, ExampleKind.pairs, "pairs.eval", tell=lambda _: None)
    rows = {at: row for at, row, _ in every if at in kept and not isinstance(row, DataError)}
    found = {column: [_values(rows[record.source].get(column)) for record in pairs.records] for column in COLUMNS}
    return {column: values for column, values in found.items() if any(values)}


def _values(value: Any) -> tuple[str, ...]:
    """A text, a number, or a list of them; anything else tells no group."""
    several = value if isinstance(value, list) else [value]
    return tuple(str(each) for each in several if isinstance(each, str | int | float))
