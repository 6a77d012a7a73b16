"""The frozen reference: a copy of the policy as it was, or the policy's own base, with its adapter off or as it was."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from alignment.config.distributed import DistributedConfig
from alignment.config.online import OnlineDPOConfig
from alignment.data.loaded import Loaded
from alignment.data.pack import Batch
from alignment.distributed.frozen import shard_frozen
from alignment.models.adapters import FIRST, lora_layers
from alignment.models.heads import LanguageModel
from alignment.models.layout import settle_layout
from alignment.models.load import freeze
from alignment.models.readout import token_logprobs
from alignment.models.weight_dtype import as_its_original
from alignment.models.whole_modules import Originals, whole_modules
from alignment.training.another_reference import load_reference, require_reference_reads


@dataclass(slots=True)
class FrozenCopy:
    """A copy of the policy as it was."""

    model: nn.Module  # a LanguageModel, or what shares its weights out

    @torch.no_grad()
    def logprobs(self, batch: Batch, temperature: float) -> Tensor:
        """[T] nats."""
        if isinstance(self.model, LanguageModel):
            self.model.to(batch.input_ids.device)  # from the CPU, where it was made and may have been offloaded to
        return token_logprobs(self.model, batch, temperature=temperature)


@dataclass(slots=True)
class AdapterOff:
    """The policy itself without its adapter or soft prompt: no second set of weights, but of modules that train whole
    beside it."""

    policy: LanguageModel

    @torch.no_grad()
    def logprobs(self, batch: Batch, temperature: float) -> Tensor:
        """[T] nats."""
        with self.policy.as_it_was(None):
            return token_logprobs(self.policy, batch, temperature=temperature)


@dataclass(slots=True)
class FrozenAdapter:
    """The policy itself with its adapter or soft prompt as it was, of which there is a frozen copy in its place."""

    policy: LanguageModel

    @torch.no_grad()
    def logprobs(self, batch: Batch, temperature: float) -> Tensor:
        """[T] nats."""
        with self.policy.as_it_was(FIRST):
            return token_logprobs(self.policy, batch, temperature=temperature)


Reference = FrozenCopy | AdapterOff | FrozenAdapter


def build_reference(policy: LanguageModel) -> Reference:
    """The reference of a policy that has not been trained yet: apart where the weights beneath its adapter change."""
    layers = lora_layers(policy.hf)
    if layers and policy.keeps_base and whole_modules(policy.hf):
        policy.originals = Originals(policy.hf, policy.placement)
    if policy.begins_adapted and (prompt := policy.soft_prompt()) is not None:
        prompt.keep()
        return FrozenAdapter(policy)
    if policy.begins_adapted and policy.keeps_base:
        from alignment.models.saved_adapter import add_copy, has_copy  # not above, for it imports peft

        if not has_copy(policy.hf):
            add_copy(policy.hf, policy.placement)
        return FrozenAdapter(policy)
    if (layers or policy.has_soft_prompt) and policy.keeps_base:
        return AdapterOff(policy)
    copy = policy.placement.copy_of(policy, as_its_original(policy.placement.compute))
    if not policy.begins_adapted:
        for layer in lora_layers(copy.hf):  # of a new adapter, which adds nothing
            layer.enable_adapters(False)
    freeze(copy)
    return FrozenCopy(copy)


def another_reference(
    config: OnlineDPOConfig, tokenizer: PreTrainedTokenizerBase, splits: Sequence[Loaded | None]
) -> tuple[FrozenCopy | None, OnlineDPOConfig]:
    """That of `reference.path`, with the config in a layout that it reads; None where the policy is its own.

    Raises:
        ConfigError: it is no language model, or one of another vocabulary or fewer positions than the policy's.
    """
    path, new_tokens = config.reference.path, config.generation.max_new_tokens
    if path is None:
        return None, config
    require_reference_reads(path, config, tokenizer, splits, new_tokens)
    model = load_reference(path, config.model, tokenizer, config.distributed)
    batch = replace(config.batch, layout=settle_layout(model, config.batch.layout))
    return FrozenCopy(model), replace(config, batch=batch)


def shard_reference(reference: Reference, distributed: DistributedConfig) -> None:
    """Under ZeRO 3, where the reference is a model of its own: layer by layer, as the models that score."""
    if isinstance(reference, FrozenCopy):
        reference.model = shard_frozen(reference.model, distributed)
