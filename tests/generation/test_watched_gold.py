"""The gold score: a function's or a held-out reward model's, checked before anything is learned."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from alignment.config.batch import BatchConfig
from alignment.config.data import DataConfig, Format, TrainSource
from alignment.config.distributed import Device, DistributedConfig
from alignment.config.errors import ConfigError
from alignment.config.model import ModelConfig
from alignment.config.online import PPOConfig
from alignment.config.reward import ScorerConfig
from alignment.config.train import TrainConfig
from alignment.distributed.placement import WHOLE
from alignment.generation.function import FunctionScorer
from alignment.generation.gold import build_gold
from alignment.generation.samples import Samples
from alignment.generation.score import reward_model_scorer
from alignment.models.load import load_scalar_model, save_model
from alignment.toy import gold

SamplesOf = Callable[[list[list[str]]], Samples]


def ppo_config(tiny_init: dict[str, Any], **parts: Any) -> PPOConfig:
    return PPOConfig(
        model=ModelConfig(init=tiny_init),
        data=DataConfig(format=Format.toy, train=TrainSource(limit=5)),
        batch=BatchConfig(max_tokens=8192),
        train=TrainConfig(max_steps=1),
        reward=ScorerConfig(function="alignment.toy.gold"),
        distributed=DistributedConfig(device=Device.cpu),
        **parts,
    )


def test_the_function_at_a_dotted_path(tiny_init: dict[str, Any]) -> None:
    built = build_gold(ppo_config(tiny_init, gold="alignment.toy.gold"))
    assert isinstance(built, FunctionScorer) and built.function is gold
    assert build_gold(ppo_config(tiny_init)) is None


def test_a_held_out_reward_model(
    tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, samples_of: SamplesOf, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    save_model(load_scalar_model(ModelConfig(init=tiny_init), tokenizer, WHOLE), tokenizer, tmp_path / "held_out")
    config = ppo_config(tiny_init, gold_model=str(tmp_path / "held_out"))
    samples = samples_of([["a", "bbb"], ["cc", "d"]])
    built = build_gold(config)
    assert built is not None
    same = reward_model_scorer(str(tmp_path / "held_out"), config.batch, config.distributed)
    assert torch.equal(built.score(samples), same.score(samples))


def test_one_of_the_two_at_most(tiny_init: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="at most one of gold and gold_model must be set, got"):
        ppo_config(tiny_init, gold="alignment.toy.gold", gold_model="somewhere")


def test_an_error_of_the_model_names_its_key(tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> None:
    config = ppo_config(tiny_init, gold_model=tokenizer.name_or_path)
    with pytest.raises(ConfigError, match=r"^gold_model: no config.json in"):
        build_gold(config)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([0.0] * 3, "gold must give 4 replies a score each, got 3"),
        ([0.0, 1.0, float("nan"), 2.0], "gold must give finite scores, got"),
    ],
)
def test_the_function_is_checked(samples_of: SamplesOf, scores: list[float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FunctionScorer(lambda prompts, replies: scores, "gold").score(samples_of([["a", "b"], ["c", "d"]]))
