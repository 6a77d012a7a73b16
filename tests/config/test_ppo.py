"""PPO's reward and KL: what goes together, and what does not and says so by the key its user typed."""

import math
from collections.abc import Callable
from typing import Any

import pytest

from alignment.config.data import DataConfig, EvalSource, Format, TrainSource
from alignment.config.distributed import DistributedConfig, Offload
from alignment.config.errors import ConfigError
from alignment.config.evaluate import EvaluateConfig
from alignment.config.generation import GenerationConfig
from alignment.config.inputs import input_paths
from alignment.config.model import ModelConfig
from alignment.config.online import PPOConfig
from alignment.config.ppo import CriticConfig, KLConfig, KLControl, KLPlace
from alignment.config.reward import Combine, RewardShapingConfig, ScorerConfig, ScorerEntry
from alignment.config.tasks import RejectionConfig
from alignment.config.train import TrainConfig
from alignment.losses import KLEstimator

A, B = ScorerEntry(path="a"), ScorerEntry(function="b.c")
TWO = {"helpfulness": A, "safety": A}
LLAMA2 = {"models": TWO, "combine": Combine.llama2}
ADAPTIVE = {"controller": KLControl.adaptive, "target": 6.0}

REWARDS: list[tuple[dict[str, Any], str]] = [
    ({}, "exactly one of reward.path, reward.function and reward.models must be set, got none$"),
    (
        {"path": "a", "function": "b.c"},
        ".*, got reward.path='a' and reward.function='b.c'; reward.path=null or reward.f",
    ),
    ({"path": "a", "models": {"b": B}}, r".* and reward.models=\['b'\]; reward.path=null or reward.models=\{\}"),
    ({"path": "a", "models": {"b": B}}, "exactly one of reward.path, reward.function and reward.models must be set"),
    ({"function": "b.c", "normalize": True}, "reward.normalize needs reward.path"),
    ({"models": {"b": B}, "normalize": True}, "reward.normalize needs reward.path"),
    ({"models": {"b": ScorerEntry()}}, "exactly one of reward.models.b.path and reward.models.b.function must be"),
    (
        {"models": {"b": ScorerEntry("a", "b.c")}},
        "exactly one of reward.models.b.path and reward.models.b.function",
    ),
    ({"models": {"b": ScorerEntry(function="b.c", normalize=True)}}, "reward.models.b.normalize needs reward.mode"),
    ({"models": {"b": ScorerEntry("a", weight=float("nan"))}}, "reward.models.b.weight must be finite, got nan"),
    ({"models": {"b c": B}}, "reward.models must have names without spaces and signs, got 'reward.models.b c'"),
    ({"path": "a", "safety_threshold": 0.2}, "reward.safety_threshold needs reward.combine=llama2, got 0.2"),
    ({**LLAMA2, "safety_threshold": 15.0}, r"reward.safety_threshold must be in \[0, 1\], got 15.0"),
    ({"path": "a", "combine": Combine.llama2}, r"reward.combine=llama2 needs .*helpfulness and safety.*, got \[\]"),
    ({**LLAMA2, "models": {**TWO, "b": B}}, "reward.combine=llama2 needs .*, got .*'b'"),
    (
        {**LLAMA2, "models": {**TWO, "safety": ScorerEntry("a", weight=2)}},
        "reward.models.safety.weight must be 1 w",
    ),
    (
        {**LLAMA2, "models": {**TWO, "safety": ScorerEntry("a", normalize=True)}},
        "reward.models.safety.normalize must be false with reward.combine=llama2",
    ),
    ({"path": "a", "clip": -1.0}, "reward.clip must be > 0, or null for no clipping, got -1.0"),
    ({**LLAMA2, "whiten": True}, "reward.whiten must be false with reward.combine=llama2"),
    ({"path": "a", "length_penalty": -1.0}, "reward.length_penalty must be >= 0, got -1.0"),
    ({"path": "a", "length_penalty": 1.0, "length_free": -1}, "reward.length_free must be >= 0, got -1"),
    ({"path": "a", "length_free": 3}, "reward.length_free needs reward.length_penalty, got 3"),
]

KL: list[tuple[dict[str, Any], str]] = [
    (
        {"place": KLPlace.loss},
        "kl.estimator must be k2 or k3 with kl.place=loss: the gradient of k1 is zero on average",
    ),
    ({"bias_correction": True}, "kl.bias_correction needs kl.place=loss, got True"),
    (
        {"place": KLPlace.loss, "estimator": KLEstimator.k2, "bias_correction": True},
        "kl.estimator must be k1 or k3 with kl.bias_correction: k2 is no KL on average, got 'k2'",
    ),
    (
        {"controller": KLControl.adaptive},
        "kl.target must be set, > 0 and finite, with kl.controller=adaptive, .*, got null",
    ),
    ({**ADAPTIVE, "target": 0.0}, "kl.target must be set, > 0 and finite, with kl.controller=adaptive, .*, got 0.0"),
    ({**ADAPTIVE, "target": math.inf}, "kl.target must be set, > 0 and finite, with .*, got inf"),
    ({"weight": math.inf}, "kl.weight must be >= 0 and finite, got inf"),
    ({"target": 6.0}, "kl.target must be set, .*, and only there, got 6.0"),
    ({**ADAPTIVE, "weight": 0.0}, "kl.weight must be > 0 with kl.controller=adaptive, got 0.0"),
    ({**ADAPTIVE, "horizon": 0}, "kl.horizon must be > 0, got 0"),
    ({"horizon": 500}, "kl.horizon needs kl.controller=adaptive, got 500"),
    ({"limit": 0.0}, "kl.limit must be > 0 and above kl.target, got 0.0"),
    ({**ADAPTIVE, "limit": 6.0}, "kl.limit must be > 0 and above kl.target, got 6.0"),
]


