"""The frozen model that a policy is held against, and where its log-probs are kept."""

from dataclasses import dataclass, field

from alignment.config.base import Config
from alignment.config.errors import require
from alignment.config.marks import LANGUAGE_MODEL, PLACE


@dataclass(slots=True)
class ReferenceModelConfig(Config):
    path: str | None = field(default=None, metadata=LANGUAGE_MODEL)
    """Another model as the reference, a folder or a name on the hub; its tokenizer must have the policy's tokens. Null:
    the policy as it is before the first step."""


@dataclass(slots=True)
class ReferenceConfig(ReferenceModelConfig):
    cache: bool = True
    """Keep the reference's log-probs beside the data, in parts of 4096 rows as they are computed, and read them when
    weights, rows and tokenizer are the same: a run that was stopped in the middle of them computes the rest. false:
    they are computed before the first step of every run, and kept nowhere; no second model stays in memory either
    way."""
    folder: str | None = field(default=None, metadata=PLACE)
    """Where they are kept. Null: in `.reference` beside the data; where that cannot be written, in the user's cache
    folder."""

    def __post_init__(self) -> None:
        require(self.cache or self.folder is None, "reference.folder needs reference.cache=true", self.folder)
