"""Config dataclasses as Python writes them: words for members, required fields, and the same rules as in YAML."""

from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from alignment.config.base import Config
from alignment.config.best import BestConfig, Mode
from alignment.config.data import DataConfig
from alignment.config.errors import ConfigError
from alignment.config.log import LogConfig, Tracker
from alignment.config.model import ModelConfig
from alignment.config.sources import Format, TrainSource
from alignment.config.supervised import DPOConfig
from alignment.config.tasks import TASKS
from alignment.config.train import Schedule, TrainConfig
from alignment.losses import DPOLoss, DPOVariant


def parts(owner: type) -> set[type]:
    """The dataclasses that a config is made of, itself among them."""
    found = {owner}
    for hint in get_type_hints(owner).values():
        for each in (hint, *get_args(hint)):
            if isinstance(each, type) and is_dataclass(each) and each not in found:
                found |= parts(each)
    return found


def test_a_word_becomes_the_member_wherever_the_field_has_it() -> None:
    assert TrainConfig(max_steps=1, schedule="linear").schedule is Schedule.linear
    assert BestConfig(metric="eval/accuracy", mode="max").mode is Mode.max  # where null is a value too
    trackers: Any = ["tensorboard", Tracker.wandb]
    assert LogConfig(trackers=trackers).trackers == [Tracker.tensorboard, Tracker.wandb]
    assert ModelConfig(path=Path("some") / "folder").path == "some/folder"  # type: ignore[arg-type]
    config: Any = DataConfig(train=TrainSource(path="rows.jsonl"))
    config.format = "alpaca"  # later on too
    assert config.format is Format.alpaca


def test_every_part_of_every_task_takes_words() -> None:
    """The losses, which know nothing of configs, have their own way to the same end."""
    for owner in set().union(*map(parts, TASKS.values())):
        words = [field for field in fields(owner) if isinstance(field.default, Enum)]
        if owner.__module__.startswith("alignment.config"):
            assert issubclass(owner, Config), owner
            continue
        for field in words:
            assert getattr(owner(**{field.name: field.default.value}), field.name) is field.default
    assert DPOLoss(variant="ipo").variant is DPOVariant.ipo  # type: ignore[arg-type]


def test_no_such_word() -> None:
    with pytest.raises(ConfigError) as raised:
        TrainConfig(max_steps=1, schedule="linaer")  # type: ignore[arg-type]
    assert str(raised.value).startswith("TrainConfig.schedule must be one of cosine, linear")
    assert str(raised.value).endswith("got 'linaer' (did you mean 'linear'?)")


def test_what_is_required_is_asked_for_by_name() -> None:
    with pytest.raises(ConfigError, match=r"^DPOConfig needs train=\.\.\., got nothing$"):
        DPOConfig(model=ModelConfig(path="folder"), data=DataConfig(train=TrainSource(path="rows.jsonl")))


def test_a_whole_config_needs_no_hydra() -> None:
    config = DPOConfig(
        model=ModelConfig(path="folder"),
        data=DataConfig(train=TrainSource(path="rows.jsonl")),
        train=TrainConfig(max_steps=10, schedule="linear"),  # type: ignore[arg-type]
    )
    assert config.loss.beta == 0.1 and config.output_dir.startswith("runs/")
    with pytest.raises(AttributeError):
        config.trian = 3  # type: ignore[attr-defined]
