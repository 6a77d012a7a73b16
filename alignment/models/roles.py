"""The frozen reference of a policy: a copy of it, or its own base with the adapter off."""

from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor

from alignment.data.pack import Batch
from alignment.models.adapters import adapter_off, lora_layers
from alignment.models.heads import LanguageModel
from alignment.models.load import freeze
from alignment.models.readout import token_logprobs


@dataclass(slots=True)
class FrozenCopy:
    """A copy of the policy as it was."""

    model: LanguageModel

    @torch.no_grad()
    def logprobs(self, batch: Batch, temperature: float) -> Tensor:
        """[T] nats."""
        return token_logprobs(self.model, batch, temperature=temperature)

    def to(self, device: torch.device) -> None:
        self.model.to(device)


@dataclass(slots=True)
class AdapterOff:
    """The policy itself without its adapter: no second set of weights."""

    policy: LanguageModel

    @torch.no_grad()
    def logprobs(self, batch: Batch, temperature: float) -> Tensor:
        """[T] nats."""
        with adapter_off(self.policy.hf):
            return token_logprobs(self.policy, batch, temperature=temperature)

    def to(self, device: torch.device) -> None:
        """Nothing to move: the policy's engine has moved it."""


Reference = FrozenCopy | AdapterOff


def reference_of(policy: LanguageModel) -> Reference:
    """The reference of a policy that has not been trained yet."""
    if lora_layers(policy.hf):
        return AdapterOff(policy)
    copy = deepcopy(policy)
    freeze(copy)
    return FrozenCopy(copy)
