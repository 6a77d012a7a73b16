"""A soft prompt: embeddings that stand before each text, which train in place of the weights that read them."""

from dataclasses import dataclass
from enum import Enum

from alignment.config.base import Config
from alignment.config.errors import require

KEY = "model.soft_prompt.tokens"


class SoftPromptEncoder(str, Enum):
    """Where the embeddings come from."""

    none = "none"
    """Each is a weight: prompt tuning (arXiv:2104.08691)."""
    mlp = "mlp"
    """Three linear layers make them of weights as many, and train with these: P-tuning (arXiv:2103.10385)."""
    lstm = "lstm"
    """Likewise, a bidirectional LSTM of two layers, and two linear ones."""


@dataclass(slots=True)
class SoftPromptConfig(Config):
    tokens: int = 0
    """How many embeddings stand before each text, prompt or not, and train while all weights are frozen; a reward
    model's head trains with them. What is left is the soft prompt alone, in peft's form. data.max_length and
    data.max_prompt_length are without them, batch.max_tokens counts them. 0: none."""
    encoder: SoftPromptEncoder = SoftPromptEncoder.none
    """Where the embeddings come from. What is left are the embeddings, whatever made them."""
    hidden_size: int | None = None
    """The width of the encoder between its layers. Null: that of the model."""
    init_text: str | None = None
    """A text whose tokens' embeddings they begin as, repeated or cut. Null: those of tokens that are drawn; an encoder
    begins at random."""

    def __post_init__(self) -> None:
        require(self.tokens >= 0, f"{KEY} must be >= 0", self.tokens)
        width, text = self.hidden_size, self.init_text
        require(width is None or width > 0, "model.soft_prompt.hidden_size must be > 0", width)
        has_encoder = self.encoder is not SoftPromptEncoder.none
        require(has_encoder or width is None, "model.soft_prompt.hidden_size goes with an encoder, mlp or lstm", width)
        rule = "model.soft_prompt.init_text goes with model.soft_prompt.encoder=none, for an encoder begins at random"
        require(not has_encoder or text is None, rule, text)
        require(text is None or bool(text), "model.soft_prompt.init_text must be a text", text)
