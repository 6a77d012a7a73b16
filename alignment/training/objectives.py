"""The seam between models and losses: (model, batch) -> LossOutput, and what the loss is a mean over.

`count` is known before the forward, so that a step can divide each micro-batch's sum by the GLOBAL count at once.
"""

from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from alignment.data.batches import EvenBatches
from alignment.data.pack import Batch
from alignment.distributed.engine import Engine
from alignment.losses import (
    CPOLoss,
    CrossEntropyLoss,
    DPOLoss,
    DPOVariant,
    LossOutput,
    MarginRankingLoss,
    Mean,
    ORPOLoss,
    ORPONll,
    ProcessRewardLoss,
    ScoreRegressionLoss,
    SimPOLoss,
)
from alignment.models.forwards import Movable
from alignment.models.readout import (
    completion_logprobs,
    prompt_and_completion_logprobs,
    sequence_scores,
    token_logprobs_and_hits,
)

Unit = TypeVar("Unit", bound=Movable, contravariant=True)


class Objective(Protocol[Unit]):
    """What `train_step` minimises. `Unit` is what one micro-batch is: a Batch, or PPO's Experience."""

    def __call__(self, model: nn.Module, batch: Unit) -> LossOutput: ...

    def count(self, batch: Unit) -> float:
        """What `loss.count` will be for this batch."""
        ...


@runtime_checkable
class StepWide(Protocol[Unit]):
    """An objective that must know something of a whole step, on all processes, before its first forward."""

    def prepare(self, engine: Engine, batches: EvenBatches[Unit]) -> None:
        """Once a step, and once an evaluation, by all processes."""
        ...


@dataclass(slots=True)
class SFT:
    """-log pi(y | x), mean over completion tokens, each of its row's weight.

    Metric beside the loss's: `mean_token_accuracy`, the share of tokens that greedy decoding would have chosen."""

    loss: CrossEntropyLoss

    def __call__(self, model: nn.Module, batch: Batch) -> LossOutput:
        logprobs, hits = token_logprobs_and_hits(model, batch)
        output = self.loss(logprobs, torch.ones_like(logprobs, dtype=torch.bool), batch.token_weights)
        output.metrics["mean_token_accuracy"] = Mean.of(hits)
        return output

    def count(self, batch: Batch) -> float:
        return batch.token_weights.sum().item()


@dataclass(slots=True)
class RewardRanking:
    """Margin ranking of the scores of two completions."""

    loss: MarginRankingLoss

    def __call__(self, model: nn.Module, batch: Batch) -> LossOutput:
        chosen, rejected = sequence_scores(model, batch).view(-1, 2).unbind(1)
        return self.loss(chosen, rejected, batch.margins, weight=batch.weights)

    def count(self, batch: Batch) -> float:
        return batch.total_weight


@dataclass(slots=True)
class ScoreRegression:
    """The score of one completion, held against the one that the data give."""

    loss: ScoreRegressionLoss

    def __call__(self, model: nn.Module, batch: Batch) -> LossOutput:
        assert batch.labels is not None
        return self.loss(sequence_scores(model, batch), batch.labels, weight=batch.weights)

    def count(self, batch: Batch) -> float:
        return batch.total_weight


@dataclass(slots=True)
class ProcessReward:
    """The scores of one completion at the ends of its steps, each of which is right or wrong."""

    loss: ProcessRewardLoss

    def __call__(self, model: nn.Module, batch: Batch) -> LossOutput:
        assert batch.labels is not None
        return self.loss(sequence_scores(model, batch), batch.labels, weight=self._weights(batch))

    def count(self, batch: Batch) -> float:
        return self._weights(batch).sum().item()

    def _weights(self, batch: Batch) -> Tensor:
        """[E]: of each step its row's."""
        return batch.weights.repeat_interleave(batch.num_ends)


@dataclass(slots=True)
class DPO:
    """Preference of the policy over its reference, whose log-probs are a table: [examples, 2], chosen and rejected."""

    loss: DPOLoss
    reference: Tensor

    def __call__(self, model: nn.Module, batch: Batch) -> LossOutput:
        return self.on_pairs(model, batch)

    def on_pairs(self, model: nn.Module, batch: Batch, shift: Tensor | None = None) -> LossOutput:
        policy = completion_logprobs(model, batch).view(-1, 2)
        reference, lengths = self.reference[batch.rows], batch.lengths.view(-1, 2)
        chosen_nll = -policy[:, 0] / lengths[:, 0] if self.loss.rpo_alpha > 0 else None
        if self.loss.variant is DPOVariant.sigmoid_norm:
            policy, reference = policy / lengths, reference / lengths
        logprobs = (*policy.unbind(1), *reference.unbind(1))
        return self.loss(*logprobs, margin=batch.margins, chosen_nll=chosen_nll, weight=batch.weights, shift=shift)

    def count(self, batch: Batch) -> float:
        return batch.total_weight


@dataclass(slots=True)
class ORPO:
    """Odds ratio of the mean log-probs, and the chosen side's negative log-likelihood."""

    loss: ORPOLoss

    def __call__(self, model: nn.Module, batch: Batch) -> LossOutput:
        if self.loss.nll is ORPONll.completion:
            chosen, rejected = self._pairs(batch, completion_logprobs(model, batch))
            means = chosen / self._lengths(batch)[0], rejected / self._lengths(batch)[1]
            return self.loss(*means, weight=batch.weights)
        prompt, completion = prompt_and_completion_logprobs(model, batch)
        chosen, rejected = self._pairs(batch, batch.sum_by_completion(completion))
        chosen_length, rejected_length = self._lengths(batch)
        chosen_nll = -(batch.sum_by_prompt(prompt) + chosen) / (batch.prompt_lengths + chosen_length)
        return self.loss(chosen / chosen_length, rejected / rejected_length, chosen_nll, weight=batch.weights)

    def count(self, batch: Batch) -> float:
        return batch.total_weight

    def _pairs(self, batch: Batch, values: Tensor) -> tuple[Tensor, Tensor]:
        chosen, rejected = values.view(-1, 2).unbind(1)
        return chosen, rejected

    def _lengths(self, batch: Batch) -> tuple[Tensor, Tensor]:
        return self._pairs(batch, batch.lengths)


@dataclass(slots=True)
class SimPO:
    """Preference by mean log-prob, without a reference."""

    loss: SimPOLoss

    def __call__(self, model: nn.Module, batch: Batch) -> LossOutput:
        means = completion_logprobs(model, batch) / batch.lengths
        return self.loss(*means.view(-1, 2).unbind(1), weight=batch.weights)

    def count(self, batch: Batch) -> float:
        return batch.total_weight


@dataclass(slots=True)
class CPO:
    """Preference by log-prob, without a reference, and the chosen side's negative log-likelihood."""

    loss: CPOLoss

    def __call__(self, model: nn.Module, batch: Batch) -> LossOutput:
        chosen, rejected = completion_logprobs(model, batch).view(-1, 2).unbind(1)
        chosen_nll = -chosen / batch.lengths.view(-1, 2)[:, 0]
        return self.loss(chosen, rejected, chosen_nll, weight=batch.weights)

    def count(self, batch: Batch) -> float:
        return batch.total_weight
