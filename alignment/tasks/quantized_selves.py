"""A model of an evaluation in fewer bits, and what it gives the same rows as the full one: a self at a time."""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch

from alignment.config.data import BadRow, ExampleKind
from alignment.config.errors import ConfigError
from alignment.config.evaluate import EvaluateConfig
from alignment.config.quantized_self import QuantizedSelf
from alignment.config.sources import Format
from alignment.data.load import load_split
from alignment.data.loaded import Loaded
from alignment.data.tokenize import Example
from alignment.distributed.collectives import sum_over_ranks
from alignment.evaluate.quantized import FULL
from alignment.evaluate.results import CompletionsResult, QuantizedResult, QuantizedResults, RewardModelResult
from alignment.generation.score import RewardModelScorer, packed_scorer
from alignment.models.divergence import next_token_divergence
from alignment.models.fewer_bits import PACKED, Cost, cost_of, round_layers, weight_bytes
from alignment.models.forwards import forwards
from alignment.runs.scores import text_id
from alignment.tasks.compared import ComparedPolicy, ComparedRun, copy_of, packed_like
from alignment.terminal import quiet, say
from alignment.training.setup import packer_of


def load_self(config: EvaluateConfig, full: ComparedPolicy, kind: QuantizedSelf) -> ComparedPolicy:
    """The baseline's quantised self.

    Raises:
        ConfigError: it cannot be had so; names the run.
    """
    if kind.is_packed:
        return packed_like(full, config.baseline, PACKED[kind], config)
    policy = copy_of(full, config.distributed)
    round_layers(policy.policy.hf, kind)
    return policy


def pairs_of_rows(config: EvaluateConfig, entry: ComparedRun) -> Loaded | None:
    """The rows of data.eval that are pairs, as the model reads them; None where none is."""
    if config.data.format is Format.toy:  # as of perplexity: the embedded task has prompts of its own for each kind
        return None
    lenient = replace(config.data, on_bad_row=BadRow.skip)
    try:
        with quiet():
            pairs = load_split("eval", lenient, entry.tokenizer, ExampleKind.pairs)
    except ConfigError:  # no row is one
        return None
    if pairs is not None:
        say(f"preferences: of the {len(pairs.records)} pairs of data.eval")
    return pairs


class Beside:
    """The full model, and each of its selves as it comes, on the same rows; all processes together, each a share."""

    def __init__(
        self, full: ComparedPolicy, completions: Loaded | None, given: CompletionsResult | None, pairs: Loaded | None
    ) -> None:
        self.full = full
        self.completions = completions
        self.pairs = pairs
        own = QuantizedResult(FULL, weight_bytes(full.policy), None, given, None, None, self._preferences(full))
        self.selves = [own]

    def add(self, kind: QuantizedSelf, policy: ComparedPolicy, given: CompletionsResult | None) -> QuantizedResult:
        """What the self gives the rows. `given`: what it gives the completions.

        Raises:
            UserError: its distributions are no finite numbers.
        """
        cost = cost_of(self.full.policy.hf, policy.policy.hf, kind)
        kl = same = None
        if self.completions is not None:
            kl, same = self._divergence(policy, self.completions.examples)
        result = QuantizedResult(kind.value, cost.num_bytes, errors(cost), given, kl, same, self._preferences(policy))
        self.selves.append(result)
        return result

    def _divergence(self, policy: ComparedPolicy, examples: Any) -> tuple[list[float], list[float]]:
        engine = self.full.engine
        table = torch.zeros(len(examples), 2, device=engine.device, dtype=torch.float64)
        batches = packer_of(self.full.batch, self.full.entry.tokenizer, self.full.policy).eval_batches(examples)

        def read(batch: Any) -> torch.Tensor:
            return torch.stack(next_token_divergence(self.full.policy, policy.policy, batch), 1)

        for batch, found, counts in forwards(batches, read, device=engine.device, precision=engine.precision):
            if counts:
                table[batch.rows] = torch.stack([batch.sum_by_completion(each) for each in found.unbind(1)], 1)
        kl, same = sum_over_ranks(table).cpu().unbind(1)
        return kl.tolist(), same.tolist()

    def _preferences(self, policy: ComparedPolicy) -> list[tuple[float, float]] | None:
        if self.pairs is None:
            return None
        sides = [one_side(example, side) for side in (0, 1) for example in self.pairs.examples]
        chosen, rejected = policy.summed_logprobs(sides).view(2, -1)
        return list(zip(chosen.tolist(), rejected.tolist(), strict=True))


def quantized_judges(
    config: EvaluateConfig, full: RewardModelScorer, pairs: Loaded, judgement: RewardModelResult
) -> QuantizedResults:
    """A reward model and its selves on its pairs. `judgement`: what it gives them itself."""
    own = list(zip(judgement.chosen_scores, judgement.rejected_scores, strict=True))
    selves = [QuantizedResult(FULL, weight_bytes(full.hf), None, None, None, None, own)]
    for kind in config.quantized:
        scorer = judge_self(config, full, kind)
        cost, scores = cost_of(full.hf, scorer.hf, kind), scorer.score_examples(pairs.examples, describe=kind.value)
        preferences = [(chosen, rejected) for chosen, rejected in scores.tolist()]
        selves.append(QuantizedResult(kind.value, cost.num_bytes, errors(cost), None, None, None, preferences))
        del scorer  # before the next one is read
    return QuantizedResults("reward model", is_reward_model=True, selves=selves)


def judge_self(config: EvaluateConfig, full: RewardModelScorer, kind: QuantizedSelf) -> RewardModelScorer:
    """A reward model's quantised self.

    Raises:
        ConfigError: it cannot be had so; names the reward model.
    """
    if kind.is_packed:
        return packed_scorer(full, PACKED[kind], trusted=config.trust_remote_code)
    scorer = replace(full, model=deepcopy(full.model))
    round_layers(scorer.hf, kind)
    return scorer


def one_side(example: Example, side: int) -> Example:
    """A pair's chosen reply (0) or its rejected one (1) behind its prompt, by itself."""
    learned = None if example.learned is None else (example.learned[side],)
    return replace(
        example,
        completion_ids=(example.completion_ids[side],),
        finished=(example.finished[side],),
        learned=learned,
        margin=None,
    )


def errors(cost: Cost) -> tuple[float, float, float]:
    return cost.error.relative, cost.error.mean_squared, cost.error.largest


def preference_rows(method: str, pairs: Loaded | None, result: QuantizedResult) -> Iterator[dict[str, Any]]:
    """Of `scores.jsonl`."""
    if pairs is None or result.preferences is None:
        return
    for record, (chosen, rejected) in zip(pairs.records, result.preferences, strict=True):
        row_id = text_id(record.prompt, *record.completions)
        correct = int(chosen > rejected)
        yield {
            "part": "pairs",
            "method": method,
            "id": row_id,
            "chosen": chosen,
            "rejected": rejected,
            "correct": correct,
        }


def add_divergence(rows: list[dict[str, Any]], method: str, result: QuantizedResult) -> None:
    """To the rows of `scores.jsonl` on the completions that the method has."""
    if result.kl is None or result.same is None:
        return
    own = (row for row in rows if row["method"] == method and row["part"] == "completions")
    for row, kl, same in zip(own, result.kl, result.same, strict=True):
        row.update(kl=kl, same=int(same))
