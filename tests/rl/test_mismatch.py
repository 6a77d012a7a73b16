"""Replies that another engine drew: how far it is from the trainer, and advantages weighed by it."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from alignment.config.batch import BatchConfig, Layout
from alignment.config.errors import ConfigError
from alignment.config.generation import Generation, GenerationConfig
from alignment.config.ppo import PPOUpdateConfig
from alignment.data.batches import Packer
from alignment.generation.samples import Samples
from alignment.rl.mismatch import measured_mismatch
from tests.rl.test_experience import TEXTS, SamplesOf, build_roles, made, of_replies, ppo_config

OFF = {(row, k): 0.1 * (row + 1) * (-1) ** k for row in range(5) for k in range(2)}  # nats, of a reply's every token


def drawn_elsewhere(samples: Samples, logprobs: dict[tuple[int, int], Any]) -> Samples:
    """By an engine whose log-prob of each token is the trainer's and OFF."""
    replies = [
        [replace(reply, drawn_logprobs=(logprobs[row, k] + OFF[row, k]).numpy()) for k, reply in enumerate(of_prompt)]
        for row, of_prompt in enumerate(samples.replies)
    ]
    return replace(samples, replies=replies)


def off_of(metrics: Any, tokens: dict[tuple[int, int], int]) -> None:
    """What OFF comes to over replies of so many tokens."""
    total = sum(tokens.values())
    means = {name: (mean.total / mean.count).item() for name, mean in metrics.items()}
    assert metrics["generation/mismatch"].count.item() == total
    wanted = sum(abs(OFF[key]) * count for key, count in tokens.items()) / total
    assert means["generation/mismatch"] == pytest.approx(wanted, rel=1e-4)
    assert means["generation/mismatch_max"] == pytest.approx(0.5, rel=1e-4)
    kl = sum((math.expm1(-OFF[key]) + OFF[key]) * count for key, count in tokens.items()) / total
    assert means["generation/mismatch_kl"] == pytest.approx(kl, rel=1e-3)


@pytest.mark.parametrize("clip", [0.0, math.inf, math.nan])
def test_a_bound_of_weights_is_a_positive_number(clip: float) -> None:
    with pytest.raises(ConfigError, match=r"^ppo.importance_clip must be > 0 and finite, or null to"):
        PPOUpdateConfig(importance_clip=clip)


@pytest.mark.parametrize("clip", [None, 1.2])
def test_tokens_are_measured_and_weighed(
    tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, samples_of: SamplesOf, clip: float | None
) -> None:
    config = ppo_config(
        tiny_init,
        generation=GenerationConfig(temperature=0.8, engine=Generation.vllm),
        ppo=PPOUpdateConfig(epochs=2, mini_batches=2, importance_clip=clip),
    )
    roles, samples = build_roles(config, tokenizer), samples_of(TEXTS)
    plain, without = made(roles, samples, config)
    assert not any(name.startswith("generation/mismatch") for name in without)
    old, advantages = of_replies(plain, "old_logprobs"), of_replies(plain, "advantages")

    mini_batches, metrics = made(roles, drawn_elsewhere(samples, old), config)
    found, returns = of_replies(mini_batches, "advantages"), of_replies(mini_batches, "returns")
    for key, off in OFF.items():
        weight = 1.0 if clip is None else min(math.exp(-off), clip)
        torch.testing.assert_close(found[key], advantages[key] * weight, rtol=1e-5, atol=1e-6)
        assert torch.equal(returns[key], of_replies(plain, "returns")[key])
    off_of(metrics, {key: len(values) for key, values in old.items()})


@pytest.mark.parametrize("layout", [Layout.shared, Layout.separate])
def test_all_replies_are_measured_where_learning_reads_them_otherwise(
    tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, samples_of: SamplesOf, layout: Layout
) -> None:
    """At the temperature that they were drawn at, in any layout; nothing of replies that the model itself drew."""
    batch = BatchConfig(size=5, max_tokens=40, layout=layout)
    config = ppo_config(tiny_init, batch=batch, generation=GenerationConfig(temperature=0.8, engine=Generation.vllm))
    roles, samples, packer = build_roles(config, tokenizer), samples_of(TEXTS), Packer(config.batch, 0)
    old = of_replies(made(roles, samples, config)[0], "old_logprobs")
    assert measured_mismatch(roles.actor, samples, packer, temperature=0.8) == {}
    metrics = measured_mismatch(roles.actor, drawn_elsewhere(samples, old), packer, temperature=0.8)
    off_of(metrics, {key: len(values) for key, values in old.items()})
