"""The models of PPO's four roles, and on which weights they are: one each, or, with `roles.share=lora`, one backbone
whose base is the reference, while actor, critic and reward are adapters on it, the last two with heads of their own."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from alignment.config.adapter import adapter_of
from alignment.config.backbone import HEAD
from alignment.config.batch import Layout
from alignment.config.errors import ConfigError, error_prefix, require
from alignment.config.hub import located
from alignment.config.model import ModelConfig
from alignment.config.online import PPOConfig
from alignment.config.ppo import CriticConfig, Share
from alignment.distributed.engine import Engine
from alignment.distributed.placement import Whole
from alignment.distributed.sharded import placement_of
from alignment.distributed.turns import take_turns
from alignment.generation.dialogue import Reader
from alignment.generation.score import RewardModelScorer
from alignment.models.adapters import DEFAULT
from alignment.models.heads import LanguageModel, ScalarModel
from alignment.models.layout import settle_layout
from alignment.models.load import freeze, load_critic, load_language_model
from alignment.models.scalar_head import draw_head, scalar_head
from alignment.models.tokenizer import knows_tokens_of, load_tokenizer, prepare_tokenizer
from alignment.models.twin import twin_of
from alignment.rl.reference import FrozenCopy, Reference, build_reference
from alignment.rl.rewards import Reward, WeightedScorer, reward_of
from alignment.terminal import say


@dataclass(slots=True)
class PPOModels:
    """The models of the four roles; `policy` and `critic` are what the engines of actor and critic train."""

    policy: LanguageModel
    critic: ScalarModel | None  # none where the advantages have no need of a critic
    reference: Reference
    reward: Reward

    def layout(self, asked: Layout) -> Layout:
        """The layout that both actor and critic can read: one batch serves both."""
        layouts = [settle_layout(model, asked) for model in self.trained()]
        return Layout.separate if Layout.separate in layouts else Layout.shared

    def trained(self) -> list[LanguageModel | ScalarModel]:
        """The actor, and the critic where there is one."""
        return [self.policy] if self.critic is None else [self.policy, self.critic]

    def modules(self) -> list[nn.Module]:
        """All of them, some of which may share their weights."""
        return [*self.trained(), *self._copies(), *(scorer.model for scorer in self.reward.models())]

    def offload(self) -> None:
        """Move the reference to the CPU; when it is asked again it moves itself back."""
        for model in self._copies():
            model.to("cpu")

    def _copies(self) -> list[nn.Module]:
        return [self.reference.model] if isinstance(self.reference, FrozenCopy) else []


@dataclass(slots=True)
class PPORoles:
    """Actor and critic as they are trained, and the reference."""

    actor: Engine
    critic: Engine | None  # none where the advantages have no need of a critic
    reference: Reference


def build_models(config: PPOConfig, tokenizer: PreTrainedTokenizerBase) -> PPOModels:
    """The critic begins as the reward model, where there is one (Ouyang et al. 2203.02155, app. C.4)."""
    if config.roles.share is Share.lora:
        return _on_one_backbone(config, tokenizer)
    reward = reward_of(config)
    policy = load_language_model(config.model, tokenizer, placement_of(config.distributed))
    critic = None
    if config.advantage.has_critic:
        trusted = config.model.trust_remote_code
        start, key = critic_start(config.critic, reward, tokenizer, trusted=trusted)
        critic = _critic(start, config.model, policy, tokenizer, key)
    return PPOModels(policy, critic, build_reference(policy), reward)


def _critic(
    start: str | None, model: ModelConfig, policy: LanguageModel, tokenizer: PreTrainedTokenizerBase, key: str
) -> ScalarModel:
    """`load_critic`, whose user may not know that it is a critic which begins as the reward model."""
    try:
        return load_critic(start, model, policy, tokenizer, key=key)
    except ConfigError as error:
        if start is None or key == "critic.path":
            raise
        line = f"{error} (to score it may be so; the critic, which trains, begins as it, or as what critic.path names)"
        raise ConfigError(line) from error


def critic_start(
    config: CriticConfig, reward: Reward, tokenizer: PreTrainedTokenizerBase, *, trusted: bool = False
) -> tuple[str | None, str]:
    """The folder that the critic begins as, and its key; None: the policy's own body, with a new head. The critic reads
    the policy's tokens, so that it begins as a model that knows them: one of another vocabulary only judges.

    Raises:
        ConfigError: the folder that the config names has another vocabulary.
    """
    if config.path is not None:
        with error_prefix("critic.path"):
            theirs = load_tokenizer(ModelConfig(path=config.path, trust_remote_code=trusted))
        rule = "critic.path must have the vocabulary of the policy, whose tokens the critic reads"
        require(knows_tokens_of(theirs, tokenizer), f"{rule}, or be null", config.path)
        return config.path, "critic.path"
    first = next(iter(reward.models()), None)
    if first is None:
        return None, "critic.path"
    if knows_tokens_of(first.reader.tokenizer, tokenizer):
        return first.path, first.reader.key
    say(f"critic: begins as the policy's body with a new head, for {first.path} has another vocabulary than the policy")
    return None, "critic.path"


def _on_one_backbone(config: PPOConfig, tokenizer: PreTrainedTokenizerBase) -> PPOModels:
    policy = load_language_model(config.model, tokenizer, placement_of(config.distributed))
    pad_id, path = tokenizer.pad_token_id, config.reward.path
    if path is None:
        reward = reward_of(config)
    else:
        with error_prefix("reward.path"):
            theirs = prepare_tokenizer(ModelConfig(path=path, trust_remote_code=config.model.trust_remote_code))
        model = scalar_on(policy, "reward", pad_id, _adapter_in(path))
        freeze(scalar_head(model.hf))
        batch = replace(config.batch, layout=settle_layout(model, config.batch.layout))
        reader = Reader(theirs, model.most_tokens(), "reward.path")
        scorer = RewardModelScorer(model, reader, batch, config.distributed, path)
        reward = Reward({"reward": WeightedScorer(scorer, 1.0, None)}, config.reward)
    critic = None
    if config.advantage.has_critic:
        start = config.critic.path or path
        critic = scalar_on(policy, "critic", pad_id, None if start is None else _adapter_in(start))
    return PPOModels(policy, critic, build_reference(policy), reward)


def _adapter_in(path: str) -> Path:
    """A model's folder, as a run with LoRA leaves it, stands for the adapter beside it."""
    return Path(adapter_of(str(located(path))))


