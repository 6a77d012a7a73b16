"""The file that carries a reward model's mean and deviation from its training to PPO."""

import json
from pathlib import Path

import pytest

from alignment.config.errors import ConfigError
from alignment.models.reward_normalization import FILE, RewardStatistics, read_statistics, write_statistics

KEY = "reward.models.safety.normalize"


def test_what_is_written_is_read(tmp_path: Path) -> None:
    statistics = RewardStatistics(mean=-0.1, std=2 / 3, count=12, split="eval")
    write_statistics(statistics, tmp_path)
    assert read_statistics(str(tmp_path), KEY) == statistics


def test_a_missing_file_is_named_with_its_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read_statistics(str(tmp_path), KEY)
    assert str(caught.value).startswith(f"{KEY} needs ") and str(tmp_path / FILE) in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[1, 2]",
        json.dumps({"mean": 0.0, "std": 1.0}),
        json.dumps({"mean": 0.0, "std": 0.0, "count": 2, "split": "eval"}),
        json.dumps({"mean": float("nan"), "std": 1.0, "count": 2, "split": "eval"}),
        json.dumps({"mean": "0", "std": 1.0, "count": 2, "split": "eval"}),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(ConfigError, match=rf"^{KEY} needs .*{FILE}"):
        read_statistics(str(tmp_path), KEY)
