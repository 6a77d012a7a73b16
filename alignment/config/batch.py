"""How many rows a step has, and how they are laid out."""

from dataclasses import dataclass
from enum import Enum

from alignment.config.base import Config
from alignment.config.errors import ConfigError, require


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
    max_tokens: int | None = None
    """Tokens of one micro-batch, padding included. The gradient does not depend on it. Null: as many as the free memory
    has room for when the run begins, which is said and kept in its config.yaml; with lomo a step of its
    longest rows."""
    layout: Layout = Layout.auto
    """How a prompt and its completions are laid out."""

    def __post_init__(self) -> None:
        require(self.size > 0, "batch.size must be > 0", self.size)
        require(self.size < 2**31, "batch.size must be below 2**31", self.size)
        rule = "batch.max_tokens must be > 0, or null to choose it from the free memory"
        require(self.max_tokens is None or self.max_tokens > 0, rule, self.max_tokens)

    @property
    def budget(self) -> int:
        """`max_tokens`, where there is a number.

        Raises:
            ConfigError: it is null, which only a run makes a number of.
        """
        if self.max_tokens is None:
            rule = "batch.max_tokens must be a number where no run chooses it: BatchConfig(max_tokens=8192)"
            raise ConfigError(f"{rule}, got null")
        return self.max_tokens


def require_unread(batch: BatchConfig, task: str) -> None:
    """Raise `ConfigError` where rows a step are given for a task that has no steps."""
    require(batch.size == SIZE, f"batch.size must be as it is by default for {task}, which has no steps", batch.size)
