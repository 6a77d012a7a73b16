"""What PPO's actor and critic minimise, of one micro-batch of experience."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from alignment.losses import KLEstimator, LossOutput, Mean, PolicyLoss, ValueLoss, kl_estimate
from alignment.models.readout import token_logprobs_and_entropy, token_values
from alignment.rl.experience import Experience


@dataclass(slots=True)
class Actor:
    """PPO's clipped policy loss, reduced as it says, at the temperature the replies were sampled at.

    With a `kl_weight` beta, plus beta * KL_t to the reference, `kl_estimator`'s, reduced in the same way. In
    expectation over pi, k2 has the gradient of KL(pi || pi_ref), k3 that of KL(pi_ref || pi), and k1 none, since
    E[grad log pi] = 0. With `kl_bias_correction` it is beta * (pi / pi_old) * KL_t, the ratio of the token: then k1 and
    k3 have the gradient of KL(pi || pi_ref), also for the replies of an older policy (DeepSeek-V3.2 2512.02556).
    """

    loss: PolicyLoss
    temperature: float
    kl_weight: float = 0.0
    kl_estimator: KLEstimator = KLEstimator.k2
    kl_bias_correction: bool = False

    def __call__(self, model: nn.Module, batch: Experience) -> LossOutput:
        logprobs, entropy = token_logprobs_and_entropy(model, batch.batch, temperature=self.temperature)
        laid_out, mask = self._layout(batch)
        output = self.loss(laid_out(logprobs), laid_out(batch.old_logprobs), laid_out(batch.advantages), mask)
        loss, metrics = output.loss, {**output.metrics, "entropy": Mean.of(batch.of_counted(entropy))}
        if self.kl_weight:
            kl = kl_estimate(logprobs, batch.ref_logprobs, self.kl_estimator)
            if self.kl_bias_correction:
                kl = kl * (logprobs - batch.old_logprobs).exp()
            added = self.loss.reduce(laid_out(kl), mask)
            loss = Mean(loss.total + self.kl_weight * added.total, loss.count)
            metrics = {**metrics, "kl/loss": Mean.of(batch.of_counted(kl))}
        return LossOutput(loss, metrics)

    def count(self, batch: Experience) -> int:
        return batch.num_replies if self.loss.by_sequence else batch.num_tokens

    def _layout(self, batch: Experience) -> tuple[Callable[[Tensor], Tensor], Tensor]:
        """How a value per token is laid out for the loss, [C, T] where it must know the replies, and what counts."""
        if not self.loss.by_sequence:
            return batch.of_counted, torch.ones(batch.num_tokens, dtype=torch.bool, device=batch.advantages.device)
        rows = slice(None) if batch.counted is None else batch.counted
        return lambda values: batch.batch.by_completion(values)[rows], batch.batch.completion_mask()[rows]


@dataclass(slots=True)
class Critic:
    """PPO's clipped value loss, mean over reply tokens."""

    loss: ValueLoss

    def __call__(self, model: nn.Module, batch: Experience) -> LossOutput:
        values = token_values(model, batch.batch)
        assert batch.values is not None and batch.returns is not None
        return self.loss(values, batch.values, batch.returns, torch.ones_like(values, dtype=torch.bool))

    def count(self, batch: Experience) -> int:
        return batch.num_tokens