def scalar_on(policy: LanguageModel, name: str, pad_id: int, folder: Path | None) -> ScalarModel:
    """A scalar role on the policy's backbone: an adapter and a head, from an adapter's folder, or both new without.

    Raises:
        ConfigError: the folder's adapter is of another base or on other layers.
    """
    from alignment.models import lora  # not above, for it imports peft

    hf = _with_body_of(policy.hf, pad_id)
    adapted = policy.hf
    if has_own := not isinstance(policy.placement, Whole):  # modules, for the hooks of an engine of its own
        setattr(hf, hf.base_model_prefix, twin_of(hf.base_model))
        hf.peft_config, adapted = dict(vars(policy.hf)["peft_config"]), hf
    if folder is None:
        lora.add_another(adapted, name, lora.shape_of_adapter(policy.hf))
        draw_head(hf, policy.placement)
    else:
        saved, base = lora.read_adapter(folder), policy.hf.name_or_path or ""
        is_same = bool(base) and located(saved.base or "").resolve() == located(base).resolve()
        require(is_same, f"roles.share=lora needs adapters of model.path ({base})", f"{folder}, of {saved.base}")
        lora.add_another(adapted, name, saved.shape)
        lora.write_adapter(adapted, name, saved.weights)
        head = saved.weights.get(f"{HEAD}.weight")
        if head is None:
            raise ConfigError(
                f"roles.share=lora needs the adapter of a reward model, with its head, got {str(folder)!r}"
            )
        hf.score.weight.data.copy_(head)
    if has_own:
        lora.leave_alone(hf, name)
        scalar_head(hf).requires_grad_(True)  # which peft has frozen with all but its layers
        policy.placement.shard(hf)
    role = ScalarModel(hf, policy.placement)
    role.adapter, policy.adapter = name, DEFAULT
    return role


def take_turns_on_one_backbone(roles: PPORoles, models: PPOModels) -> None:
    """Of engines that ZeRO 3 has on it, one lets go of the weights before another one's pass begins."""
    engines = [roles.actor] if roles.critic is None else [roles.actor, roles.critic]
    take_turns(engines, [scorer.model for scorer in models.reward.models()])


def _with_body_of(policy: PreTrainedModel, pad_id: int) -> Any:
    """A model for sequence classification with a head of its own and the policy's body."""
    config = type(policy.config)(**{**policy.config.to_dict(), "num_labels": 1, "pad_token_id": pad_id})
    with torch.device("meta"):
        hf = AutoModelForSequenceClassification.from_config(config)
    setattr(hf, hf.base_model_prefix, policy.base_model)
    hf.config = policy.config
    hf.score = nn.Linear(scalar_head(hf).in_features, 1, bias=False).to(policy.device)
    return hf
