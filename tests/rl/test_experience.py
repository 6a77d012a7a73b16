"""What PPO learns from, complete when born; and its first inner step, where the policy is still the one that acted."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from alignment.config.batch import BatchConfig, Layout
from alignment.config.data import DataConfig, Format, TrainSource
from alignment.config.distributed import Device, DistributedConfig, Precision
from alignment.config.errors import UserError
from alignment.config.generation import GenerationConfig
from alignment.config.model import LoraConfig, ModelConfig
from alignment.config.online import PPOConfig
from alignment.config.ppo import (
    AdvantageConfig,
    AdvantageEstimator,
    CriticConfig,
    KLConfig,
    KLPlace,
    PPOLosses,
    PPOUpdateConfig,
)
from alignment.config.reward import RewardShapingConfig
from alignment.config.train import TrainConfig
from alignment.data.batches import Packer
from alignment.distributed.engine import TorchEngine
from alignment.distributed.placement import WHOLE
from alignment.generation.samples import Samples
from alignment.losses import (
    KLEstimator,
    Normalization,
    PolicyLoss,
    dr_grpo_advantages,
    grpo_advantages,
    kl_estimate,
    rloo_advantages,
)
from alignment.models.load import load_critic, load_language_model
from alignment.models.readout import token_logprobs
from alignment.rl import experience as module
from alignment.rl.experience import Experience, count_nonfinite, make_experience, mini_batch_rows
from alignment.rl.objectives import Actor, Critic
from alignment.rl.reference import build_reference
from alignment.rl.roles import PPORoles
from alignment.rl.update import actor_objective, update_actor_and_critic
from alignment.training.optim import build_optimizer
from alignment.training.step import train_step

SamplesOf = Callable[[list[list[str]]], Samples]
TEXTS = [["a", "bbb"], ["CCCCCC", "d"], ["ee", "fffff"], ["g", "h"], ["iiii", "jj"]]
SCORES = torch.tensor([[1.0, -2.0], [0.5, 3.0], [-1.0, 2.0], [0.0, 1.0], [4.0, -3.0]])


def ppo_config(tiny_init: dict[str, Any], **parts: Any) -> PPOConfig:
    settings: dict[str, Any] = {
        "model": ModelConfig(init=tiny_init),
        "data": DataConfig(format=Format.toy, train=TrainSource(limit=5)),
        "batch": BatchConfig(size=5, max_tokens=40, layout=Layout.shared),
        "train": TrainConfig(max_steps=1, learning_rate=0.01),
        "reward": RewardShapingConfig(function="alignment.toy.gold"),
        "critic": CriticConfig(learning_rate=0.01),
        "num_samples": 2,
        "ppo": PPOUpdateConfig(epochs=2, mini_batches=2),
        "advantage": AdvantageConfig(gamma=1.0, lam=0.95),
        "generation": GenerationConfig(temperature=0.8),
        "distributed": DistributedConfig(device=Device.cpu),
    }
    return PPOConfig(**settings | parts)


def build_roles(config: PPOConfig, tokenizer: PreTrainedTokenizerBase) -> PPORoles:
    torch.manual_seed(0)
    policy = load_language_model(config.model, tokenizer, WHOLE)
    reference = build_reference(policy)
    critic = load_critic(None, config.model, policy, tokenizer)

    def engine(model: Any) -> TorchEngine:
        optimizer, scheduler = build_optimizer(model, config.train, num_steps=4, learning_rate=0.01)
        return TorchEngine(model, optimizer, scheduler, config=config.distributed, max_grad_norm=1.0)

    return PPORoles(engine(policy), engine(critic), reference)


def move(roles: PPORoles) -> None:
    """Take the policy away from its reference."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in roles.actor.model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))


def made(roles: PPORoles, samples: Samples, config: PPOConfig, seed: int = 0) -> tuple[list[list[Experience]], Any]:
    return make_experience(roles, samples, SCORES, config, kl_weight=0.3, packer=Packer(config.batch, 0), seed=seed)


