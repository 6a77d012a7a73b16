"""Which weights a role reads: the frozen reference of a policy, and roles that share one backbone.

The reference is a copy of the policy, or the policy's own base with its adapter off. With `roles.share=lora` critic and
reward are adapters on that same base, each with a head of its own: one set of weights for four roles.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from alignment.config.distributed import DistributedConfig
from alignment.config.errors import require
from alignment.data.pack import Batch
from alignment.distributed.frozen import shard_frozen
from alignment.models.adapters import DEFAULT, adapter_off, lora_layers
from alignment.models.heads import LanguageModel, ScalarModel
from alignment.models.held import as_its_original
from alignment.models.load import freeze
from alignment.models.readout import token_logprobs
from alignment.models.scalar_head import scalar_head


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
    """The policy itself without its adapter: no second set of weights."""

    policy: LanguageModel

    @torch.no_grad()
    def logprobs(self, batch: Batch, temperature: float) -> Tensor:
        """[T] nats."""
        with adapter_off(self.policy.hf):
            return token_logprobs(self.policy, batch, temperature=temperature)


Reference = FrozenCopy | AdapterOff


def build_reference(policy: LanguageModel) -> Reference:
    """The reference of a policy that has not been trained yet."""
    if lora_layers(policy.hf):
        return AdapterOff(policy)
    copy = policy.placement.copy_of(policy, as_its_original(policy.placement.compute))
    freeze(copy)
    return FrozenCopy(copy)


def shard_reference(reference: Reference, distributed: DistributedConfig) -> None:
    """Under ZeRO 3, where the reference is a model of its own: layer by layer, as the models that score."""
    if isinstance(reference, FrozenCopy):
        reference.model = shard_frozen(reference.model, distributed)


def scalar_on(policy: LanguageModel, name: str, pad_id: int, folder: Path | None) -> ScalarModel:
    """A scalar role on the policy's backbone: an adapter and a head, from an adapter's folder, or both new without.

    Raises:
        ConfigError: the folder's adapter is of another base or on other layers.
    """
    from alignment.models.lora import add_another, read_adapter, write_adapter  # not above: see there

    hf = _with_body_of(policy.hf, pad_id)
    if folder is None:
        own = lora_layers(policy.hf)[0]
        add_another(policy.hf, name, own.r[DEFAULT], own.lora_alpha[DEFAULT])
        nn.init.normal_(hf.score.weight, std=1 / (hf.score.in_features + 1) ** 0.5)  # as in load_scalar_model
    else:
        saved, base = read_adapter(folder), policy.hf.name_or_path or ""
        is_same = bool(base) and Path(saved.base or "").resolve() == Path(base).resolve()
        require(is_same, f"roles.share=lora needs adapters of model.path ({base})", f"{folder}, of {saved.base}")
        add_another(policy.hf, name, saved.rank, saved.alpha)
        write_adapter(policy.hf, name, saved.weights)
        hf.score.weight.data.copy_(saved.weights["score.weight"])
    role = ScalarModel(hf, policy.placement)
    role.adapter, policy.adapter = name, DEFAULT
    return role


def _with_body_of(policy: PreTrainedModel, pad_id: int) -> Any:
    """A model for sequence classification with a head of its own and the policy's body."""
    config = type(policy.config)(**{**policy.config.to_dict(), "num_labels": 1, "pad_token_id": pad_id})
    with torch.device("meta"):
        hf = AutoModelForSequenceClassification.from_config(config)
    setattr(hf, hf.base_model_prefix, policy.base_model)
    hf.config = policy.config
    hf.score = nn.Linear(scalar_head(hf).in_features, 1, bias=False)
    return hf
