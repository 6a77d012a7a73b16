"""learn, by plain gradient descent: PPO-ptx, the critic's warm-up, the actor's early end, a constant length."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from alignment.config.batch import Layout
from alignment.config.data import DataConfig, Format, TrainSource
from alignment.config.distributed import Device, DistributedConfig
from alignment.config.generation import GenerationConfig
from alignment.config.model import ModelConfig
from alignment.config.online import PPOConfig
from alignment.config.ppo import PPOLosses, PPOUpdateConfig
from alignment.config.reward import RewardShapingConfig
from alignment.config.train import TrainConfig
from alignment.data.pack import pack
from alignment.data.tokenize import Example
from alignment.distributed.engine import TorchEngine
from alignment.losses import CrossEntropyLoss, Normalization, PolicyLoss
from alignment.models.readout import token_logprobs
from alignment.rl.experience import Experience
from alignment.rl.objectives import Actor
from alignment.rl.update import actor_objective, update_actor_and_critic
from alignment.training.objectives import SFT
from alignment.training.step import Term, train_step

TEMPERATURE, CLIP, GAMMA = 0.7, 0.2, 0.3
PROMPTS = [[0, 1], [2]]  # one mini-batch in two micro-batches of 12 tokens and 6
TEXTS = [[3], [4, 5]]  # of other lengths


def ppo_config(tiny_init: dict[str, Any], **inner: Any) -> PPOConfig:
    return PPOConfig(
        model=ModelConfig(init=tiny_init),
        data=DataConfig(format=Format.toy, train=TrainSource(limit=5)),
        train=TrainConfig(max_steps=1),
        reward=RewardShapingConfig(function="alignment.toy.gold"),
        ppo=PPOUpdateConfig(**inner),
        generation=GenerationConfig(temperature=TEMPERATURE),
        distributed=DistributedConfig(device=Device.cpu),
    )


def of(rows: list[Example], cut: list[list[int]]) -> list[Any]:
    return [pack([rows[i] for i in piece], piece, layout=Layout.shared, pad_id=0) for piece in cut]


@torch.no_grad()
def experiences(actor: TorchEngine, rows: list[Example]) -> list[Experience]:
    """Of the actor as it is, and a little beside it, so that some tokens are clipped and some are not."""
    made = []
    for seed, batch in enumerate(of(rows, PROMPTS)):
        noise = torch.randn(4, batch.num_tokens, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        now = token_logprobs(actor.model, batch, temperature=TEMPERATURE)
        made.append(Experience(batch, now + 0.4 * noise[0], now, noise[2], noise[1], noise[3]))
    return made


def moved(engine: TorchEngine, before: dict[str, Tensor]) -> dict[str, Tensor]:
    """What plain descent of rate 1 took off the weights: the gradient."""
    return {name: before[name] - p.detach() for name, p in engine.model.named_parameters()}


def weights(engine: TorchEngine) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in engine.model.named_parameters()}


def test_ptx_adds_its_weight_times_the_cross_entropy_of_the_other_texts(
    descent: Callable[..., TorchEngine], demonstrations: list[Example], tiny_init: dict[str, Any]
) -> None:
    """Ouyang et al. 2203.02155, eq. 2: objective(phi) = E_pi[...] + gamma E_pretrain[log pi_phi(x)], by hand."""
    actor = descent()
    made, texts = experiences(actor, demonstrations), of(demonstrations, TEXTS)
    surrogate, likelihood = [], []
    for experience in made:
        logprobs = token_logprobs(actor.model, experience.batch, temperature=TEMPERATURE).double()
        ratio = (logprobs - experience.old_logprobs).exp()
        cut = ratio.clamp(1 - CLIP, 1 + CLIP)
        surrogate.append(torch.minimum(ratio * experience.advantages, cut * experience.advantages))
        assert 0 < (cut != ratio).sum() < len(ratio)
    for batch in texts:
        likelihood.append(token_logprobs(actor.model, batch).double())
    policy, pretrain = torch.cat(surrogate).mean(), torch.cat(likelihood).mean()
    parameters = list(actor.model.parameters())
    of_policy, of_texts = (torch.autograd.grad(-x, parameters) for x in (policy, pretrain))
    of_both = [one + GAMMA * other for one, other in zip(of_policy, of_texts, strict=True)]

    before = weights(actor)
    term = Term("ptx", SFT(CrossEntropyLoss()), texts, GAMMA)
    metrics = train_step(actor, Actor(ppo_config(tiny_init).loss.policy, TEMPERATURE), made, beside=term).means()
    assert metrics["loss"] == pytest.approx(-policy.item(), rel=1e-6)
    assert metrics["ptx/loss"] == pytest.approx(-pretrain.item(), rel=1e-6)
    steps = moved(actor, before)
    for (name, step), alone, both in zip(steps.items(), of_policy, of_both, strict=True):
        torch.testing.assert_close(step, both, rtol=1e-5, atol=1e-8, msg=name)
        assert (step - alone).abs().max() > 1e-6, name
    norm = torch.stack([g.square().sum() for g in of_both]).sum().sqrt().item()
    assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-5)  # clipping is of both together


def test_ptx_is_asked_for_each_of_the_actor_s_steps(
    descent: Callable[..., TorchEngine], demonstrations: list[Example], tiny_init: dict[str, Any]
) -> None:
    actor, critic = descent(max_grad_norm=1e-3), descent("scalar", max_grad_norm=1e-3)
    made, asked = experiences(actor, demonstrations), []

    def term(inner: int) -> Term:
        asked.append(inner)
        return Term("ptx", SFT(CrossEntropyLoss()), of(demonstrations, [[inner]]), GAMMA)

    config = ppo_config(tiny_init, epochs=2, mini_batches=2)
    metrics = update_actor_and_critic(actor, critic, [[each] for each in made], config, kl_weight=0.0, seed=0, ptx=term)
    assert asked == [0, 1, 2, 3]
    tokens = sum(len(demonstrations[row].completion_ids[0]) for row in asked)
    assert metrics["ptx/loss"].count.item() == tokens


def test_while_the_critic_warms_up_the_actor_does_not_move_by_a_bit(
    descent: Callable[..., TorchEngine], demonstrations: list[Example], tiny_init: dict[str, Any]
) -> None:
    actor, critic = descent(max_grad_norm=1e-3), descent("scalar", max_grad_norm=1e-3)
    made, config = experiences(actor, demonstrations), ppo_config(tiny_init, epochs=3)
    before = weights(actor), weights(critic)
    metrics = update_actor_and_critic(actor, critic, [made], config, kl_weight=0.0, seed=0, actor_learns=False)
    assert all(torch.equal(p, before[0][name]) for name, p in actor.model.named_parameters())
    assert any(step.abs().max() > 1e-6 for step in moved(critic, before[1]).values())
    assert metrics["value/grad_norm"].count.item() == 3
    assert metrics.means()["policy/steps"] == 0 and not {"loss", "grad_norm", "policy/ratio"} & metrics.keys()
    metrics = update_actor_and_critic(actor, critic, [made], config, kl_weight=0.0, seed=0)
    assert any(step.abs().max() > 1e-6 for step in moved(actor, before[0]).values())
    assert metrics.means()["policy/steps"] == 3 == metrics["grad_norm"].count.item()


def test_the_actor_stops_after_the_step_that_measured_too_much_kl_and_the_critic_goes_on(
    descent: Callable[..., TorchEngine], demonstrations: list[Example], tiny_init: dict[str, Any]
) -> None:
    def learned(max_kl: float | None) -> tuple[int, int, int]:
        actor, critic = descent(max_grad_norm=0.05), descent("scalar", max_grad_norm=0.05)
        made = experiences(actor, demonstrations)
        config = ppo_config(tiny_init, epochs=6, max_kl=max_kl)
        metrics = update_actor_and_critic(actor, critic, [made], config, kl_weight=0.0, seed=0)
        steps = int(metrics.means()["policy/steps"])
        return steps, int(metrics["grad_norm"].count), int(metrics["value/grad_norm"].count)

    actor = descent(max_grad_norm=0.05)
    made, objective = experiences(actor, demonstrations), Actor(ppo_config(tiny_init).loss.policy, TEMPERATURE)
    kls = [train_step(actor, objective, made).means()["policy/approx_kl"] for _ in range(6)]
    highest = max(range(6), key=lambda step: kls[step])
    limits = {step: max(kls[:step]) * 1.0001 for step in range(1, 6) if kls[step] > max(kls[:step]) * 1.001}
    assert limits, kls
    for step, limit in limits.items():  # crossed at inner step `step`, from 0, which is the last one taken
        assert learned(limit) == (step + 1, step + 1, 6)
    assert learned(kls[0] / 2) == (1, 1, 6)
    assert learned(kls[highest] * 1.001) == (6, 6, 6)
    assert learned(None) == (6, 6, 6)


@pytest.mark.parametrize(("length", "divisor"), [(None, 30), (7, 7)])
def test_a_constant_length_is_the_longest_that_a_reply_can_be_unless_it_is_given(
    descent: Callable[..., TorchEngine],
    demonstrations: list[Example],
    tiny_init: dict[str, Any],
    length: int | None,
    divisor: int,
) -> None:
    """Where the policy is the one that acted the loss is the advantages' sum over replies times length, by hand."""
    actor = descent()
    config = replace(
        ppo_config(tiny_init),
        loss=PPOLosses(policy=PolicyLoss(normalization=Normalization.constant, length=length)),
        generation=GenerationConfig(temperature=TEMPERATURE, max_new_tokens=30),
    )
    made = [replace(each, old_logprobs=each.ref_logprobs) for each in experiences(actor, demonstrations)]
    losses = [actor_objective(config, 0.0)(actor.model, each).loss for each in made]
    loss = sum(each.total.item() for each in losses) / sum(each.count.item() for each in losses)
    advantages = sum(each.advantages.sum().item() for each in made)
    assert loss == pytest.approx(-advantages / (3 * divisor), rel=1e-6)
