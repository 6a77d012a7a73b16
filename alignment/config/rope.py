"""Positions beyond those that a model was made for: how its rotary embeddings (RoPE) are scaled."""

import math
from dataclasses import dataclass, fields
from enum import Enum
from typing import Any

from alignment.config.base import Config
from alignment.config.errors import ConfigError, require


class RopeType(str, Enum):
    """As transformers names them."""

    linear = "linear"
    """Position interpolation (arXiv:2306.15595): every position divided by the factor."""
    yarn = "yarn"
    """YaRN (arXiv:2309.00071): slow rotations are divided, fast ones stay, and attention is sharpened."""
    llama3 = "llama3"
    """Llama 3.1's (arXiv:2407.21783): as YaRN without the sharpening, its bounds by wavelength."""
    dynamic = "dynamic"
    """Refused: rotations then depend on the longest text of a batch. Take yarn."""


OF_TYPE = {
    "attention_factor": RopeType.yarn,
    "beta_fast": RopeType.yarn,
    "beta_slow": RopeType.yarn,
    "low_freq_factor": RopeType.llama3,
    "high_freq_factor": RopeType.llama3,
}
BETA_FAST, BETA_SLOW = 32.0, 1.0  # the paper's
LOW, HIGH = 1.0, 4.0  # Llama 3.1's
DYNAMIC = (
    "model.rope.rope_type must be linear, yarn or llama3: with dynamic a text's rotations depend on the longest text "
    "that it is batched with, so that texts of one batch, a prompt's replies, and a reply as it was drawn and as it is "
    "learned would each be read by other ones; yarn reaches as far"
)


@dataclass(slots=True)
class RopeConfig(Config):
    """The names are those of transformers' `rope_parameters`, and so are the meanings."""

    rope_type: RopeType | None = None
    """Scale the model's rotary positions for longer texts, in this way; its config is saved with it. The policy, its
    reference and the critic are scaled alike; a reward model is read as its folder has it. Null: as the model is."""
    factor: float | None = None
    """How many times the positions that the model was trained on."""
    original_max_position_embeddings: int | None = None
    """The positions that the model was trained on. Null: as its config says."""
    attention_factor: float | None = None
    """yarn: by what queries and keys are multiplied. Null: 0.1 ln(factor) + 1."""
    beta_fast: float | None = None
    """yarn: what turns more often than this within the original positions stays as it is. Null: 32."""
    beta_slow: float | None = None
    """yarn: what turns less often than this within them is divided by the factor. Null: 1."""
    low_freq_factor: float | None = None
    """llama3: what turns less often than this within the original positions is divided by the factor. Null: 1."""
    high_freq_factor: float | None = None
    """llama3: what turns more often than this within them stays as it is. Null: 4."""
    replace: bool = False
    """Put it in the place of another scaling that the model's config has already."""

    def __post_init__(self) -> None:
        if self.rope_type is None:
            for each in fields(self):
                value = getattr(self, each.name)
                require(
                    value is None or value is False, f"model.rope.{each.name} goes with model.rope.rope_type", value
                )
            return
        if self.rope_type is RopeType.dynamic:
            raise ConfigError(f"{DYNAMIC}, got 'dynamic'")
        require(self.factor is not None, f"model.rope.rope_type={self.rope_type.value} needs model.rope.factor", None)
        for name, kind in OF_TYPE.items():
            value, rule = getattr(self, name), f"model.rope.{name} goes with model.rope.rope_type={kind.value}"
            require(value is None or self.rope_type is kind, rule, value)
            require(value is None or 0 < value < math.inf, f"model.rope.{name} must be > 0 and finite", value)
        require(1 < (self.factor or 0) < math.inf, "model.rope.factor must be > 1 and finite", self.factor)
        first = self.original_max_position_embeddings
        require(first is None or first > 0, "model.rope.original_max_position_embeddings must be > 0", first)
        betas = (self.beta_fast or BETA_FAST, self.beta_slow or BETA_SLOW)
        require(betas[0] > betas[1], "model.rope.beta_fast must be > beta_slow", betas)
        bounds = (self.low_freq_factor or LOW, self.high_freq_factor or HIGH)
        require(bounds[0] < bounds[1], "model.rope.low_freq_factor must be < high_freq_factor", bounds)

    def parameters(self, original: int) -> dict[str, Any]:
        """What transformers' `rope_parameters` say of it, for a model that was trained on `original` positions."""
        assert self.rope_type is not None and self.factor is not None
        found: dict[str, Any] = {"rope_type": self.rope_type.value, "factor": float(self.factor)}
        if self.rope_type is RopeType.linear:
            return found
        found["original_max_position_embeddings"] = original
        if self.rope_type is RopeType.llama3:
            bounds = {"low_freq_factor": self.low_freq_factor or LOW, "high_freq_factor": self.high_freq_factor or HIGH}
            return found | bounds
        own = {"attention_factor": self.attention_factor, "beta_fast": self.beta_fast, "beta_slow": self.beta_slow}
        return found | {name: float(value) for name, value in own.items() if value is not None}