def of_replies(mini_batches: list[list[Experience]], name: str) -> dict[tuple[int, int], Tensor]:
    """(prompt, reply) -> the tokens' old_logprobs, values, advantages or returns."""
    found = {}
    for experience in (piece for mini_batch in mini_batches for piece in mini_batch):
        pieces = getattr(experience, name).split(experience.batch.lengths.tolist())
        keys = [(row, k) for row in experience.batch.rows.tolist() for k in range(2)]
        assert not found.keys() & set(keys)
        found |= dict(zip(keys, pieces, strict=True))
    return found


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bfloat16": {"distributed": DistributedConfig(device=Device.cpu, precision=Precision.bfloat16)},
    "separate rows": {"batch": BatchConfig(size=5, max_tokens=40, layout=Layout.separate)},
    "adapter": {"lora": LoraConfig(rank=4)},
    "checkpointed": {"gradient_checkpointing": True},
    "dropout in the model's config": {"attention_dropout": 0.5},
}


def variant(tiny_init: dict[str, Any], name: str) -> PPOConfig:
    parts = dict(VARIANTS[name])
    init = tiny_init | {"attention_dropout": parts.pop("attention_dropout", 0.0)}
    of_model = {key: parts.pop(key) for key in ("lora", "gradient_checkpointing") if key in parts}
    return ppo_config(init, model=ModelConfig(init=init, **of_model), **parts)


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("name", VARIANTS)
def test_first_inner_step_has_ratio_one_and_no_kl(
    tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, samples_of: SamplesOf, name: str, mode: str
) -> None:
    """Bit for bit, in whatever mode generation left the models; and the first iteration is at its reference."""
    config = variant(tiny_init, name)
    roles = build_roles(config, tokenizer)
    for engine in (roles.actor, roles.critic):
        engine.model.train(mode == "train")
    mini_batches, metrics = made(roles, samples_of(TEXTS), config)
    assert metrics["kl"].total.item() == 0.0 and metrics["kl"].count.item() == 10
    assert len(mini_batches) == 2 and sum(map(len, mini_batches)) > 2
    actor, critic = Actor(config.loss.policy, 0.8), Critic(config.loss.value)
    roles.actor.model.train()
    roles.critic.model.train()
    for experience in (piece for mini_batch in mini_batches for piece in mini_batch):
        with roles.actor.precision():
            now = token_logprobs(roles.actor.model, experience.batch, temperature=0.8)
            output = actor(roles.actor.model, experience)
        assert torch.equal(now, experience.old_logprobs)
        assert output.metrics["policy/ratio"].total.item() == experience.num_tokens
        assert output.metrics["policy/clip_fraction"].total.item() == 0
        assert output.metrics["policy/approx_kl"].total.item() == 0
        with roles.critic.precision():
            value = critic(roles.critic.model, experience)
        assert value.metrics["value/drift"].total.item() == value.metrics["value/clip_fraction"].total.item() == 0


@pytest.mark.parametrize("estimator", list(KLEstimator))
def test_returns_add_up_to_the_score_less_its_kl(
    tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, samples_of: SamplesOf, estimator: KLEstimator
) -> None:
    """With gamma = lam = 1 the return of a token is the sum of the rewards from it on."""
    advantage = AdvantageConfig(gamma=1.0, lam=1.0, whiten=False)
    config = ppo_config(tiny_init, advantage=advantage, kl=KLConfig(estimator=estimator))
    roles = build_roles(config, tokenizer)
    move(roles)
    mini_batches, metrics = made(roles, samples_of(TEXTS), config)
    returns, kls = of_replies(mini_batches, "returns"), {}
    log_ratios = []
    for experience in (piece for mini_batch in mini_batches for piece in mini_batch):
        reference = roles.reference.logprobs(experience.batch, 0.8)
        kl = kl_estimate(experience.old_logprobs, reference, estimator).split(experience.batch.lengths.tolist())
        keys = [(row, k) for row in experience.batch.rows.tolist() for k in range(2)]
        kls |= dict(zip(keys, kl, strict=True))
        log_ratios.append(experience.batch.sum_by_completion(experience.old_logprobs - reference))
        torch.testing.assert_close(experience.advantages + experience.values, experience.returns)
    assert len(returns) == 10
    for (row, k), found in returns.items():
        left = kls[row, k].flip(0).cumsum(0).flip(0)  # of this token and those after it
        torch.testing.assert_close(found, SCORES[row, k] - 0.3 * left, rtol=1e-5, atol=1e-5)
        assert left.abs().max() > 1e-3
        torch.testing.assert_close(experience.ref_logprobs, reference)
    assert metrics["kl"].mean().item() == pytest.approx(torch.cat(log_ratios).mean().item(), rel=1e-5)
    found = metrics.means()
    penalty = -0.3 * sum(kl.sum().item() for kl in kls.values()) / 10
    assert found["objective/scores"] == pytest.approx(SCORES.mean().item())
    assert found["objective/non_score_reward"] == pytest.approx(penalty, rel=1e-4)
    assert found["objective/rlhf_reward"] == pytest.approx(SCORES.mean().item() + penalty, rel=1e-4)


