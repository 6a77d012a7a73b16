"""Where the texts of PPO-ptx are taken: by iteration and inner step alone, so that no history need be kept."""

from typing import Any

import numpy as np
import pytest

from alignment.config.batch import BatchConfig, Layout
from alignment.config.data import DataConfig, Format, TrainSource
from alignment.config.model import ModelConfig
from alignment.config.online import PPOConfig
from alignment.config.ppo import PPOUpdateConfig, PtxConfig
from alignment.config.reward import RewardShapingConfig
from alignment.config.train import TrainConfig
from alignment.data.batches import Packer
from alignment.data.loaded import Loaded
from alignment.data.records import Source
from alignment.data.tokenize import Example, Truncation
from alignment.rl.ptx import Ptx, build_ptx


@pytest.fixture
def ptx(tiny_init: dict[str, Any]) -> Ptx:
    """24 texts, 2 a step, 2 x 3 inner steps an iteration: two iterations are a pass."""
    ids = np.arange(3, 7, dtype=np.int32)
    texts = [Example(ids, (ids,), None, Source("texts", row), (True,)) for row in range(24)]
    toy = DataConfig(format=Format.toy, train=TrainSource(limit=5))
    config = PPOConfig(
        model=ModelConfig(init=tiny_init),
        data=toy,
        batch=BatchConfig(size=9, max_tokens=8192, layout=Layout.shared),
        train=TrainConfig(max_steps=1),
        reward=RewardShapingConfig(function="alignment.toy.gold"),
        ppo=PPOUpdateConfig(epochs=2, mini_batches=3),
        ptx=PtxConfig(weight=0.5, size=2, data=toy),
    )
    return build_ptx(Loaded([], texts, [], Truncation()), config, Packer(config.batch, 0))


def rows(ptx: Ptx, iteration: int, inner: int) -> list[int]:
    return [row for batch in ptx.term(iteration, inner).micro_batches for row in batch.rows.tolist()]


def test_every_inner_step_of_the_run_has_texts_of_its_own(ptx: Ptx) -> None:
    taken = [row for iteration in (1, 2) for inner in range(6) for row in rows(ptx, iteration, inner)]
    assert sorted(taken) == list(range(24)) and taken != sorted(taken)
    again = [row for iteration in (3, 4) for inner in range(6) for row in rows(ptx, iteration, inner)]
    assert sorted(again) == list(range(24)) and again != taken  # a second pass, shuffled anew


def test_they_depend_on_nothing_else(ptx: Ptx) -> None:
    late = rows(ptx, 3, 4)
    for iteration, inner in ((1, 0), (3, 5), (2, 2)):
        rows(ptx, iteration, inner)
    assert rows(ptx, 3, 4) == late
    assert (ptx.term(1, 0).name, ptx.term(1, 0).weight) == ("ptx", 0.5)
