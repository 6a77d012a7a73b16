"""Tokenizers and models: from a folder in Hugging Face form or from a config, and back into a folder."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from alignment.config.parts import ConfigError, LoraConfig, ModelConfig
from alignment.models.adapters import add_adapter, lora_layers, merged_state
from alignment.models.heads import LanguageModel, ScalarModel, scalar_head
from alignment.world import tokenizer_path

transformers_logging.disable_progress_bar()  # weights of a file at a time are not progress that anybody follows
transformers_logging.set_verbosity_error()  # what a folder lacks is asked for, and told, in _from_folder

PAD_NAMES = ("<pad>", "<|pad|>", "<|finetune_right_pad_id|>", "<unk>")  # what models without a pad token offer for it


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    """The tokenizer of `model.tokenizer`, else of `model.path`, else the small one in the package.

    Padding is never told from text by its id, so any piece serves; one is chosen where the tokenizer names none.

    Raises:
        ConfigError: the folder holds no tokenizer, or the tokenizer has no end-of-sequence token to learn.
    """
    folder = config.tokenizer or config.path or str(tokenizer_path())
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ConfigError(f"model.tokenizer: no tokenizer in {folder!r}: {_first_line(error)}") from error
    if tokenizer.eos_token_id is None:
        raise ConfigError(f"model.tokenizer must have an end-of-sequence token to learn, got {folder!r}")
    if tokenizer.pad_token_id is None:
        vocabulary = tokenizer.get_vocab()
        tokenizer.pad_token = next((name for name in PAD_NAMES if name in vocabulary), tokenizer.eos_token)
    return tokenizer


def load_language_model(config: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> LanguageModel:
    """A causal LM from `model.path`, or a random one of `model.init`; with an adapter where one is asked for."""
    hf = (
        _from_folder(AutoModelForCausalLM, config)
        if config.path
        else _from_init(AutoModelForCausalLM, config, tokenizer)
    )
    _check_vocabulary(hf, tokenizer)
    return LanguageModel(_prepared(hf, config))


def load_scalar_model(config: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> ScalarModel:
    """A model with a scalar head: for a causal LM's folder a new one, std 1 / sqrt(H + 1) (arXiv:2403.17031)."""
    auto, one = AutoModelForSequenceClassification, {"num_labels": 1, "pad_token_id": tokenizer.pad_token_id}
    hf = _from_folder(auto, config, **one) if config.path else _from_init(auto, config, tokenizer, **one)
    head = scalar_head(hf)
    if not _is_scalar_folder(config.path):
        nn.init.normal_(head.weight, std=1 / (head.in_features + 1) ** 0.5)
    _check_vocabulary(hf, tokenizer)
    return ScalarModel(_prepared(hf, config))


def load_critic(
    path: str | None, config: ModelConfig, policy: LanguageModel, tokenizer: PreTrainedTokenizerBase
) -> ScalarModel:
    """The critic: from the folder of a reward model, else the policy's own body with a new scalar head."""
    if path is not None or config.path is not None:
        return load_scalar_model(replace(config, path=path or config.path), tokenizer)
    critic = load_scalar_model(replace(config, lora=LoraConfig()), tokenizer)
    critic.hf.base_model.load_state_dict(policy.hf.base_model.state_dict())
    return critic


def save_model(model: LanguageModel | ScalarModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Hugging Face form: config, safetensors, tokenizer and chat template. An adapter is merged into the weights."""
    model.hf.save_pretrained(folder, state_dict=merged_state(model.hf) if lora_layers(model.hf) else None)
    tokenizer.save_pretrained(folder)


def freeze(model: nn.Module) -> None:
    model.requires_grad_(False)
    model.eval()


def _from_folder(auto: Any, config: ModelConfig, **settings: Any) -> PreTrainedModel:
    try:
        hf, found = auto.from_pretrained(
            config.path,
            dtype=torch.float32,
            attn_implementation=config.attention.value,
            output_loading_info=True,
            **settings,
        )
    except (OSError, ValueError) as error:
        raise ConfigError(f"model.path: no model in {config.path!r}: {_first_line(error)}") from error
    lacking = sorted({*found["missing_keys"], *(str(key[0]) for key in found["mismatched_keys"])} - {"score.weight"})
    if lacking:
        raise ConfigError(
            f"model.path must hold all weights of {type(hf).__name__}, got no {lacking[0]} in {config.path!r}"
        )
    return hf


def _from_init(auto: Any, config: ModelConfig, tokenizer: PreTrainedTokenizerBase, **settings: Any) -> PreTrainedModel:
    ids = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    fields = {**ids, **config.init, **settings}
    try:
        hf_config = AutoConfig.for_model(**fields)
    except ValueError as error:
        raise ConfigError(f"model.init.model_type: {_first_line(error)}, got {config.init['model_type']!r}") from error
    unknown = sorted(set(config.init) - set(type(hf_config)().to_dict()) - {"model_type"})
    if unknown:
        raise ConfigError(f"model.init.{unknown[0]} is not a field of {type(hf_config).__name__}, got {config.init}")
    return auto.from_config(hf_config, attn_implementation=config.attention.value, dtype=torch.float32)


def _prepared(hf: PreTrainedModel, config: ModelConfig) -> PreTrainedModel:
    """Dropout off (a policy whose log-probs change between two forwards has no ratio), checkpointing, adapter."""
    for module in hf.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    if config.gradient_checkpointing:
        hf.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if config.lora.rank:
        add_adapter(hf, config.lora)
    return hf


def _check_vocabulary(hf: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    size = hf.config.get_text_config().vocab_size
    if len(tokenizer) > size:
        raise ConfigError(f"model.tokenizer has {len(tokenizer)} pieces and the model embeds only {size}")


def _is_scalar_folder(path: str | None) -> bool:
    if path is None:
        return False
    architectures = AutoConfig.from_pretrained(path).architectures or []
    return any(name.endswith("ForSequenceClassification") for name in architectures)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