def test_advantages_by_hand(
    tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, samples_of: SamplesOf
) -> None:
    """At the reference the only reward is the score, at the last token: A_t = sum (gamma lam)^k delta_{t+k}."""
    config = ppo_config(tiny_init, advantage=AdvantageConfig(gamma=0.9, lam=0.7, whiten=False))
    roles = build_roles(config, tokenizer)
    mini_batches, _ = made(roles, samples_of(TEXTS), config)
    values, advantages = of_replies(mini_batches, "values"), of_replies(mini_batches, "advantages")
    for (row, k), found in advantages.items():
        value = [*values[row, k].tolist(), 0.0]
        rewards = [0.0] * (len(value) - 2) + [SCORES[row, k].item()]
        deltas = [r + 0.9 * value[t + 1] - value[t] for t, r in enumerate(rewards)]
        want = [sum((0.9 * 0.7) ** (s - t) * deltas[s] for s in range(t, len(deltas))) for t in range(len(deltas))]
        assert found.tolist() == pytest.approx(want, rel=1e-4, abs=1e-5)


def test_whitening_is_over_the_whole_iteration(
    tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, samples_of: SamplesOf
) -> None:
    config = ppo_config(tiny_init)
    raw = ppo_config(tiny_init, advantage=AdvantageConfig(gamma=1.0, lam=0.95, whiten=False))
    roles = build_roles(config, tokenizer)
    white, _ = made(roles, samples_of(TEXTS), config)
    plain, _ = made(roles, samples_of(TEXTS), raw)
    everything = torch.cat(list(of_replies(white, "advantages").values()))
    assert everything.mean().item() == pytest.approx(0.0, abs=1e-5)
    assert everything.std().item() == pytest.approx(1.0, rel=1e-4)
    before = torch.cat(list(of_replies(plain, "advantages").values()))
    torch.testing.assert_close(everything, (before - before.mean()) / before.std(), rtol=1e-4, atol=1e-5)
    assert all(abs(torch.cat([e.advantages for e in mini_batch]).mean().item()) > 1e-3 for mini_batch in white)
    for key, returns in of_replies(white, "returns").items():
        torch.testing.assert_close(returns, of_replies(plain, "returns")[key])


def test_mini_batches_share_out_the_prompts(
    tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, samples_of: SamplesOf
) -> None:
    config = ppo_config(tiny_init, ppo=PPOUpdateConfig(epochs=1, mini_batches=3))
    roles = build_roles(config, tokenizer)

    def rows(seed: int) -> list[list[int]]:
        mini_batches, _ = made(roles, samples_of(TEXTS), config, seed)
        return [sorted(row for e in mini_batch for row in e.batch.rows.tolist()) for mini_batch in mini_batches]

    assert sorted(row for mini_batch in rows(0) for row in mini_batch) == [0, 1, 2, 3, 4]
    assert sorted(map(len, rows(0))) == [1, 2, 2]
    assert rows(0) == rows(0)
    assert len({str(rows(seed)) for seed in range(5)}) > 1


def test_learning_steps_and_names(
    tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, samples_of: SamplesOf
) -> None:
    """epochs * mini_batches steps of each; the loss of the critic goes down; nothing is called by two names."""
    config = ppo_config(tiny_init, ppo=PPOUpdateConfig(epochs=8, mini_batches=2))
    roles = build_roles(config, tokenizer)
    mini_batches, _ = made(roles, samples_of(TEXTS), config)
    metrics = update_actor_and_critic(roles.actor, roles.critic, mini_batches, config, kl_weight=0.3, seed=0)
    assert metrics["grad_norm"].count.item() == metrics["value/grad_norm"].count.item() == 16
    tokens = sum(len(ids) for example in samples_of(TEXTS).examples for ids in example.completion_ids)
    assert metrics["loss"].count.item() == metrics["value/loss"].count.item() == 8 * tokens
    again = update_actor_and_critic(roles.actor, roles.critic, mini_batches, config, kl_weight=0.3, seed=1)
    assert again.means()["value/error"] < metrics.means()["value/error"]
    assert metrics.means()["policy/ratio"] != 1.0


