"""What a reply is worth to GRPO and RLOO is TRL's: the same replies, scores and weights, and its own code makes the
advantages. Its generation alone is replaced, by replies that are given.

Ours come from scores to tokens as a run has them: `shape_scores`, then `make_experience`. To the deviation TRL adds
1e-4 and a run of ours 1e-6, as verl does: the scores of a run are large here, and small ones are compared with TRL's
constant. Its scale_rewards=batch is `reward.whiten` before dr_grpo. It has no REINFORCE++, which test_verl.py has; we
have no normalize_advantages of RLOO, which counts each reply once where `advantage.whiten` counts each token.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from alignment.config.batch import BatchConfig, Layout
from alignment.config.data import DataConfig, Format, TrainSource
from alignment.config.distributed import Device, DistributedConfig
from alignment.config.generation import GenerationConfig
from alignment.config.model import ModelConfig
from alignment.config.ppo import AdvantageConfig, AdvantageEstimator, KLConfig, KLPlace, PPOUpdateConfig
from alignment.config.reward import RewardShapingConfig
from alignment.config.tasks import PPOConfig
from alignment.config.train import TrainConfig
from alignment.data.batches import Packer
from alignment.distributed.engine import TorchEngine
from alignment.distributed.placement import WHOLE
from alignment.generation.samples import Samples
from alignment.losses import KLEstimator, grpo_advantages
from alignment.models.load import load_language_model
from alignment.rl.experience import make_experience
from alignment.rl.reference import FrozenCopy
from alignment.rl.rewards import shape_scores
from alignment.rl.roles import PPORoles

TEMPERATURE, BETA, TOLERANCE = 0.7, 0.3, 1e-5
TEXTS = [["a", "bbb", "CCCCCC"], ["d", "ee", "fffff"], ["g", "h", "iiii"], ["jj", "k", "LLL"]]
SCORES = torch.tensor([[1.0, -2.0, 2.5], [0.5, 3.0, 0.25], [-1.5, -1.5, -1.5], [4.0, -3.0, 0.0]])  # the third: alike
SamplesOf = Callable[[list[list[str]]], Samples]


def ppo_config(tiny_init: dict[str, Any], estimator: str, kl: KLConfig, **reward: Any) -> PPOConfig:
    """Small micro-batches in two mini-batches, so that the replies are cut and shuffled."""
    return PPOConfig(
        model=ModelConfig(init=tiny_init),
        data=DataConfig(format=Format.toy, train=TrainSource(limit=4)),
        batch=BatchConfig(size=4, max_tokens=40, layout=Layout.shared),
        train=TrainConfig(max_steps=1),
        reward=RewardShapingConfig(function="alignment.toy.gold", **reward),
        num_samples=3,
        ppo=PPOUpdateConfig(mini_batches=2),
        advantage=AdvantageConfig(estimator=AdvantageEstimator(estimator)),
        kl=kl,
        generation=GenerationConfig(temperature=TEMPERATURE),
        distributed=DistributedConfig(device=Device.cpu),
    )


def policy_and_reference(config: PPOConfig, tokenizer: PreTrainedTokenizerBase) -> tuple[Any, Any]:
    """The one has gone on from the other."""
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        models.append(load_language_model(config.model, tokenizer, WHOLE))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in models[0].parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return models[0], models[1]


def ours(models: tuple[Any, Any], samples: Samples, scores: Tensor, config: PPOConfig, engine: TorchEngine) -> Tensor:
    """[G, n]; all tokens of a reply have its reply's."""
    roles = PPORoles(engine, None, FrozenCopy(models[1]))
    shaped = shape_scores(scores, samples, config)
    mini_batches, _ = make_experience(
        roles, samples, shaped, config, kl_weight=config.kl.weight, packer=Packer(config.batch, 0), seed=0
    )
    found = torch.full(scores.shape, torch.nan)
    for piece in (piece for mini_batch in mini_batches for piece in mini_batch):
        of_replies = [tokens.unique() for tokens in piece.advantages.split(piece.batch.lengths.tolist())]
        assert all(len(each) == 1 for each in of_replies)
        found[piece.batch.rows] = torch.cat(of_replies).view(-1, scores.shape[1])
    return found


