"""What PPO's replies are worth, and what is watched beside it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from alignment.data.records import Record
from alignment.generation.diagnostics import diagnostics
from alignment.generation.samples import Samples
from alignment.generation.score import RewardModelScorer, Scorer
from alignment.losses import Mean
from alignment.rl.rewards import Reward
from alignment.training.metrics import Metrics


@dataclass(slots=True)
class RewardScorer:
    """The learned score, and the gold score that is only watched."""

    reward: Reward
    gold: Scorer | None

    def models(self) -> list[RewardModelScorer]:
        """All reward models that score here."""
        gold = [self.gold] if isinstance(self.gold, RewardModelScorer) else []
        return [*self.reward.models(), *gold]

    def shard(self) -> None:
        """The models that score, under ZeRO 3: among the processes, layer by layer."""
        for scorer in self.models():
            scorer.shard()

    def check(self, prompts: Sequence[Record], policy: PreTrainedTokenizerBase) -> None:
        """Before anything is computed, what the scorers are to read of the prompts.

        Raises:
            ConfigError: the chat template of a model that scores refuses one of them; names its key.
        """
        for scorer in self.models():
            scorer.reader.check(prompts, policy)
        self.reward.say_untagged(prompts)

    def __call__(self, samples: Samples) -> tuple[Tensor, Metrics]:
        """[G, n] scores, not shaped yet, and means over replies: `reward`, `reward/NAME` of each of several models,
        `finished`, `gold`, and the diagnostics of the replies."""
        learned = self.reward.scores(samples)
        finished = torch.tensor([[reply.finished for reply in replies] for replies in samples.replies])
        metrics = Metrics(reward=Mean.of(learned.combined), finished=Mean.of(finished))
        metrics |= {f"reward/{name}": Mean.of(scores) for name, scores in learned.by_model.items()}
        metrics |= diagnostics(samples, learned.combined)
        if self.gold is not None:
            metrics["gold"] = Mean.of(self.gold.score(samples))
        return learned.combined, metrics

    def table(self, samples: Samples, scores: Tensor, count: int) -> list[dict[str, Any]]:
        """A row for each reply to the first `count` prompts, with its score of `scores` [G, n] and its gold score."""
        if count == 0:
            return []
        samples = samples.first(count)
        gold = None if self.gold is None else self.gold.score(samples).flatten().tolist()
        return samples.table(score=scores[:count].flatten().tolist(), gold=gold)