def test_first_policy_gradient_is_that_of_the_advantages(
    tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, samples_of: SamplesOf
) -> None:
    """At ratio 1 the clipped loss is minus the mean advantage, which whitening over all mini-batches makes 0."""
    config = ppo_config(tiny_init, ppo=PPOUpdateConfig(epochs=1, mini_batches=1))
    roles = build_roles(config, tokenizer)
    mini_batches, _ = made(roles, samples_of(TEXTS), config)
    metrics = train_step(roles.actor, Actor(config.loss.policy, 0.8), mini_batches[0])
    assert metrics.means()["loss"] == pytest.approx(0.0, abs=1e-6)
    assert metrics.means()["grad_norm"] > 1e-2


def test_a_broken_advantage_stops_the_actor_s_step_and_not_the_critic_s(
    tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, samples_of: SamplesOf
) -> None:
    config = ppo_config(tiny_init, ppo=PPOUpdateConfig(epochs=2, mini_batches=1))
    roles = build_roles(config, tokenizer)
    mini_batches, _ = made(roles, samples_of(TEXTS), config)
    mini_batches[0][0].advantages[0] = float("nan")
    before = [p.detach().clone() for p in roles.actor.model.parameters()]
    told: list[Any] = []
    metrics = update_actor_and_critic(
        roles.actor, roles.critic, mini_batches, config, kl_weight=0.1, seed=0, on_nonfinite=told.append
    )
    assert [broken.objective for broken in told] == ["Actor", "Actor"]
    assert "loss" not in metrics and metrics["value/grad_norm"].count.item() == 2
    assert all(torch.equal(p, q) for p, q in zip(roles.actor.model.parameters(), before, strict=True))
    with pytest.raises(UserError, match=r"^the loss of Actor is nan"):
        update_actor_and_critic(roles.actor, roles.critic, mini_batches, config, kl_weight=0.1, seed=0)


def test_whose_numbers_are_none_is_found_in_the_experience(
    tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, samples_of: SamplesOf
) -> None:
    config = ppo_config(tiny_init)
    roles = build_roles(config, tokenizer)
    tokens = sum(len(ids) for example in samples_of(TEXTS).examples for ids in example.completion_ids)
    assert count_nonfinite(made(roles, samples_of(TEXTS), config)[0]) == {}
    reference: Any = roles.reference
    for role, weight in (
        ("critic", roles.critic.model.hf.score.weight),
        ("reference", reference.model.hf.lm_head.weight),
    ):
        before = weight.detach().clone()
        with torch.no_grad():
            weight.fill_(torch.nan)
            assert count_nonfinite(made(roles, samples_of(TEXTS), config)[0]) == {role: tokens}
            weight.copy_(before)