def theirs(
    kind: Any,
    models: tuple[Any, Any],
    samples: Samples,
    scores: Tensor,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    **settings: Any,
) -> Tensor:
    """[G, n], as TRL's trainer makes them of the replies that it believes it has drawn. Where its `beta` is above 0 it
    loads the reference itself, from where the policy's config says that it is from."""
    worth = {str(place): score for place, score in enumerate(scores.flatten().tolist())}
    config = RLOOConfig if kind is RLOOTrainer else GRPOConfig
    models[1].hf.save_pretrained(folder / "reference")
    models[0].hf.config._name_or_path = str(folder / "reference")
    trainer = kind(
        model=models[0].hf,
        reward_funcs=lambda completions, **_: [worth[text] for text in completions],
        args=config(
            output_dir=str(folder),
            per_device_train_batch_size=scores.numel(),
            num_generations=scores.shape[1],
            temperature=TEMPERATURE,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
            **settings,
        ),
        train_dataset=Dataset.from_list([{"prompt": "a"}] * len(scores)),
        processing_class=tokenizer,
    )
    prompts = [row.prompt_ids.tolist() for row in samples.examples for _ in row.completion_ids]
    replies = [ids.tolist() for row in samples.examples for ids in row.completion_ids]
    drawn = (prompts, replies, list(worth)) if kind is RLOOTrainer else (prompts, replies, None, list(worth))
    trainer._generate = lambda _: drawn if kind is RLOOTrainer else (*drawn, None, {}, None, [])
    models[0].hf.train()
    made = trainer._generate_and_score_completions([{"prompt": "a"}] * scores.numel())
    assert made["completion_mask"].sum().item() == np.concatenate(replies).size
    return made["advantages"].view_as(scores)


def assert_same(found: Tensor, wanted: Tensor) -> None:
    assert wanted.abs().max() > 0.5
    torch.testing.assert_close(found, wanted, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("scale_rewards", "estimator", "reward"),
    [("group", "grpo", {}), ("none", "dr_grpo", {}), ("batch", "dr_grpo", {"whiten": True})],
)
@pytest.mark.parametrize("beta", [0.0, BETA])
def test_grpo(
    scale_rewards: str,
    estimator: str,
    reward: dict[str, Any],
    beta: float,
    tiny_init: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    samples_of: SamplesOf,
    engine_of: Callable[..., TorchEngine],
    tmp_path: Path,
) -> None:
    """The KL is in the loss, and leaves the advantages alone."""
    kl = KLConfig(weight=beta, place=KLPlace.loss, estimator=KLEstimator.k3)
    config, samples, scores = ppo_config(tiny_init, estimator, kl, **reward), samples_of(TEXTS), 100 * SCORES
    models = policy_and_reference(config, tokenizer)
    settings = {"beta": beta, "scale_rewards": scale_rewards}
    wanted = theirs(GRPOTrainer, models, samples, scores, tokenizer, tmp_path, **settings)
    found = ours(models, samples, scores, config, engine_of(models[0]))
    assert_same(found, wanted)


def test_grpo_of_small_scores_with_trl_s_constant(
    tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, samples_of: SamplesOf, tmp_path: Path
) -> None:
    scores = SCORES / 1000
    models = policy_and_reference(ppo_config(tiny_init, "grpo", KLConfig()), tokenizer)
    settings = {"beta": 0.0, "scale_rewards": "group"}
    wanted = theirs(GRPOTrainer, models, samples_of(TEXTS), scores, tokenizer, tmp_path, **settings)
    assert_same(grpo_advantages(scores, eps=1e-4), wanted)
    assert (grpo_advantages(scores) - wanted).abs().max() > 100 * TOLERANCE


@pytest.mark.parametrize("clip", [None, 2.0])
@pytest.mark.parametrize("beta", [0.0, BETA])
def test_rloo(
    beta: float,
    clip: float | None,
    tiny_init: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    samples_of: SamplesOf,
    engine_of: Callable[..., TorchEngine],
    tmp_path: Path,
) -> None:
    """The KL of a whole reply is taken off its score, once that has been clipped; also where the scores are alike."""
    config, samples = ppo_config(tiny_init, "rloo", KLConfig(weight=beta), clip=clip), samples_of(TEXTS)
    models = policy_and_reference(config, tokenizer)
    settings = {"beta": beta, "reward_clip_range": None if clip is None else (-clip, clip)}
    wanted = theirs(RLOOTrainer, models, samples, SCORES, tokenizer, tmp_path, **settings)
    found = ours(models, samples, SCORES, config, engine_of(models[0]))
    assert_same(found, wanted)
    assert (wanted[2].abs().max() > 0.1) == (beta > 0)
    if beta:
        without = ours(models, samples, SCORES, replace(config, kl=KLConfig(weight=0.0)), engine_of(models[0]))
        assert (found - without).abs().max() > 0.1
