"""A model of a config alone: random weights, for tests and small recipes."""

from dataclasses import replace
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from alignment.config.errors import ConfigError, require
from alignment.config.folders import find_model
from alignment.config.model import Attention, ModelConfig
from alignment.config.rope import RopeConfig
from alignment.models.attention import choose_attention
from alignment.models.files import one_line
from alignment.models.folder import architecture_of, attention_of, parse_config, read_config
from alignment.models.rope import scale_rope
from alignment.models.weight_dtype import hold_in

SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "max_position_embeddings", "head_dim")
HEADS, SHARED_HEADS = "num_attention_heads", "num_key_value_heads"
COUNTED = (*SIZES, HEADS, SHARED_HEADS)
"""Fields of a config that count something, by the names that transformers' models have for them."""


def init_config(config: ModelConfig, ids: dict[str, Any] | None = None, **settings: Any) -> PreTrainedConfig:
    """The config that `model.init` asks for; it goes before `ids`, and `settings` before it.

    Raises:
        ConfigError: no architecture of that name, or one without such a field, or with a value that it refuses.
    """
    kind = config.init["model_type"]
    require(kind in CONFIG_MAPPING, "model.init.model_type must be one that transformers knows", kind)
    for name in COUNTED:
        if isinstance(size := config.init.get(name), int):
            require(size > 0, f"model.init.{name} must be positive", size)
    try:
        hf_config = AutoConfig.for_model(**{**(ids or {}), **config.init, **settings})
    except (ValueError, StrictDataclassError) as error:
        raise ConfigError(f"model.init: {one_line(error)}, got {config.init}") from error
    except KeyError as error:
        raise _lacking(error, config.init) from error
    unknown = sorted(set(config.init) - set(type(hf_config)().to_dict()) - {"model_type"})
    if unknown:
        raise ConfigError(
            f"model.init.{unknown[0]} is not a field of {type(hf_config).__name__}, got {config.init[unknown[0]]!r}"
        )
    _require_even_heads(hf_config.to_dict())
    return scale_rope(hf_config, config.rope, "model.init")


def _lacking(error: KeyError, asked: dict[str, Any]) -> ConfigError:
    """Of rope_parameters, where transformers says in words what is missing, and of a kind that it has not its name."""
    what = str(error.args[0])
    return ConfigError(f"model.init: {what if ' ' in what else f'transformers knows no {what!r}'}, got {asked}")


def _require_even_heads(sizes: dict[str, Any]) -> None:
    """Which transformers asks for at the first step.

    Raises:
        ConfigError: as many heads do not share each of keys and values.
    """
    heads, shared = sizes.get(HEADS), sizes.get(SHARED_HEADS)
    if isinstance(heads, int) and isinstance(shared, int) and shared:
        rule = f"model.init.{SHARED_HEADS} must divide {HEADS}, which is {heads}"
        require(heads % shared == 0, rule, shared)


def config_of(config: ModelConfig) -> PreTrainedConfig:
    """The config of the model that a run will load, before any weight is."""
    if config.path is None:
        return init_config(config)
    hf_config = read_config(find_model(config.path, "model.path", trusted=config.trust_remote_code))
    return scale_rope(hf_config, config.rope, f"model.path {config.path!r}")


def unscaled_config(config: ModelConfig) -> PreTrainedConfig:
    """The same without `model.rope`, and without the scaling that stands beside an adapter: what who reads the base's
    folder finds there."""
    if config.path is None:
        return init_config(replace(config, rope=RopeConfig()))
    folder = find_model(config.path, "model.path", trusted=config.trust_remote_code)
    return parse_config(folder.path, folder.key, trusted=folder.trusted)


def from_init(
    auto: Any, config: ModelConfig, tokenizer: PreTrainedTokenizerBase, held: torch.dtype, **settings: Any
) -> PreTrainedModel:
    ids = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    kind = config.init["model_type"]
    hf_config = init_config(config, ids, **settings)
    where = f"model.init ({kind})"
    attention = attention_of(architecture_of(auto, hf_config, where), hf_config, config.attention, where)
    try:
        hf = auto.from_config(hf_config, attn_implementation=attention, dtype=torch.float32)
    except (ValueError, TypeError) as error:  # of a number that has no default, too
        raise ConfigError(f"model.init with model.attention={attention}: {one_line(error)}") from error
    except KeyError as error:
        raise _lacking(error, config.init) from error
    hold_in(hf, held)
    if config.attention is Attention.auto:
        choose_attention(hf)
    return hf