def test_kl_in_the_loss_leaves_the_reward_to_the_score(
    tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, samples_of: SamplesOf
) -> None:
    """Returns are the scores alone; loss and gradient are those without the term plus beta times the term's own."""
    kl = KLConfig(place=KLPlace.loss, estimator=KLEstimator.k2)
    advantage = AdvantageConfig(gamma=1.0, lam=1.0, whiten=False)
    config = ppo_config(tiny_init, kl=kl, advantage=advantage, ppo=PPOUpdateConfig(epochs=1, mini_batches=1))
    roles = build_roles(config, tokenizer)
    move(roles)
    (mini_batch,), metrics = made(roles, samples_of(TEXTS), config)
    for (row, k), returns in of_replies([mini_batch], "returns").items():
        torch.testing.assert_close(returns, SCORES[row, k].expand_as(returns), rtol=1e-5, atol=1e-5)
    assert metrics["objective/non_score_reward"].total.item() == 0

    model, experience = roles.actor.model, mini_batch[0]
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    plain, whole = (Actor(config.loss.policy, 0.8, beta, kl.estimator)(model, experience) for beta in (0.0, 0.7))
    term = kl_estimate(token_logprobs(model, experience.batch, temperature=0.8), experience.ref_logprobs, "k2").sum()
    assert term.item() > 1e-3
    assert whole.metrics["kl/loss"].total.item() == pytest.approx(term.item(), rel=1e-5)
    assert whole.loss.total.item() == pytest.approx((plain.loss.total + 0.7 * term).item(), rel=1e-5)
    assert whole.loss.count.item() == plain.loss.count.item() == experience.num_tokens
    gradients = [torch.autograd.grad(total, weights) for total in (whole.loss.total, plain.loss.total, term)]
    for both, alone, added in zip(*gradients, strict=True):
        torch.testing.assert_close(both, alone + 0.7 * added, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("place", list(KLPlace))
def test_learning_puts_the_weight_where_the_config_says(
    tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, samples_of: SamplesOf, place: KLPlace
) -> None:
    config = ppo_config(tiny_init, kl=KLConfig(place=place, estimator=KLEstimator.k3))
    roles = build_roles(config, tokenizer)
    mini_batches, _ = made(roles, samples_of(TEXTS), config)
    metrics = update_actor_and_critic(roles.actor, roles.critic, mini_batches, config, kl_weight=0.3, seed=0)
    assert ("kl/loss" in metrics) == (place is KLPlace.loss)


GROUPED = {"grpo": grpo_advantages, "dr_grpo": dr_grpo_advantages, "rloo": rloo_advantages}


def without_critic(tiny_init: dict[str, Any], estimator: str, **parts: Any) -> PPOConfig:
    advantage = parts.pop("advantage", AdvantageConfig(estimator=AdvantageEstimator(estimator)))
    return ppo_config(tiny_init, advantage=advantage, critic=CriticConfig(), **parts)


def actor_alone(config: PPOConfig, tokenizer: PreTrainedTokenizerBase) -> PPORoles:
    roles = build_roles(config, tokenizer)
    move(roles)
    return PPORoles(roles.actor, None, roles.reference)


@pytest.mark.parametrize("place", list(KLPlace))
@pytest.mark.parametrize("estimator", GROUPED)
def test_every_token_of_a_reply_has_its_reply_s_advantage(
    tiny_init: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    samples_of: SamplesOf,
    estimator: str,
    place: KLPlace,
) -> None:
    """What a reply is worth is its score, less beta times the KL of all its tokens where that is in the reward."""
    config = without_critic(tiny_init, estimator, kl=KLConfig(place=place, estimator=KLEstimator.k3))
    mini_batches, _ = made(actor_alone(config, tokenizer), samples_of(TEXTS), config)
    old, reference = (of_replies(mini_batches, name) for name in ("old_logprobs", "ref_logprobs"))
    beta = 0.3 if place is KLPlace.reward else 0.0
    worth = torch.tensor(
        [
            [SCORES[row, k] - beta * kl_estimate(old[row, k], reference[row, k], "k3").sum() for k in range(2)]
            for row in range(5)
        ]
    )
    expected = GROUPED[estimator](worth)
    for (row, k), advantages in of_replies(mini_batches, "advantages").items():
        torch.testing.assert_close(advantages, expected[row, k].expand_as(advantages), rtol=1e-4, atol=1e-5)
    assert all(each.values is None and each.returns is None for part in mini_batches for each in part)


def test_reinforce_pp_whitens_the_rewards_to_come_over_all_tokens(
    tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, samples_of: SamplesOf
) -> None:
    advantage = AdvantageConfig(estimator=AdvantageEstimator.reinforce_pp, gamma=0.9)
    config = without_critic(tiny_init, "reinforce_pp", advantage=advantage)
    mini_batches, _ = made(actor_alone(config, tokenizer), samples_of(TEXTS), config)
    old, reference = (of_replies(mini_batches, name) for name in ("old_logprobs", "ref_logprobs"))
    returns = {}
    for (row, k), logprobs in old.items():
        rewards = -0.3 * (logprobs - reference[row, k]).double()
        rewards[-1] += SCORES[row, k]
        returns[row, k] = torch.stack(
            [(0.9 ** torch.arange(len(rewards) - t) * rewards[t:]).sum() for t in range(len(rewards))]
        )
    everything = torch.cat(list(returns.values()))
    for key, advantages in of_replies(mini_batches, "advantages").items():
        white = (returns[key] - everything.mean()) / (everything.var() + 1e-8).sqrt()
        torch.testing.assert_close(advantages.double(), white, rtol=1e-4, atol=1e-5)


def test_replies_that_score_alike_teach_nothing(
    tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, samples_of: SamplesOf
) -> None:
    config = without_critic(tiny_init, "grpo", kl=KLConfig(place=KLPlace.loss, estimator=KLEstimator.k3))
    roles, scores = actor_alone(config, tokenizer), torch.where(torch.arange(5)[:, None] < 3, 2.0, SCORES)
    packer = Packer(config.batch, 0)
    mini_batches, _ = make_experience(roles, samples_of(TEXTS), scores, config, kl_weight=0.3, packer=packer, seed=0)
    for (row, _), advantages in of_replies(mini_batches, "advantages").items():
        assert (advantages == 0).all().item() == (row < 3)


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_what_does_not_count_is_dealt_out_behind_what_does_and_changes_no_mini_batch(num_ranks: int) -> None:
    counted = torch.tensor([True, False, True, True, False, True, True, False, True])
    alone, dealt = (mini_batch_rows(9, counted, 2, ranks, seed=5) for ranks in (1, num_ranks))
    for part, filled in zip(alone, dealt, strict=True):
        assert filled[: len(part)].tolist() == part.tolist() and counted[part].all()
        assert len(filled) % num_ranks == 0 and not counted[filled[len(part) :]].any()
    assert sorted(row for part in alone for row in part) == counted.nonzero()[:, 0].tolist()
    assert len(mini_batch_rows(9, torch.arange(9) == 4, 2, num_ranks, seed=5)) == 1  # none without a row that counts
    whole = np.concatenate(mini_batch_rows(9, None, 2, 1, seed=5))
    assert whole.tolist() == np.random.default_rng(5).permutation(9).tolist()


@pytest.mark.parametrize("whitens", [False, True])
@pytest.mark.parametrize("normalization", list(Normalization))
def test_replies_that_do_not_count_are_as_if_they_were_not_there(
    tiny_init: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    samples_of: SamplesOf,
    normalization: Normalization,
    whitens: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The loss, its gradient and every metric, of a mini-batch of three prompts, and with two of such behind them."""
    loss = PolicyLoss(normalization=normalization, length=9 if normalization is Normalization.constant else None)
    kl = KLConfig(place=KLPlace.loss, estimator=KLEstimator.k3)
    advantage = AdvantageConfig(estimator=AdvantageEstimator.grpo, whiten=whitens)
    config = without_critic(tiny_init, "grpo", kl=kl, loss=PPOLosses(policy=loss), advantage=advantage)
    monkeypatch.setattr(module, "mini_batch_rows", lambda count, *_: [np.arange(count)])
    found = []
    for count, counted in ((3, None), (5, torch.arange(5) < 3)):
        roles = actor_alone(config, tokenizer)
        move(roles)
        settings: Any = {"kl_weight": 0.3, "packer": Packer(config.batch, 0), "seed": 0, "counted": counted}
        (units,), metrics = make_experience(roles, samples_of(TEXTS[:count]), SCORES[:count], config, **settings)
        measured = train_step(roles.actor, actor_objective(config, 0.3), units).means()
        found.append((metrics.means(), measured, [p.detach().clone() for p in roles.actor.model.parameters()]))
    (one, step, weights), (other, same_step, same_weights) = found
    assert one == pytest.approx(other, rel=1e-5) and step == pytest.approx(same_step, rel=1e-4, abs=1e-6)
    for own, same in zip(weights, same_weights, strict=True):
        torch.testing.assert_close(own, same, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("normalization", list(Normalization))
def test_without_a_critic_the_actor_learns_alone_and_the_cut_changes_nothing(
    tiny_init: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    samples_of: SamplesOf,
    normalization: Normalization,
) -> None:
    found = []
    for max_tokens in (40, 1000):
        config = without_critic(
            tiny_init,
            "grpo",
            batch=BatchConfig(size=5, max_tokens=max_tokens, layout=Layout.shared),
            kl=KLConfig(place=KLPlace.loss, estimator=KLEstimator.k3),
            ppo=PPOUpdateConfig(epochs=1, mini_batches=1),
            loss=PPOLosses(policy=PolicyLoss(normalization=normalization)),
        )
        roles = actor_alone(config, tokenizer)
        mini_batches, _ = made(roles, samples_of(TEXTS), config)
        metrics = update_actor_and_critic(roles.actor, None, mini_batches, config, kl_weight=0.3, seed=0).means()
        assert metrics["policy/ratio"] == pytest.approx(1.0, abs=1e-6) and metrics["policy/clip_fraction"] == 0
        assert not any(name.startswith("value/") for name in metrics)
        found.append((len(mini_batches[0]), metrics))
    (many, cut), (one, whole) = found
    assert many > one and cut == pytest.approx(whole, rel=1e-5, abs=1e-6)
