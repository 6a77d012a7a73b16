"""The three read-outs, and no more: token log-probs, sequence scores, token values.

`model` is a LanguageModel or a ScalarModel, or an engine's wrapping of it.
"""

import torch
from torch import Tensor, nn

from alignment.data.pack import Batch


def token_logprobs(model: nn.Module, batch: Batch, *, temperature: float = 1.0) -> Tensor:
    """[T] nats: log-prob of each completion token, given its prompt and what precedes it in its branch."""
    (logprobs,) = model(batch, batch.positions, batch.targets, temperature)
    return logprobs


def token_logprobs_and_hits(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """As `token_logprobs`, and 1 where the token is what greedy decoding would have chosen, else 0; [T] each."""
    return model(batch, batch.positions, batch.targets, greedy=True)


def completion_logprobs(model: nn.Module, batch: Batch) -> Tensor:
    """[C] nats: the summed log-prob of each completion."""
    return batch.sum_by_completion(token_logprobs(model, batch))


def prompt_and_completion_logprobs(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """[U] and [T] nats: the log-probs of the prompts' tokens but their first, and of the completions'; one pass."""
    positions = torch.cat([batch.prompt_positions, batch.positions])
    targets = torch.cat([batch.prompt_targets, batch.targets])
    (logprobs,) = model(batch, positions, targets)
    prompt, completion = logprobs.split([len(batch.prompt_targets), len(batch.targets)])
    return prompt, completion


def token_logprobs_and_entropy(model: nn.Module, batch: Batch, *, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """As `token_logprobs`, and the entropy (nats, no gradient) of what each token was drawn from; [T] each."""
    return model(batch, batch.positions, batch.targets, temperature, entropy=True)


def sequence_scores(model: nn.Module, batch: Batch) -> Tensor:
    """[E]: the scalar head where completions are scored, at each one's last real token or at the ends of its steps."""
    return model(batch, batch.ends)


def token_values(model: nn.Module, batch: Batch) -> Tensor:
    """[T]: the value of the state in which each completion token is chosen, the scalar head one token before it."""
    return model(batch, batch.positions)
