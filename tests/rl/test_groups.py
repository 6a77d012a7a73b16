"""Replies to prompts that all score alike: drawn anew, counted, left out."""

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from alignment.config.data import DataConfig, Format, TrainSource
from alignment.config.errors import ConfigError
from alignment.config.model import ModelConfig
from alignment.config.online import PPOConfig
from alignment.config.ppo import AdvantageConfig, AdvantageEstimator
from alignment.config.reward import RewardShapingConfig
from alignment.config.train import TrainConfig
from alignment.generation.generate import Reply
from alignment.generation.samples import Samples
from alignment.rl.groups import all_alike, group_advantages, not_all_alike, redraw_alike
from alignment.rl.rollouts import Rollouts

GRPO = AdvantageEstimator.grpo


def samples_named(name: str, rows: list[int], ends: tuple[bool, bool] = (True, True)) -> Samples:
    """Two replies to each prompt, which say of which draw they are."""
    replies = [[Reply(torch.arange(2).numpy(), ends[k], f"{name} {row} {k}") for k in range(2)] for row in rows]
    named: Any = [f"{name} {row}" for row in rows]
    return Samples(named, named, replies, computed=4 * len(rows))


class Drawn(Rollouts):
    """Its second draws score `again`, by the place of the prompt; `ends`: which of a prompt's two replies end."""

    def __init__(
        self, config: PPOConfig, again: list[dict[int, list[float]]], ends: tuple[bool, bool] = (True, True)
    ) -> None:
        self.config, self.again, self.ends, self.asked = config, again, ends, []
        rows: Any = SimpleNamespace(step_rows=lambda index: [10 * index + place for place in range(4)])
        timer: Any = SimpleNamespace(part=lambda name: nullcontext())
        prompts: Any = SimpleNamespace(train=None)
        self.batches, self.timer, self.prompts = rows, timer, prompts
        self.scorer: Any = SimpleNamespace(reward=SimpleNamespace(score=self.scored))

    def draw(self, data: Any, rows: list[int], seed: int, replies: int) -> Samples:
        self.asked.append((rows, seed, replies))
        return samples_named(f"draw {len(self.asked) + 1}", rows, self.ends)

    def scored(self, samples: Samples) -> Tensor:
        scores = self.again[len(self.asked) - 1]
        return torch.tensor([scores[int(replies[0].text.split()[2]) % 10] for replies in samples.replies])


@pytest.fixture
def config(tiny_init: dict[str, Any]) -> PPOConfig:
    return ppo_config(tiny_init, AdvantageConfig(estimator=GRPO, redraws=3))


def ppo_config(tiny_init: dict[str, Any], advantage: AdvantageConfig, **reward: Any) -> PPOConfig:
    return PPOConfig(
        model=ModelConfig(init=tiny_init),
        data=DataConfig(format=Format.toy, train=TrainSource(limit=5)),
        train=TrainConfig(max_steps=1),
        reward=RewardShapingConfig(function="alignment.toy.gold", **reward),
        num_samples=2,
        advantage=advantage,
    )


FIRST = [[1.0, 1.0], [0.0, 1.0], [2.0, 2.0], [0.0, 0.0]]


def test_replies_that_score_alike_are_drawn_anew_until_they_do_not_or_it_was_often_enough(config: PPOConfig) -> None:
    """Prompt 0 is apart after the second draw, prompt 3 after the third, prompt 2 never."""
    drawn = Drawn(config, [{0: [1.0, 0.0], 2: [2.0, 2.0], 3: [0.0, 0.0]}, {2: [2.0, 2.0], 3: [0.0, 4.0]}])
    samples, scores, measured = redraw_alike(
        drawn, samples_named("draw 1", [20, 21, 22, 23]), torch.tensor(FIRST), 3, 2
    )
    assert [rows for rows, _, _ in drawn.asked] == [[20, 22, 23], [22, 23]]
    assert len({seed for _, seed, _ in drawn.asked} | {drawn.seed(step) for step in range(99)}) == 2 + 99
    assert {replies for _, _, replies in drawn.asked} == {2}
    assert scores.tolist() == [[1.0, 0.0], [0.0, 1.0], [2.0, 2.0], [0.0, 4.0]]
    assert [replies[1].text for replies in samples.replies] == [
        "draw 2 20 1",
        "draw 1 21 1",
        "draw 3 22 1",
        "draw 3 23 1",
    ]
    assert samples.examples == ["draw 2 20", "draw 1 21", "draw 3 22", "draw 3 23"]
    assert samples.records == [f"draw 1 {row}" for row in (20, 21, 22, 23)] and samples.computed == 16 + 12 + 8
    shares = {name: (mean.total.item(), mean.count.item()) for name, mean in measured.items()}
    assert shares == {"groups/alike": (1, 4), "groups/redrawn": (3, 4)}


