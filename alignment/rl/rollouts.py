"""Replies to a step's prompts and what they are worth: how a step begins for every method that learns from its own."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from alignment.config.enums import ExampleKind
from alignment.config.online import OnlineConfig
from alignment.config.sections import DistributedConfig
from alignment.data.batches import Batches
from alignment.data.load import Loaded, load_split
from alignment.distributed.engine import Engine
from alignment.distributed.frozen import FrozenEngine
from alignment.generation.diagnostics import derived
from alignment.generation.generate import Generator
from alignment.generation.samples import Samples, build_generator, sample
from alignment.generation.score import Scorer
from alignment.losses import Mean
from alignment.models.heads import LanguageModel
from alignment.models.layout import settle_layout
from alignment.rl.reference import FrozenCopy, Reference
from alignment.rl.reward_scorer import RewardScorer
from alignment.rl.rewards import Reward, shaped
from alignment.training.alarm import Alarm
from alignment.training.best import Write
from alignment.training.checkpoint import Stateful
from alignment.training.metrics import Metrics
from alignment.training.samples_log import SamplesLog
from alignment.training.setup import build_engine, packer_of, prepare_tokenizer, require_positions, required_split, said
from alignment.training.timer import StepTimer

REDRAWN = 2**40  # a seed of step k's second draw is no other step's
EVAL_SEED = 2**31  # held-out replies are drawn with the same seed at every evaluation


def alike(scores: Tensor) -> Tensor:
    """[G] bool, whether the replies to a prompt all score alike; scores [G, n]."""
    return (scores == scores[:, :1]).all(1)


def not_alike(scores: Tensor) -> Tensor | None:
    """[G] bool, the prompts whose replies can be learned from; None, which is all, where there are none."""
    teach = ~alike(scores)
    return teach if teach.any() else None


@dataclass(slots=True)
class Prompts:
    """Tokenizer and prompts, before any weights are loaded: the user's mistakes are found here."""

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
    train = required_split("train", config.data, tokenizer, ExampleKind.prompts)
    held_out = said(load_split("eval", config.data, tokenizer, ExampleKind.prompts), "eval")
    require_positions(config.model, [train, held_out], config.data, config.generation.max_new_tokens)
    return Prompts(tokenizer, train, held_out)


def shard_reference(reference: Reference, distributed: DistributedConfig) -> None:
    """The same of a reference that is a model of its own."""
    if distributed.zero == 3 and isinstance(reference, FrozenCopy):
        reference.model = FrozenEngine(reference.model, config=distributed, sharded=True).model


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
        self.shown = SamplesLog(self.folder, done=done)

    def step(self, step: int, replies: int) -> tuple[Samples, Tensor, Metrics]:
        """Step `step`'s replies, `replies` to each prompt, on every process; what they are worth to learning, [G, n],
        penalties included; and what was measured, which is the same on all processes."""
        with self.timer.part("generate"):
            samples = self.draw(self.prompts.train, self.batches.step_rows(step - 1), self.seed(step), replies)
        with self.timer.part("score"):
            scores, judged = self.scorer(samples)
        self.shown.write(step, "train", self.scorer.table(samples, scores, self.config.log.samples))
        judged["generation/live_fraction"] = samples.live_fraction()
        return samples, shaped(scores, samples, self.config), judged

    def redrawn(self, samples: Samples, scores: Tensor, step: int, times: int) -> tuple[Samples, Tensor, Metrics]:
        """Replies and scores of a step, those to prompts whose replies all score alike drawn anew up to so many times;
        which is measured beside what the step's replies are, from which it takes nothing away."""
        again = torch.zeros(len(scores), dtype=torch.bool)
        for attempt in range(1, times + 1):
            places = alike(scores).nonzero()[:, 0].tolist()
            if not places:
                break
            again[places] = True
            rows = [self.batches.step_rows(step - 1)[place] for place in places]
            with self.timer.part("generate"):
                other = self.draw(self.prompts.train, rows, self.seed(step) + attempt * REDRAWN, scores.shape[1])
            with self.timer.part("score"):
                samples = samples.with_replies(places, other)
                scores[places] = shaped(self.scorer(other)[0], other, self.config)
        measured = Metrics({"groups/alike": Mean.of(alike(scores))})
        return samples, scores, measured | ({"groups/redrawn": Mean.of(again)} if times else {})

    def evaluate(self, step: int) -> dict[str, float]:
        """The same of one reply to each held-out prompt; nothing where there are none."""
        held_out = self.prompts.held_out
        if held_out is None:
            return {}
        samples = self.draw(held_out, list(range(len(held_out.examples))), EVAL_SEED, 1)
        scores, judged = self.scorer(samples)
        self.shown.write(step, "eval", self.scorer.table(samples, scores, self.config.log.samples))
        return derived(judged.means())

    def draw(self, data: Loaded, rows: list[int], seed: int, replies: int) -> Samples:
        """The policy's replies to the prompts at `rows`."""
        records, examples = [data.records[row] for row in rows], [data.examples[row] for row in rows]
        return sample(self.generator, self.engine, records, examples, replies=replies, seed=seed)

    def seed(self, step: int) -> int:
        return self.config.seed * 1_000_003 + step


def rollouts_of(
    config: OnlineConfig, prompts: Prompts, scorer: RewardScorer, policy: LanguageModel, folder: Path
) -> Rollouts:
    """Of a method that takes one optimizer step a step, with the policy's engine, in the layout that the policy takes;
    models that score are shared out."""
    batch = replace(config.batch, layout=settle_layout(policy, config.batch.layout))
    batches = Batches(prompts.train.examples, packer_of(batch, prompts.tokenizer), config.seed)
    engine = build_engine(policy, config, num_steps=batches.num_steps(config.train))
    if config.distributed.zero == 3:
        scorer.shard()
    generator = build_generator(policy, prompts.tokenizer, config.generation, config.distributed)
    return Rollouts(config, prompts, batches, scorer, engine, generator, folder, StepTimer(engine.device))


@dataclass(slots=True)
class OnPolicy:
    """What the methods that learn from their own replies have in common; what they `collect` and `update` is theirs."""

    rollouts: Rollouts
    write: Write
    alarm: Alarm = field(init=False)

    def __post_init__(self) -> None:
        self.alarm = Alarm(self.rollouts.config.alarm)

    @property
    def train(self) -> Batches:
        return self.rollouts.batches

    @property
    def timer(self) -> StepTimer:
        return self.rollouts.timer

    @property
    def kl_limit(self) -> float | None:
        return None

    def begin(self, done: int) -> None:
        self.rollouts.begin(done)

    def evaluate(self, step: int) -> dict[str, float]:
        return self.rollouts.evaluate(step)

    def row(self, means: dict[str, float]) -> dict[str, float]:
        return derived(means)

    def learning_rate(self) -> float:
        return self.rollouts.engine.learning_rate()

    def parts(self) -> dict[str, Stateful]:
        return {"model": self.rollouts.engine}

    def save(self, folder: Path) -> None:
        self.write(folder)
