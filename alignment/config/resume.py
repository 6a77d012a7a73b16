"""With which changes a run goes on in its folder."""

from dataclasses import dataclass, field

from alignment.config.base import Config
from alignment.config.errors import require


@dataclass(slots=True)
class ResumeConfig(Config):
    accept: list[str] = field(default_factory=list)
    """Keys, or their beginnings, with whose changed values the run in output_dir goes on: [train.learning_rate, kl].
    They act from the next step on, as if they had been so from the start: a schedule's rate is that of the step."""

    def __post_init__(self) -> None:
        rule = "resume.accept must hold keys of the config, each once"
        require(all(self.accept) and len(set(self.accept)) == len(self.accept), rule, self.accept)