def test_what_is_drawn_anew_is_shaped_as_what_was_drawn_first(tiny_init: dict[str, Any]) -> None:
    """Clipped to 4, and less 3 where it was cut: replies are alike where they are so then."""
    shaped = {"clip": 4.0, "missing_eos_penalty": 3.0}
    config = ppo_config(tiny_init, AdvantageConfig(estimator=GRPO, redraws=3), **shaped)
    drawn = Drawn(config, [{0: [1.0, 1.0], 2: [9.0, 7.0], 3: [1.0, 4.0]}, {3: [-9.0, 9.0]}], (True, False))
    samples, scores, _ = redraw_alike(drawn, samples_named("draw 1", [20, 21, 22, 23]), torch.tensor(FIRST), 3, 3)
    assert [rows for rows, _, _ in drawn.asked] == [[20, 22, 23], [23]]
    assert scores.tolist() == [[1.0, -2.0], [0.0, 1.0], [4.0, 1.0], [-4.0, 1.0]]
    assert samples.examples == ["draw 2 20", "draw 1 21", "draw 2 22", "draw 3 23"]


def test_without_redraws_they_are_counted(config: PPOConfig) -> None:
    drawn, before = Drawn(config, []), samples_named("draw 1", [20, 21, 22, 23])
    samples, scores, measured = redraw_alike(drawn, before, torch.tensor(FIRST), 3, 0)
    assert samples is before and scores.tolist() == FIRST and drawn.asked == []
    assert measured.keys() == {"groups/alike"} and measured["groups/alike"].total.item() == 3


def test_where_all_are_alike_all_are_learned_from() -> None:
    scores = torch.tensor([[1.0, 1.0], [0.0, 1.0], [2.0, 2.0]])
    assert all_alike(scores).tolist() == [True, False, True]
    teach = not_all_alike(scores)
    assert teach is not None and teach.tolist() == [False, True, False]
    assert not_all_alike(torch.zeros(4, 2)) is None


@pytest.mark.parametrize(
    ("advantage", "reward", "message"),
    [
        ({"estimator": GRPO, "redraws": -1}, {}, "advantage.redraws must be >= 0, got -1"),
        (
            {"redraws": 1},
            {},
            r"advantage.redraws goes with an estimator .* \(grpo, dr_grpo, rloo\), got 1",
        ),
        ({"drop_alike": True}, {}, "advantage.drop_alike goes with an estimator that compares .*, got True"),
        (
            {"estimator": GRPO, "redraws": 1},
            {"whiten": True},
            "advantage.redraws must be 0 with reward.whiten or reward.combine=llama2, .* got 1",
        ),
    ],
)
def test_what_is_refused(
    advantage: dict[str, Any], reward: dict[str, Any], message: str, tiny_init: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        ppo_config(tiny_init, AdvantageConfig(**advantage), **reward)


@pytest.mark.parametrize("replies", [8, 12, 64])
@pytest.mark.parametrize("estimator", [each for each in AdvantageEstimator if AdvantageConfig(each).is_grouped])
def test_whatever_the_score_replies_that_score_alike_teach_nothing(estimator: AdvantageEstimator, replies: int) -> None:
    """Also one that has no exact float: grpo would divide what rounding leaves of it by its eps alone."""
    scores = torch.tensor([0.7, -5.3, 8.1, 10 / 12]).repeat_interleave(replies)
    advantages = group_advantages(scores[:, None], replies, estimator)
    assert advantages.abs().max() == 0
