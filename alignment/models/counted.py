"""A model before it is there: what it is of a run, the rows it reads, and what was counted of it."""

from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedConfig

from alignment.config.model import ModelConfig
from alignment.config.train import TrainConfig


@dataclass(frozen=True, slots=True)
class Rows:
    """The longest rows that a run's limits admit: a prompt and `count` completions, which go into one pass together."""

    prompt: int
    completion: int
    count: int = 1

    @property
    def longest(self) -> int:
        """Tokens of the prompt with one completion."""
        return self.prompt + self.completion

    @property
    def together(self) -> int:
        """Tokens of the prompt with all its completions."""
        return self.prompt + self.count * self.completion


@dataclass(frozen=True, slots=True)
class Role:
    """A model of a run, before it is loaded."""

    key: str
    """By which its user knows it."""
    settings: ModelConfig
    is_scalar: bool = False
    """Whether its head is one number."""
    is_trained: bool = False
    train: TrainConfig | None = None
    """Whose optimizer trains it. None: AdamW."""
    copies: int = 0
    """Further float32 copies of the weights that train, such as their moving average."""


@dataclass(frozen=True, slots=True)
class Counted:
    """A model, as it is before any process has it."""

    trained: float
    """Bytes of its weights that train."""
    frozen: float
    """And of the others."""
    num_trained: int
    num_frozen: int
    states: float
    """Bytes of what the optimizer keeps of those that train."""
    layer: float
    """Bytes of the weights of one layer."""
    num_cached: int
    """Numbers that are kept of each token of a text that is drawn: keys and values."""
    num_pieces: int
    """Of the vocabulary."""
    passes: np.ndarray
    """[2, Phase, Part] bytes of a pass in each of its phases: whatever its tokens, and for each of its tokens."""

    def during(self, tokens: int) -> np.ndarray:
        """[Part] bytes in the phase of a pass of so many tokens that has most."""
        phases = self.passes[0] + self.passes[1] * tokens
        highest: np.ndarray = phases[phases.sum(1).argmax()]
        return highest.clip(min=0)


def num_cached(config: PreTrainedConfig) -> int:
    """The keys and values of a token, as most families have them: of heads that may be fewer than the queries'."""
    text = config.get_text_config()
    fields = text.to_dict()
    heads = fields.get("num_key_value_heads") or text.num_attention_heads
    size = fields.get("head_dim") or text.hidden_size // text.num_attention_heads
    return int(2 * text.num_hidden_layers * heads * size)
