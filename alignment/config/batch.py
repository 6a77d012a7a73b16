"""How many rows a step has, and how they are laid out."""

from dataclasses import dataclass
from enum import Enum

from alignment.config.base import Config
from alignment.config.errors import require


class Layout(str, Enum):
    """How a prompt and its completions are laid out."""

    auto = "auto"
    """shared where the model reads a batch alike both ways, else separate, which is said."""
    shared = "shared"
    """The prompt once, its completions as branches behind it, several prompts in a row."""
    separate = "separate"
    """Each completion behind a copy of its prompt, in a row of its own."""


SIZE = 64


@dataclass(slots=True)
class BatchConfig(Config):
    size: int = SIZE
    """Pairs, demonstrations or prompts a step, over all processes."""
    max_tokens: int = 8192
    """Tokens of one micro-batch, padding included. The gradient does not depend on it."""
    layout: Layout = Layout.auto
    """How a prompt and its completions are laid out."""

    def __post_init__(self) -> None:
        require(self.size > 0, "batch.size must be > 0", self.size)
        require(self.max_tokens > 0, "batch.max_tokens must be > 0", self.max_tokens)


def require_unread(batch: BatchConfig, task: str) -> None:
    """Raise `ConfigError` where rows a step are given for a task that has no steps."""
    require(batch.size == SIZE, f"batch.size must be as it is by default for {task}, which has no steps", batch.size)
