"""From several scorers to the one number that PPO learns from, by hand."""

from collections.abc import Callable
from dataclasses import replace
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
from alignment.config.reward import Combine, RewardShapingConfig, ScorerConfig, ScorerEntry
from alignment.config.train import TrainConfig
from alignment.distributed.placement import WHOLE
from alignment.generation.function import FunctionScorer
from alignment.generation.samples import Samples
from alignment.generation.score import RewardModelScorer
from alignment.models.load import load_scalar_model, save_model
from alignment.models.reward_normalization import RewardStatistics, write_statistics
from alignment.rl.rewards import Reward, WeightedScorer, build_reward, shape_scores

SamplesOf = Callable[[list[list[str]]], Samples]
ON_CPU = DistributedConfig(device=Device.cpu)
TEXTS = [["a", "bb"], ["ccc", "DDDD"]]  # the last one lacks its EOS; with it, 2, 3, 4 and 4 tokens


def gives(*scores: float) -> FunctionScorer:
    return FunctionScorer(lambda prompts, replies: list(scores))


def ppo_config(**fields: Any) -> PPOConfig:
    return PPOConfig(
        model=ModelConfig(init={"model_type": "llama"}),
        data=DataConfig(format=Format.toy, train=TrainSource(limit=5)),
        train=TrainConfig(max_steps=1),
        reward=RewardShapingConfig(**{"path": "a"} | fields),
        distributed=ON_CPU,
    )


def test_normalized_and_weighted_sum_by_hand(samples_of: SamplesOf) -> None:
    config = ScorerConfig(models={"a": ScorerEntry("a"), "b": ScorerEntry("b")})
    statistics = RewardStatistics(mean=2.0, std=4.0, count=8, split="eval")
    scorers = {
        "a": WeightedScorer(gives(2.0, 6.0, -2.0, 0.0), 3.0, statistics),
        "b": WeightedScorer(gives(1, 2, 3, 4), -0.5, None),
    }
    scores = Reward(scorers, config).scores(samples_of(TEXTS))
    # 3 (s - 2) / 4 is 0, 3, -3, -1.5; less half of 1, 2, 3, 4
    assert scores.combined.tolist() == [[-0.5, 2.0], [-4.5, -3.5]]
    assert {name: part.tolist() for name, part in scores.by_model.items()} == {
        "a": [[2.0, 6.0], [-2.0, 0.0]],  # as they came
        "b": [[1.0, 2.0], [3.0, 4.0]],
    }


def test_one_scorer_is_itself_and_has_no_part(samples_of: SamplesOf) -> None:
    reward = Reward({"reward": WeightedScorer(gives(1, 2, 3, 4), 1.0, None)}, ScorerConfig(path="a"))
    scores = reward.scores(samples_of(TEXTS))
    assert scores.combined.tolist() == reward.score(samples_of(TEXTS)).tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert scores.by_model == {}


def test_llama2_reads_the_tag_of_the_prompt(samples_of: SamplesOf) -> None:
    """sigmoid(-2) = 0.119 is below 0.15, sigmoid(-1) = 0.269 is not; the second prompt is tagged."""
    names = ("helpfulness", "safety")
    config = ScorerConfig(models={name: ScorerEntry("a") for name in names}, combine=Combine.llama2)
    scorers = {
        "safety": WeightedScorer(gives(-1, -2, -1, 5), 1.0, None),
        "helpfulness": WeightedScorer(gives(10, 20, 30, 40), 1.0, None),
    }
    samples = samples_of(TEXTS)
    first, second = samples.records
    tagged = replace(samples, records=[replace(first, tags=("x",)), replace(second, tags=("x", "safety"))])
    assert Reward(scorers, config).score(tagged).tolist() == [[10.0, -2.0], [-1.0, 5.0]]
    assert Reward(scorers, config).score(samples).tolist() == [[10.0, -2.0], [30.0, 40.0]]
    always = replace(config, safety_threshold=0.3)
    assert Reward(scorers, always).score(samples).tolist() == [[-1.0, -2.0], [-1.0, 40.0]]


