"""The usual learning rates: between those that were published, the recipes' own among them."""

from math import nextafter
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignment.check import rates
from alignment.check.verdict import Grade
from alignment.cli.advice import LORA_RATES
from alignment.config.data import DataConfig, Format, TrainSource
from alignment.config.model import LoraConfig, ModelConfig
from alignment.config.online import PPOConfig
from alignment.config.optimizer import OptimizerName
from alignment.config.run import TrainingConfig
from alignment.config.supervised import DPOConfig, KTOConfig, ORPOConfig, RewardConfig, SFTConfig
from alignment.config.train import TrainConfig

RECIPES = Path(__file__).parents[2] / "recipes"
KINDS: dict[str, type[TrainingConfig]] = {
    "sft": SFTConfig,
    "reward": RewardConfig,
    "dpo": DPOConfig,
    "orpo": ORPOConfig,
    "kto": KTOConfig,
    "ppo": PPOConfig,
}


def shipped(name: str) -> dict[str, Any]:
    return yaml.safe_load((RECIPES / f"{name}.yaml").read_text())


@pytest.mark.parametrize("name", KINDS)
def test_a_recipe_s_rate_and_the_one_advised_for_adapters_were_published(name: str) -> None:
    rate = shipped(name)["train"].get("learning_rate", TrainConfig(max_steps=1).learning_rate)
    for table, own in ((rates.FULL, rate), (rates.LORA, LORA_RATES[name])):
        published = [each for whose in table[KINDS[name]].published.values() for each in whose]
        assert any(own == pytest.approx(each) for each in published), (own, published)


def test_every_recipe_for_a_whole_model_has_a_rate_for_adapters() -> None:
    trained = {path.stem for path in RECIPES.glob("*.yaml") if "learning_rate" in path.read_text()}
    assert set(LORA_RATES) == {name for name in trained if not name.startswith("tiny_") and not name.endswith("_24gb")}


@pytest.mark.parametrize("name", LORA_RATES)
def test_the_recipes_comments_and_settings_are_the_same(name: str) -> None:
    text = (RECIPES / f"{name}.yaml").read_text()
    assert f"train.learning_rate={LORA_RATES[name]:.0e}".replace("e-0", "e-") in text
    if name in ("reward_regression", "reward_process"):  # whose own is the recipe reward's, and there said
        assert shipped(name)["train"] == shipped("reward")["train"]
        return
    rate = shipped(name)["train"].get("learning_rate", TrainConfig(max_steps=1).learning_rate)
    said = {"cpo": "For all weights "}.get(name, "earning rate ")
    assert f"{said}{rate:.0e}".replace("e-0", "e-") in text


@pytest.mark.parametrize(
    ("weights", "rank", "low", "high"),
    [
        (7e9, 0, 2e-7, 1e-6),  # Tulu 3's 70B and Rafailov et al.
        (1.35e8, 0, 5e-7, 5e-6),  # TRL's example and Hong et al.'s OPT
        (7e9, 16, 5e-6, 5e-5),  # Zephyr and Schmid
    ],
)
def test_what_lies_far_beyond_the_published_ones_is_warned_of(
    weights: float, rank: int, low: float, high: float
) -> None:
    def verdict(rate: float) -> Grade:
        config = DPOConfig(
            model=ModelConfig(path="model", lora=LoraConfig(rank)),
            data=DataConfig(format=Format.toy, train=TrainSource(limit=1)),
            train=TrainConfig(max_steps=1, learning_rate=rate),
        )
        return rates.learning_rate(config, int(weights)).grade

    lowest, highest = rates.BELOW * low, rates.ABOVE * high
    assert verdict(lowest) is verdict(highest) is Grade.ok
    assert verdict(nextafter(lowest, 0)) is verdict(nextafter(highest, 1)) is Grade.warn


def test_the_usual_ones_are_told_by_whose_they_are() -> None:
    usual = rates.Usual({"A": (3e-6,), "B": (2e-5, 1e-6)})
    assert str(usual) == "1e-06 to 2e-05 (A 3e-06, B 2e-05 and 1e-06)"


@pytest.mark.parametrize(
    ("name", "grade"), [("adamw", Grade.fail), ("muon", Grade.fail), ("lion", Grade.ok), ("sgd", Grade.ok)]
)
def test_the_rates_are_of_adamw_and_of_what_takes_its_rates(name: str, grade: Grade) -> None:
    config = DPOConfig(
        model=ModelConfig(path="model"),
        data=DataConfig(format=Format.toy, train=TrainSource(limit=1)),
        train=TrainConfig(max_steps=1, learning_rate=0.1, optimizer=OptimizerName(name)),
    )
    assert rates.learning_rate(config, int(7e9)).grade is grade
