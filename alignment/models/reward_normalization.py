"""What a reward model's scores were like when its training ended, kept beside its weights."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

from alignment.config.errors import ConfigError
from alignment.config.hub import located

FILE = "reward_statistics.json"


@dataclass(frozen=True, slots=True)
class RewardStatistics:
    """Of the scores of both replies of each pair."""

    mean: float
    std: float
    """Unbiased."""
    count: int
    """Scores, two a pair."""
    split: str
    """The pairs' split: `eval`, or `train` where there was none."""


def write_statistics(statistics: RewardStatistics, folder: Path) -> None:
    (folder / FILE).write_text(json.dumps(asdict(statistics), indent=2) + "\n")


def read_statistics(folder: str, key: str) -> RewardStatistics:
    """The statistics in a reward model's folder.

    Raises:
        ConfigError: there are none, or they are no mean and positive standard deviation; names `key` and the file.
    """
    path = located(folder) / FILE
    if not path.is_file():
        rule = "needs the file that reward training leaves beside the weights of a run that has ended"
        raise ConfigError(f"{key} {rule}, got no {str(path)!r}: set {key}=false, or name a run that has ended")
    try:
        statistics = RewardStatistics(**json.loads(path.read_text()))
        usable = math.isfinite(statistics.mean) and 0 < statistics.std < math.inf
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{key} needs mean, std, count and split in {str(path)!r} ({error})") from error
    if not usable:
        raise ConfigError(f"{key} needs a finite mean and a std > 0 in {str(path)!r}, got {statistics}")
    return statistics