@pytest.mark.parametrize("tags", [("Safety",), (" safety ",), ("red-team, safety",), ("x", "SAFETY,y")])
def test_a_tag_is_read_however_it_is_written_and_its_lack_is_said(
    samples_of: SamplesOf, tags: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("helpfulness", "safety")
    config = ScorerConfig(models={name: ScorerEntry("a") for name in names}, combine=Combine.llama2)
    reward = Reward(
        {"safety": WeightedScorer(gives(3, 3), 1.0, None), "helpfulness": WeightedScorer(gives(10, 20), 1.0, None)},
        config,
    )
    samples = samples_of([["a", "bb"]])
    tagged = replace(samples, records=[replace(samples.records[0], tags=tags)])
    assert reward.score(tagged).tolist() == [[3.0, 3.0]]
    reward.say_untagged([*samples.records, *tagged.records])
    Reward(reward.scorers, ScorerConfig(path="a")).say_untagged(samples.records)
    assert capsys.readouterr().out == ""
    other = replace(samples.records[0], tags=("safety-net", "unsafety"))
    reward.say_untagged([*samples.records, other])
    line = "reward.combine=llama2: no prompt has 'safety' among its `tags`, so that safety judges only what it finds"
    assert capsys.readouterr().out == f"{line} unsafe (reward.safety_threshold=0.15)\n"


def test_nothing_is_shaped_unless_asked_for(samples_of: SamplesOf) -> None:
    scores = torch.tensor([[100.0, -100.0], [0.0, 1.0]])
    assert torch.equal(shape_scores(scores, samples_of(TEXTS), ppo_config()), scores)


def test_the_order_of_shaping_by_hand(samples_of: SamplesOf) -> None:
    """clip: 9, -9, 0, 4 to 3, -3, 0, 3. whiten: mean 0.75, variance 24.75 / 3 = 8.25. Then the penalties."""
    config = ppo_config(clip=3.0, whiten=True, length_penalty=0.5, length_free=2, missing_eos_penalty=10.0)
    found = shape_scores(torch.tensor([[9.0, -9.0], [0.0, 4.0]]), samples_of(TEXTS), config)
    white = [(s - 0.75) / 8.25**0.5 + 0.75 for s in (3.0, -3.0, 0.0, 3.0)]
    lengths = [0.0, 0.5, 1.0, 1.0]  # 2, 3, 4 and 4 tokens, of which 2 are free
    expected = [w - length - eos for w, length, eos in zip(white, lengths, (0, 0, 0, 10.0), strict=True)]
    assert found.flatten().tolist() == pytest.approx(expected, rel=1e-6)
    assert found.dtype == torch.float32


def test_llama2_whitens_with_the_mean_off(samples_of: SamplesOf) -> None:
    models = {name: ScorerEntry("a") for name in ("helpfulness", "safety")}
    config = ppo_config(path=None, models=models, combine=Combine.llama2)
    found = shape_scores(torch.tensor([[1.0, 2.0], [3.0, 6.0]]), samples_of(TEXTS), config)
    deviation = (14 / 3) ** 0.5  # (-2)^2 + (-1)^2 + 0 + 3^2 = 14
    assert found.flatten().tolist() == pytest.approx(
        [s / deviation for s in (-2.0, -1.0, 0.0, 3.0)], rel=1e-6, abs=1e-7
    )


def test_a_reward_is_built_from_its_config(
    tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, tmp_path: Any, samples_of: SamplesOf
) -> None:
    torch.manual_seed(0)
    save_model(load_scalar_model(ModelConfig(init=tiny_init), tokenizer, WHOLE), tokenizer, tmp_path / "model")
    models = {
        "learned": ScorerEntry(str(tmp_path / "model"), weight=2.0, normalize=True),
        "gold": ScorerEntry(function="alignment.toy.gold"),
    }
    config = ScorerConfig(models=models)
    with pytest.raises(ConfigError, match=r"^reward.models.learned.normalize needs .*reward_statistics.json"):
        build_reward(config, BatchConfig(max_tokens=8192), ON_CPU)
    statistics = RewardStatistics(mean=0.5, std=2.0, count=4, split="eval")
    write_statistics(statistics, tmp_path / "model")
    reward = build_reward(config, BatchConfig(max_tokens=8192), ON_CPU)
    learned, gold = reward.scorers["learned"], reward.scorers["gold"]
    assert isinstance(learned.scorer, RewardModelScorer) and isinstance(gold.scorer, FunctionScorer)
    assert (learned.weight, learned.statistics, gold.weight, gold.statistics) == (2.0, statistics, 1.0, None)
    samples = samples_of([["a", "bb"]])
    samples.prompts[0][-1]["content"] = "Tell me about a fox."

    single = build_reward(
        ScorerConfig(path=str(tmp_path / "model"), normalize=True), BatchConfig(max_tokens=8192), ON_CPU
    )
    torch.testing.assert_close(single.score(samples), (learned.scorer.score(samples) - 0.5) / 2)


def test_a_mistake_in_one_of_several_names_it(samples_of: SamplesOf) -> None:
    config = ScorerConfig(models={"rule": ScorerEntry(function="no.such")})
    with pytest.raises(ConfigError, match=r"^reward.models.rule.function must be the dotted path of a function"):
        build_reward(config, BatchConfig(max_tokens=8192), ON_CPU)
    config = ScorerConfig(models={"rule": ScorerEntry(function="builtins.zip")})
    reward = build_reward(config, BatchConfig(max_tokens=8192), ON_CPU)
    reward.scorers["rule"].scorer.function = lambda prompts, replies: [1.0]  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match=r"^reward.models.rule.function must give 4 replies a score each, got 1"):
        reward.score(samples_of(TEXTS))
