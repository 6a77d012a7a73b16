"""RoPE scaling put into a model's config, from which transformers builds the model, and with which it is saved."""

import sys
from typing import Any

from transformers import AutoModelForCausalLM, PreTrainedConfig

from alignment.config.errors import ConfigError, require
from alignment.config.rope import RopeConfig, RopeType
from alignment.models.files import Reading
from alignment.models.positions import max_positions
from alignment.terminal import say_once

UNSCALED = ("default", "proportional", "axial")
OF_ALL = ("rope_theta", "partial_rotary_factor", "mrope_section")
"""What is of the rotations themselves, whatever they are scaled by."""
ORIGINAL, LIMIT = "original_max_position_embeddings", "max_position_embeddings"
GLOBAL = "full_attention"
"""Where layers of a sliding window turn by parameters of their own, which reach no further than the window."""


def scale_rope(config: PreTrainedConfig, rope: RopeConfig, where: str) -> PreTrainedConfig:
    """The config, changed in place so that the model reads `factor` times the positions that it was trained on.

    A config that has this scaling already, as a run leaves it, stays as it is: it is not scaled twice.

    Args:
        where: whose config it is, for what is said of it.

    Raises:
        ConfigError: the model has no rotary positions that can be scaled, has another scaling already, or does not say
            what it was trained on.
    """
    if rope.rope_type is None:
        return config
    text = config.get_text_config()
    own, asked = rotations(config), f"{rope.rope_type.value} (factor {rope.factor:g})"
    if own is None or not _is_scalable(text):
        rule = "model.rope.rope_type must be null for a model without rotary positions that transformers scales"
        raise ConfigError(f"{rule}, {where} ({text.model_type}), got {rope.rope_type.value!r}")
    known, is_scaled = rope.original_max_position_embeddings or own.get(ORIGINAL), own["rope_type"] not in UNSCALED
    if is_scaled and _scaling(own) == rope.parameters(known or 0):
        say_once(f"model.rope: {where} has this scaling already, and is not scaled again")
        return config
    if is_scaled:
        has = f"{own['rope_type']} (factor {own['factor']:g})" if own.get("factor") else own["rope_type"]
        rule = f"model.rope.replace must be true to put {asked} in the place of the RoPE scaling of {where}, {has}"
        require(rope.replace, f"{rule}; without model.rope it keeps its own", rope.replace)
    before = max_positions(config).limit
    original = known or (None if is_scaled else before)
    if original is None:
        rule = f"model.rope.{ORIGINAL} must say how many positions {where} was trained on, which its config does not"
        raise ConfigError(f"{rule}, got null")
    reach = round(original * (rope.factor or 1))
    rule = f"model.rope.factor must reach at least the {before} positions that {where} has, from {original} on"
    require(is_scaled or reach >= (before or 0), rule, rope.factor)
    if rope.rope_type is RopeType.llama3:  # whose factor may be less than what it reaches, as in Llama 3.1
        reach = max(reach, before or 0)
    _write(text, {name: own[name] for name in OF_ALL if name in own} | rope.parameters(original), original, reach)
    kind = type(text).__name__
    with Reading(f"model.rope.rope_type must be one that transformers' {kind} takes, got {rope.rope_type.value!r}"):
        text.validate()  # Phi 3 knows its own scaling and no other
    in_vain = rope.replace and not is_scaled
    instead = "; model.rope.replace has nothing to replace there" if in_vain else ""
    say_once(f"model.rope: {where} is made for {reach} positions, by {asked} from {original} on{instead}")
    return config


def scaled_as(config: PreTrainedConfig, other: PreTrainedConfig) -> bool:
    """Change the config in place to the RoPE scaling of another one of the same kind; whether it had to be changed."""
    own, theirs = rotations(config), rotations(other)
    is_same = type(config) is type(other) and own is not None
    if not is_same or theirs is None or theirs["rope_type"] in UNSCALED or own == theirs:
        return False
    text, model = config.get_text_config(), other.get_text_config()
    for name in (ORIGINAL, LIMIT, "head_dim"):
        if name in vars(text) and name in vars(model):
            setattr(text, name, vars(model)[name])
    text.rope_parameters = model.rope_parameters
    return True


def rotations(config: PreTrainedConfig) -> dict[str, Any] | None:
    """What its config says of the rotary positions of the layers that see the whole text; None: it has none."""
    found = config.get_text_config().to_dict().get("rope_parameters") or {}
    found = found.get(GLOBAL, found)
    return found if isinstance(found, dict) and "rope_type" in found else None


def overrides(config: PreTrainedConfig, folder: PreTrainedConfig) -> dict[str, Any]:
    """What vLLM's `--hf-overrides` must say for it to turn positions as `config` has it; nothing where the config in
    the `folder` that it reads does."""
    if rotations(folder) == rotations(config):
        return {}
    text = config.get_text_config()
    found = {"rope_parameters": text.rope_parameters, LIMIT: max_positions(config).limit}
    return found if text is config else {"text_config": found}


def _is_scalable(text: PreTrainedConfig) -> bool:
    """Whether the architecture's own code computes rotations by their type; what comes with a folder may."""
    known = AutoModelForCausalLM._model_mapping
    return type(text) not in known or "ROPE_INIT_FUNCTIONS" in vars(sys.modules[known[type(text)].__module__])


def _scaling(own: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in own.items() if name not in OF_ALL and value is not None}


def _write(text: PreTrainedConfig, parameters: dict[str, Any], original: int, reach: int) -> None:
    if ORIGINAL in vars(text):  # Phi 3's, which goes before the parameters' own
        setattr(text, ORIGINAL, original)
    setattr(text, LIMIT, reach)
    if text.to_dict().get("head_dim", 0) is None:  # Mixtral's, where YaRN's arithmetic would take it for a number
        text.head_dim = text.hidden_size // text.num_attention_heads
    is_nested = GLOBAL in text.rope_parameters
    text.rope_parameters = {**text.rope_parameters, GLOBAL: parameters} if is_nested else parameters
