"""A step's prompts, the policy's replies to them, and their scores: how a step of every online method begins."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from alignment.config.data import ExampleKind
from alignment.config.online import OnlineConfig
from alignment.data.batches import Batches
from alignment.data.loaded import Loaded
from alignment.data.mixture import spans
from alignment.distributed.engine import Engine
from alignment.generation.diagnostics import derived, diversity, standard_errors
from alignment.generation.function import asked_by
from alignment.generation.generate import Generator
from alignment.generation.samples import Samples, build_generator, sample
from alignment.generation.score import Scorer
from alignment.generation.vllm import say_scaling
from alignment.models.heads import LanguageModel
from alignment.models.layout import settle_layout
from alignment.rl.mismatch import measured_mismatch
from alignment.rl.rewards import Reward, RewardScorer, shape_scores
from alignment.training.metrics import Metrics, of_sets
from alignment.training.samples_log import SamplesLog
from alignment.training.setup import (
    build_engine,
    fill_adapter,
    load_splits,
    packer_of,
    prepare_tokenizer,
    require_positions,
    train_batches,
)
from alignment.training.timer import StepTimer

ATTEMPT = 2**40
EVAL_SEED = 2**31  # held-out replies are drawn with the same seed at every evaluation


@dataclass(slots=True)
class Prompts:
    """Tokenizer and prompts. They are read before any weights, since most mistakes of a user are found in them."""

    tokenizer: PreTrainedTokenizerBase
    train: Loaded
    held_out: Loaded | None

    def scorer(self, reward: Reward, gold: Scorer | None) -> RewardScorer:
        """Raises:
        ConfigError: the chat template of a model that scores refuses one of the prompts; names its key.
        """
        scorer = RewardScorer(reward, gold)
        held_out = [] if self.held_out is None else self.held_out.records
        scorer.check([*self.train.records, *held_out], self.tokenizer)
        return scorer


def load_prompts(config: OnlineConfig) -> Prompts:
    tokenizer = prepare_tokenizer(config.model)
    carried = asked_by({**config.reward.functions(), "gold": config.gold})
    train, held_out = load_splits(config, tokenizer, ExampleKind.prompts, carried)
    require_positions(config.model, [train, held_out], config.data, config.generation.max_new_tokens)
    say_scaling(config.model, config.generation)
    return Prompts(tokenizer, train, held_out)


@dataclass(slots=True)
class Rollouts:
    """Draws replies, has them judged and shows some."""

    config: OnlineConfig
    prompts: Prompts
    batches: Batches  # of the training prompts
    scorer: RewardScorer
    engine: Engine
    generator: Generator
    folder: Path
    timer: StepTimer
    shown: SamplesLog = field(init=False)

    def begin(self, done: int) -> None:
        self.generator.model.changed()  # by the checkpoint that the run goes on from
        self.shown = SamplesLog(self.folder, done=done)

    def draw_and_score(self, step: int) -> tuple[Samples, Tensor, Metrics]:
        """`num_samples` replies to each prompt of a step, and their scores to learn from, [G, n], penalties included.

        Every process gets those of all processes, and the same metrics.
        """
        with self.timer.part("generate"):
            rows = self.batches.step_rows(step - 1)
            samples = self.draw(self.prompts.train, rows, self.seed(step), self.config.num_samples)
        with self.timer.part("score"):
            scores, metrics = self.scorer(samples)
        self.shown.write(step, "train", self.scorer.table(samples, scores, self.config.log.samples))
        metrics["generation/live_fraction"] = samples.live_fraction()
        return samples, shape_scores(scores, samples, self.config), metrics

    def evaluate(self, step: int) -> dict[str, float]:
        """The scorer's metrics of one reply to each held-out prompt, and the standard errors of their scores, of each
        set by its name too; empty without held-out prompts."""
        held_out = self.prompts.held_out
        if held_out is None:
            return {}
        samples = self.draw(held_out, list(range(len(held_out.examples))), EVAL_SEED, 1)
        sets = spans(held_out.sources or {"": len(held_out.examples)})
        scored = {name: self.scorer(samples.at(rows)) for name, rows in sets.items()}
        scores = torch.cat([scores for scores, _ in scored.values()])
        self.shown.write(step, "eval", self.scorer.table(samples, scores, self.config.log.samples))
        prompts = {"": len(held_out.examples), **held_out.sources}
        found = {name: metrics for name, (_, metrics) in scored.items()}
        row = of_sets(found, lambda name, means: {**derived(means), **standard_errors(means, prompts[name])})
        return row | Metrics(diversity(samples)).means() if len(found) > 1 else row

    def draw(self, data: Loaded, rows: list[int], seed: int, replies: int) -> Samples:
        """The policy's replies to the prompts at `rows`."""
        records, examples = [data.records[row] for row in rows], [data.examples[row] for row in rows]
        return sample(self.generator, self.engine, records, examples, replies=replies, seed=seed)

    def mismatch(self, samples: Samples) -> Metrics:
        """How far an engine that drew them is from the policy: `measured_mismatch`."""
        with self.timer.part("experience"):
            temperature = self.config.generation.temperature
            return measured_mismatch(self.engine, samples, self.batches.packer, temperature=temperature)

    def seed(self, step: int, attempt: int = 0) -> int:
        """Of a step's draws, or of a further attempt at some of them: no two of a run are the same."""
        return self.config.seed * 1_000_003 + step + attempt * ATTEMPT


def build_rollouts(
    config: OnlineConfig, prompts: Prompts, scorer: RewardScorer, policy: LanguageModel, folder: Path
) -> Rollouts:
    """With the policy's engine, batches in a layout that the policy reads, and under ZeRO 3 sharded scoring models."""
    batch = replace(config.batch, layout=settle_layout(policy, config.batch.layout))
    batches = train_batches(prompts.train, packer_of(batch, prompts.tokenizer, policy), config.seed, config.data.train)
    steps = config.optimizer_steps(batches.num_steps(config.train))
    fill_adapter(policy, config.model, batches)
    engine = build_engine(policy, config, num_steps=steps)
    scorer.shard()
    generator = build_generator(policy, prompts.tokenizer, config.generation, config.distributed)
    return Rollouts(config, prompts, batches, scorer, engine, generator, folder, StepTimer(engine.device))