@pytest.mark.parametrize(("fields", "message"), REWARDS)
def test_a_reward_that_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        RewardShapingConfig(**fields)


@pytest.mark.parametrize(("fields", "message"), KL)
def test_a_kl_that_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        KLConfig(**fields)


def test_what_is_accepted() -> None:
    RewardShapingConfig(**LLAMA2, clip=3.0, length_penalty=0.1, length_free=5)
    RewardShapingConfig(models={"a": ScorerEntry("a", weight=-0.5, normalize=True), "b": B}, whiten=True)
    KLConfig(place=KLPlace.loss, estimator=KLEstimator.k3, **ADAPTIVE, limit=7.0)


def ppo(**fields: Any) -> PPOConfig:
    data = DataConfig(format=Format.toy, train=TrainSource(limit=5))
    model = ModelConfig(init={"model_type": "llama"})
    return PPOConfig(model=model, data=data, train=TrainConfig(max_steps=1), **fields)


def test_a_horizon_holds_an_iteration() -> None:
    kl = KLConfig(**ADAPTIVE, horizon=63)
    with pytest.raises(ConfigError, match=r"^kl.horizon must be >= batch.size \* num_samples \(64\), .*, got 63"):
        ppo(reward=RewardShapingConfig(path="a"), kl=kl)


@pytest.mark.parametrize("reward", [{"path": "a", "whiten": True}, LLAMA2])
def test_one_reply_cannot_be_whitened(reward: dict[str, Any]) -> None:
    config = ppo(reward=RewardShapingConfig(**reward))
    config.batch.size = 1
    with pytest.raises(ConfigError, match=r"^batch.size \* num_samples must be > 1 with reward.whiten or .*, got 1"):
        config.__post_init__()


def test_what_zero_3_cannot_do() -> None:
    config = ppo(reward=RewardShapingConfig(path="a"), distributed=DistributedConfig(zero=3))
    config.roles.offload = True
    with pytest.raises(ConfigError, match=r"^roles.offload must be false with distributed.zero=3, got True"):
        config.__post_init__()
    config.roles.offload, config.ppo.ema = False, 0.9
    config.__post_init__()
    config.distributed = DistributedConfig(zero=3, offload_param=Offload.nvme, nvme_path="fast")
    with pytest.raises(ConfigError, match=r"^ppo.ema must be null with distributed.offload_param=nvme, got 0.9"):
        config.__post_init__()


def test_inputs_within_a_mapping_are_found() -> None:
    config = ScorerConfig(models={"a": A, "b": B, "c": ScorerEntry("c")})
    assert list(input_paths(config)) == [("models.a.path", "a"), ("models.c.path", "c")]


TOYS = {"reward.function": {"reward": {"function": "alignment.toy.gold"}}, "gold": {"gold": "alignment.toy.gold"}}


@pytest.mark.parametrize("key", TOYS)
def test_the_toy_task_scores_its_own_questions_alone(key: str) -> None:
    """Wherever a function scores: on other rows its score would be a number that says nothing."""
    foreign = DataConfig(train=TrainSource(path="rows.jsonl"), eval=EvalSource(path="rows.jsonl"))
    own = DataConfig(format=Format.toy, train=TrainSource(limit=5), eval=EvalSource(limit=5))
    parts = TOYS[key]
    rule = rf"^{key}=alignment.toy.gold knows the toy task's questions alone .*: set {key} to null, or to"

    def made(data: DataConfig) -> None:
        reward = {"path": "folder"} | parts.get("reward", {})
        if "function" in reward:
            reward["path"] = None
        model = ModelConfig(init={"model_type": "llama"})
        shaping, gold = RewardShapingConfig(**reward), parts.get("gold")
        PPOConfig(model=model, data=data, train=TrainConfig(max_steps=1), reward=shaping, gold=gold)

    made(own)
    with pytest.raises(ConfigError, match=rule):
        made(foreign)


def test_the_toy_task_scores_no_foreign_rows_elsewhere_either() -> None:
    foreign, held_out = DataConfig(train=TrainSource(path="rows.jsonl")), DataConfig(eval=EvalSource(path="rows.jsonl"))
    model = ModelConfig(init={"model_type": "llama"})
    one = ScorerEntry(function="alignment.toy.gold")
    with pytest.raises(ConfigError, match=r"^reward.models.b.function=alignment.toy.gold knows the toy"):
        RejectionConfig(model=model, data=foreign, reward=ScorerConfig(models={"a": ScorerEntry("a"), "b": one}))
    with pytest.raises(ConfigError, match=r"^gold=alignment.toy.gold knows the toy"):
        EvaluateConfig(runs={"a": "a"}, baseline="a", data=held_out, gold="alignment.toy.gold", reward="b")
    EvaluateConfig(runs={"a": "a"}, baseline="a", data=held_out, gold="mine.gold")


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda inf: CriticConfig(learning_rate=inf), "critic.learning_rate must be > 0 and finite, got inf"),
        (lambda inf: GenerationConfig(temperature=inf), "generation.temperature must be > 0 and finite, got inf"),
        (lambda inf: ModelConfig(path="a", router_loss=inf), "model.router_loss must be >= 0 and finite, got inf"),
        (lambda inf: DistributedConfig(timeout_minutes=inf), "distributed.timeout_minutes must be > 0, .*, got inf"),
    ],
)
def test_what_is_multiplied_or_waited_for_has_an_end(build: Callable[[float], object], said: str) -> None:
    with pytest.raises(ConfigError, match=f"^{said}$"):
        build(math.inf)
