"""How many positions a model knows, by its config alone: asked before any weights are loaded."""

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedConfig

NAMES = ("max_position_embeddings", "max_seq_len")
"""What configs call the number, the commonest first."""

WITHOUT_TABLE = {"inkling2_text", "inkling_text", "jamba", "kimi_linear", "nemotron_h", "rwkv", "xglm", "zamba"}
"""Architectures without RoPE that no table of positions ends either: recurrent ones, and sinusoids that are computed
as far as they are needed."""


@dataclass(frozen=True, slots=True)
class Positions:
    """The longest text of a model: prompt and completion together, in tokens."""

    limit: int | None
    """None: the config names none."""
    hard: bool
    """Whether a token beyond the limit is an error: its position is looked up in a table (GPT-2, OPT). Otherwise (RoPE)
    it is computed, as a position that the model has never seen."""
    switch: int | None = None
    """The length of a batch from which RoPE (longrope, dynamic) changes its frequencies, for all texts of that batch,
    so that a shorter text's outputs depend on what it is batched with. None: it never does."""


def max_positions(config: PreTrainedConfig) -> Positions:
    """The positions of a model with this config."""
    text = config.get_text_config()
    settings = text.to_dict()
    limits = (settings.get(text.attribute_map.get(name, name)) for name in NAMES)
    limit = next((value for value in limits if isinstance(value, int)), None)
    is_computed = "rope_parameters" in settings or text.model_type in WITHOUT_TABLE
    return Positions(limit, limit is not None and not is_computed, _switch(settings, limit))


def _switch(settings: dict[str, Any], limit: int | None) -> int | None:
    rope = settings.get("rope_parameters") or {}
    if rope.get("rope_type") not in ("longrope", "dynamic"):
        return None
    first = rope.get("original_max_position_embeddings", settings.get("original_max_position_embeddings"))
    return first if isinstance(first, int) else limit
