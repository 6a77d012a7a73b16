"""When a run on replies of its own tells people to look."""

from dataclasses import dataclass

from alignment.config.base import Config
from alignment.config.errors import require

ALARMS = {  # name: what has happened
    "over_optimisation": "the learned reward rises while the gold score falls",
    "kl": "the KL to the reference is above alarm.max_kl",
    "entropy": "the entropy is below alarm.min_entropy",
    "unfinished": "the share of replies cut at generation.max_new_tokens is above alarm.max_unfinished",
    "distinct_2": "the share of distinct bigrams is below alarm.min_distinct_2",
    "mismatch": "the engine's log-probs are further from the trainer's than alarm.max_mismatch",
}


@dataclass(slots=True)
class AlarmConfig(Config):
    """When to tell people to look; an alarm stops nothing. Each looks at the last `window` iterations.

    Over-optimisation (Gao et al. 2210.10760) is watched wherever there is a gold score: it holds where the slope of
    the learned reward over the window is above `sigmas` standard errors and that of the gold score below -`sigmas`,
    and it is raised when it has held `patience` iterations in a row. The others compare a mean over the window with a
    limit; null leaves one out.
    """

    window: int = 20
    """Iterations that an alarm looks back on."""
    sigmas: float = 4.0
    """Over-optimisation alone: standard errors that a slope must be away from 0 to count as one."""
    patience: int = 5
    """Over-optimisation alone: at how many iterations in a row both slopes must be beyond noise before it is raised (a
    limit's alarm is raised at the first). Windows overlap, so noise that passes once may pass twice. Beside a reward
    that surely rises, a gold score of white noise raises the alarm in about 1 of 100 simulated runs of 1000 iterations;
    with patience 1, in 1 of 4."""
    max_kl: float | None = None
    """An alarm where `kl`, nats a reply, is above this. Null: none."""
    min_entropy: float | None = None
    """An alarm where `entropy`, nats a token, is below this. Null: none."""
    max_unfinished: float | None = None
    """An alarm where a larger share of the replies is cut at generation.max_new_tokens. Null: none."""
    min_distinct_2: float | None = None
    """An alarm where `distinct_2`, the share of distinct bigrams, is below this; it falls with the number of replies
    too. Null: none."""
    max_mismatch: float | None = 0.5
    """generation.engine=vllm: an alarm where `generation/mismatch`, the mean distance of its log-probs, nats a token,
    is above this. Other kernels in bfloat16 make some hundredths; weights that did not arrive make more than this."""

    def __post_init__(self) -> None:
        require(self.window >= 5, "alarm.window must be >= 5", self.window)
        require(self.sigmas > 0, "alarm.sigmas must be > 0", self.sigmas)
        require(1 <= self.patience <= self.window, "alarm.patience must be in [1, alarm.window]", self.patience)
        for key in ("max_kl", "min_entropy", "max_mismatch"):
            value = getattr(self, key)
            require(value is None or value > 0, f"alarm.{key} must be > 0, or null for none", value)
        for key in ("max_unfinished", "min_distinct_2"):
            value = getattr(self, key)
            require(value is None or 0 < value < 1, f"alarm.{key} must be in (0, 1), or null for none", value)
