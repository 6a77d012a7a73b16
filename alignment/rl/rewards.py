"""What a reply is worth to the policy that learns from it: from its scorers to one number.

    score -> normalize -> combine            RewardScorer: `reward` in the log
          -> clip -> whiten -> missing-EOS penalty -> length penalty            shape_scores

The penalties come last, so that whitening does not rescale them. Whitening keeps the mean, as in TRL and Huang et al.
(2403.17031). Unlike theirs it is of the scores alone: they whiten the rewards of tokens with the KL term in them, which
rescales beta in each batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from alignment.config.batch import BatchConfig
from alignment.config.distributed import DistributedConfig
from alignment.config.online import OnlineConfig
from alignment.config.reward import Combine, ScorerConfig
from alignment.data.records import Record
from alignment.distributed.collectives import pick_device
from alignment.generation.diagnostics import diagnostics, gold_metrics
from alignment.generation.samples import Samples
from alignment.generation.score import RewardModelScorer, Scorer, build_scorer
from alignment.losses import (
    Mean,
    choose_safety_or_helpfulness,
    clip_scores,
    normalize_scores,
    subtract_length_penalty,
    subtract_missing_eos_penalty,
    whiten,
)
from alignment.models.reward_normalization import RewardStatistics, read_statistics
from alignment.terminal import say
from alignment.training.metrics import Metrics

SAFETY_TAG = "safety"


@dataclass(slots=True)
class Scores:
    """What the scorers say of G prompts' n replies."""

    combined: Tensor  # [G, n] float32
    by_model: dict[str, Tensor]  # name -> [G, n] float32, each of `reward.models` as it came; none where there is one


@dataclass(slots=True)
class WeightedScorer:
    """A scorer among others; `statistics` where it is to be normalized."""

    scorer: Scorer
    weight: float
    statistics: RewardStatistics | None

    def score(self, samples: Samples) -> tuple[Tensor, Tensor]:
        """[G, n] twice: as it came, and normalized."""
        raw = self.scorer.score(samples)
        if self.statistics is None:
            return raw, raw
        return raw, normalize_scores(raw, mean=self.statistics.mean, std=self.statistics.std)


@dataclass(slots=True)
class Reward:
    """The scorers of a config, each normalized where asked for, then combined. One scorer is a sum of one."""

    scorers: dict[str, WeightedScorer]
    config: ScorerConfig

    def models(self) -> list[RewardModelScorer]:
        """The scorers that are models."""
        return [one.scorer for one in self.scorers.values() if isinstance(one.scorer, RewardModelScorer)]

    def shard(self) -> None:
        for scorer in self.models():
            scorer.shard()

    def say_untagged(self, prompts: Sequence[Record]) -> None:
        """That the choice between two scorers goes by a tag that no prompt has, where it is so."""
        if self.config.combine is Combine.llama2 and not any(map(is_about_safety, prompts)):
            what = f"no prompt has {SAFETY_TAG!r} among its `tags`, so that safety judges only what it finds unsafe"
            say(f"reward.combine=llama2: {what} (reward.safety_threshold={self.config.safety_threshold:g})")

    def scores(self, samples: Samples) -> Scores:
        raw: dict[str, Tensor] = {}
        ready: dict[str, Tensor] = {}
        for name, one in self.scorers.items():
            raw[name], ready[name] = one.score(samples)
        by_model = {name: raw[name] for name in self.config.models}
        if self.config.combine is Combine.llama2:
            tagged = torch.tensor([is_about_safety(record) for record in samples.records])
            helpfulness, safety = ready["helpfulness"], ready["safety"]
            is_safety = tagged[:, None].expand_as(safety)
            threshold = self.config.safety_threshold
            return Scores(choose_safety_or_helpfulness(helpfulness, safety, is_safety, threshold=threshold), by_model)
        weighted = [self.scorers[name].weight * scores for name, scores in ready.items()]
        return Scores(torch.stack(weighted).sum(0), by_model)

    def score(self, samples: Samples) -> Tensor:
        """[G, n], the combined scores alone."""
        return self.scores(samples).combined


def is_about_safety(record: Record) -> bool:
    """Tags may be several in one text, parted by commas, and are written in any case."""
    return any(tag.strip().lower() == SAFETY_TAG for tags in record.tags for tag in tags.split(","))


def reward_of(config: OnlineConfig) -> Reward:
    """The reward of a run, as `build_reward` has it."""
    return build_reward(config.reward, config.batch, config.distributed, trusted=config.model.trust_remote_code)


def build_reward(
    config: ScorerConfig, batch: BatchConfig, distributed: DistributedConfig, *, trusted: bool = False
) -> Reward:
    """Raises:
    ConfigError: a scorer cannot be had, or is to be normalized and has no statistics; names its key.
    """
    scorers = {}
    for key, one in config.by_key().items():
        statistics = None
        if one.normalize:
            assert one.path is not None
            statistics = read_statistics(one.path, f"{key}.normalize")
        scorer = build_scorer(one, batch, distributed, key=key, trusted=trusted)
        scorers[key.rpartition(".")[2]] = WeightedScorer(scorer, one.weight, statistics)
    return Reward(scorers, config)


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
        """All of them, under ZeRO 3."""
        for scorer in self.models():
            scorer.shard()

    def offload(self) -> None:
        """Move all of them to the CPU; one that is asked again moves itself back."""
        for scorer in self.models():
            scorer.model.to("cpu")

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
            metrics |= gold_metrics(self.gold.score(samples))
        return learned.combined, metrics

    def table(self, samples: Samples, scores: Tensor, count: int) -> list[dict[str, Any]]:
        """A row for each reply to the first `count` prompts, with its score of `scores` [G, n] and its gold score."""
        if count == 0:
            return []
        samples = samples.first(count)
        gold = None if self.gold is None else self.gold.score(samples).flatten().tolist()
        return samples.table(score=scores[:count].flatten().tolist(), gold=gold)


def shape_scores(combined: Tensor, samples: Samples, config: OnlineConfig) -> Tensor:
    """[G, n] combined scores of an iteration's replies, those of all processes, to [G, n] float32, what is
    learned from."""
    reward = config.reward
    scores = combined.to(pick_device(config.distributed.device))
    if reward.clip is not None:
        scores = clip_scores(scores, limit=reward.clip)
    if reward.whitens:
        everywhere = torch.ones_like(scores, dtype=torch.bool)
        # R = WHITEN(LOGIT(R_c)), 2307.09288, takes the mean off; elsewhere it says how good the policy is, and stays.
        zero_mean = reward.combine is Combine.llama2
        scores = whiten(scores, everywhere, zero_mean=zero_mean)
    finished = torch.tensor([[reply.finished for reply in row] for row in samples.replies], device=scores.device)
    scores = subtract_missing_eos_penalty(scores, finished, penalty=reward.missing_eos_penalty)
    if reward.length_penalty:
        lengths = torch.tensor([[len(reply.ids) for reply in row] for row in samples.replies], device=scores.device)
        scores = subtract_length_penalty(scores, lengths, penalty=reward.length_penalty, free=reward.length_free)
    return scores.cpu()
