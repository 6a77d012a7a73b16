"""PPO's parts give what TRL 1.12's PPOTrainer made of the same ragged replies (see record_trl_ppo.py).

One definition differs, on purpose. To TRL a reply that ends early has one more state, after its end: the score is paid
there, and that state is valued, too. To us the reply's last action is its end token, which is paid and followed by
nothing. So our functions give TRL's numbers under a mask of one more token, `seen`; what our own mask changes is tested
as an equation, and with gamma = lam = 1 it is nothing.
"""

import json
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from alignment.config.batch import BatchConfig, Layout
from alignment.config.data import DataConfig, Format, TrainSource
from alignment.config.distributed import Device, DistributedConfig
from alignment.config.model import ModelConfig
from alignment.config.online import PPOConfig
from alignment.config.ppo import AdvantageConfig, KLConfig, PPOUpdateConfig
from alignment.config.reward import RewardShapingConfig
from alignment.config.train import TrainConfig
from alignment.data.batches import Packer
from alignment.data.pack import Batch
from alignment.data.records import Record, Source
from alignment.data.tokenize import Example
from alignment.generation.generate import Reply
from alignment.generation.samples import Samples
from alignment.losses import (
    KLEstimator,
    PolicyLoss,
    ValueLoss,
    advantages_and_returns,
    kl_estimate,
    token_rewards,
    whiten,
)
from alignment.rl.experience import make_experience
from alignment.rl.rewards import shape_scores
from alignment.rl.roles import PPORoles

RECORDED = np.load(Path(__file__).with_name("trl_ppo.npz"))
ABOUT = json.loads(str(RECORDED["about"]))
CASES = list(ABOUT["settings"])
TIGHT = {"rtol": 1e-9, "atol": 1e-10}
CLIP = 0.2


@dataclass
class Case:
    """TRL's variables, [B, T] but for `scores` [B]; `settings`, those of its config that are not its defaults."""

    name: str

    def __getitem__(self, name: str) -> Tensor:
        return torch.from_numpy(RECORDED[f"{self.name}/{name}"])

    def logged(self, name: str) -> float:
        return float(RECORDED[f"{self.name}/logged/{name}"])

    def setting(self, name: str) -> Any:
        defaults = {"kl_estimator": "k1", "gamma": 1.0, "missing_eos_penalty": 0.0, "whiten_rewards": False}
        return {**defaults, **ABOUT["settings"][self.name]}[name]

    @property
    def mask(self) -> Tensor:
        """The replies' tokens, end token included."""
        return ~self["padding_mask"]

    @property
    def seen(self) -> Tensor:
        """And, of a reply that ended early, the state after it."""
        return ~self["padding_mask_p1"]

    def kl(self) -> Tensor:
        return kl_estimate(self["logprobs"], self["ref_logprobs"], self.setting("kl_estimator"))

    def rewards(self, mask: Tensor) -> Tensor:
        return token_rewards(self["scores"], self.kl(), mask, kl_weight=self.setting("kl_coef"))

    def advantages(self, rewards: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        constants = {"gamma": self.setting("gamma"), "lam": self.setting("lam")}
        return advantages_and_returns(rewards, self["values"], mask, **constants)

    def inner_steps(self) -> Iterator[dict[str, Tensor]]:
        """`rows` of the batch that a backward pass was for, and what was then computed for them."""
        names = ("micro_batch_inds", "new_logprobs", "vpred", "pg_loss", "vf_loss", "vf_clipfrac")
        for values in zip(*(self[f"inner/{name}"] for name in names), strict=True):
            yield dict(zip(("rows", *names[1:]), values, strict=True))


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


def same(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs.to(ours.dtype), **TIGHT)


def test_the_batches_say_something(case: Case) -> None:
    """Recorded with the last TRL that has PPO; ragged, some replies cut, KL and values far from zero, clips at work."""
    assert ABOUT["versions"]["trl"] == "1.12.0"
    lengths = case.mask.sum(1)
    assert len(lengths.unique()) > 3 and (lengths == case.mask.shape[1]).any()
    assert (case.seen.sum(1) > lengths).sum() > 2 and not case["contain_eos_token"].all()
    assert case["kl"][case.mask].abs().mean() > 0.1 and case["values"][case.mask].abs().mean() > 0.1
    assert case.logged("policy/clipfrac_avg") > 0.05 and case.logged("val/clipfrac_avg") > 0.05


def test_kl(case: Case) -> None:
    same(torch.where(case.mask, case.kl(), 0.0), case["kl"])
    same(-case.setting("kl_coef") * case.kl() * case.mask, case["non_score_reward"])


def test_missing_eos_penalty(case: Case) -> None:
    samples = samples_of(case)
    config = ppo_config(case)
    same(shape_scores(case["raw_scores"][:, None], samples, config)[:, 0], case["scores"])
    assert (case["scores"] != case["raw_scores"]).any() == (case.setting("missing_eos_penalty") > 0)


def test_token_rewards(case: Case) -> None:
    rewards = case.rewards(case.seen)
    if case.setting("whiten_rewards"):
        rewards = whiten(rewards, case.seen, zero_mean=False)
    same(rewards, case["rewards"])


def test_our_score_is_paid_with_the_end_token(case: Case) -> None:
    """One token before TRL's where a reply ends early; the reply's sum is the same."""
    ours, theirs = case.rewards(case.mask), case.rewards(case.seen)
    same(ours.sum(1), theirs.sum(1))
    last = case.mask.sum(1) - 1
    early = last + 1 < case.mask.shape[1]
    rows = torch.arange(len(last))
    moved = torch.zeros_like(ours)
    moved[rows[early], last[early]] = case["scores"][early]
    moved[rows[early], last[early] + 1] = -case["scores"][early]
    same(ours - theirs, moved)


def test_advantages_and_returns(case: Case) -> None:
    advantages, returns = case.advantages(case["rewards"], case.seen)
    same(returns, case["returns"])
    same(whiten(advantages, case.mask), case["advantages"])


@pytest.mark.parametrize("name", [name for name in CASES if not ABOUT["settings"][name].get("whiten_rewards")])
def test_what_the_state_after_the_end_changes(name: str) -> None:
    """A_ours(t) - A_TRL(t) = (gamma lam)^(last - t) ((1 - gamma lam) score - gamma (1 - lam) V(after the end))."""
    case = Case(name)
    ours, _ = case.advantages(case.rewards(case.mask), case.mask)
    theirs = (case["returns"] - case["values"]) * case.mask
    gamma, lam = case.setting("gamma"), case.setting("lam")
    last = case.mask.sum(1) - 1
    early = last + 1 < case.mask.shape[1]
    after = case["values"].gather(1, (last + 1).clamp(max=case.mask.shape[1] - 1)[:, None])[:, 0]
    at_the_end = (1 - gamma * lam) * case["scores"] - gamma * (1 - lam) * after
    before = (last[:, None] - torch.arange(case.mask.shape[1])).clamp(min=0)
    difference = torch.where(early[:, None] & case.mask, at_the_end[:, None] * (gamma * lam) ** before.double(), 0.0)
    same(ours - theirs, difference)
    assert (difference.abs().max() > 0.05) == (gamma * lam < 1)


def test_whitening() -> None:
    values, mask = (torch.from_numpy(RECORDED[f"whiten/{name}"]) for name in ("values", "mask"))
    for zero_mean, name in ((True, "zero_mean"), (False, "mean_kept")):
        same(whiten(values, mask, zero_mean=zero_mean), torch.from_numpy(RECORDED[f"whiten/{name}"]) * mask)


def test_losses(case: Case) -> None:
    """At every inner step, on the micro-batch that TRL took; its approximate KL is k2, the mean over padding too."""
    shares, approx_kls = [], []
    for step in case.inner_steps():
        rows = step["rows"]
        mask, old = case.mask[rows], case["logprobs"][rows]
        policy = PolicyLoss(clip=CLIP)(step["new_logprobs"], old, case["advantages"][rows], mask)
        same(policy.loss.total / policy.loss.count, step["pg_loss"])
        share = policy.metrics["policy/clip_fraction"]
        shares.append(share.total / share.count)
        approx_kls.append((kl_estimate(old, step["new_logprobs"], KLEstimator.k2) * mask).mean())
        seen, values, returns = case.seen[rows], case["values"][rows], case["returns"][rows]
        value = ValueLoss(clip=CLIP)(step["vpred"], values, returns, seen)
        same(value.loss.total / value.loss.count, step["vf_loss"])
        share = value.metrics["value/clip_fraction"]
        same(share.total / share.count, step["vf_clipfrac"])
    assert case.logged("policy/clipfrac_avg") == pytest.approx(torch.stack(shares).mean().item(), rel=1e-6)
    assert case.logged("policy/approxkl_avg") == pytest.approx(torch.stack(approx_kls).mean().item(), rel=1e-6)


class Replay(nn.Module):
    """A model that says what TRL's said of the replies in a batch."""

    def __init__(self, case: Case, name: str) -> None:
        super().__init__()
        self.rows = [row[mask] for row, mask in zip(case[name], case.mask, strict=True)]

    def said(self, batch: Batch) -> Tensor:
        return torch.cat([self.rows[row] for row in batch.rows.tolist()])

    def logprobs(self, batch: Batch, temperature: float) -> Tensor:
        return self.said(batch)


class Policy(Replay):
    def forward(self, batch: Batch, *read: Any) -> tuple[Tensor, ...]:
        return (self.said(batch),)


class Value(Replay):
    def forward(self, batch: Batch, *read: Any) -> Tensor:
        return self.said(batch)


@dataclass
class Still:
    """An engine that learns nothing."""

    model: nn.Module

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def precision(self) -> Any:
        return nullcontext()


def samples_of(case: Case) -> Samples:
    replies = [
        Reply(np.arange(length, dtype=np.int32), finished, "")
        for length, finished in zip(case.mask.sum(1).tolist(), case["contain_eos_token"].tolist(), strict=True)
    ]
    examples = [
        Example(np.arange(3 + row, dtype=np.int32), (reply.ids,), None, Source("made", row), (reply.finished,))
        for row, reply in enumerate(replies)
    ]
    return Samples([Record([], (), None, Source("", 0)) for _ in replies], examples, [[reply] for reply in replies])


def ppo_config(case: Case) -> PPOConfig:
    return PPOConfig(
        model=ModelConfig(init={"model_type": "llama"}),
        data=DataConfig(format=Format.toy, train=TrainSource(limit=8)),
        batch=BatchConfig(size=8, max_tokens=40, layout=Layout.shared),
        train=TrainConfig(max_steps=1),
        reward=RewardShapingConfig(
            function="alignment.toy.gold", missing_eos_penalty=case.setting("missing_eos_penalty")
        ),
        ppo=PPOUpdateConfig(mini_batches=2),
        kl=KLConfig(weight=case.setting("kl_coef"), estimator=KLEstimator(case.setting("kl_estimator"))),
        advantage=AdvantageConfig(gamma=case.setting("gamma"), lam=case.setting("lam")),
        distributed=DistributedConfig(device=Device.cpu),
    )


def test_experience_from_end_to_end() -> None:
    """`make_experience`, packed in micro-batches of two mini-batches, where no definition differs: gamma = lam = 1."""
    case = Case("no discount")
    roles = PPORoles(Still(Policy(case, "logprobs")), Still(Value(case, "values")), Replay(case, "ref_logprobs"))
    config = ppo_config(case)
    packer = Packer(config.batch, 0)
    mini_batches, metrics = make_experience(
        roles, samples_of(case), case["scores"][:, None], config, kl_weight=0.3, packer=packer, seed=0
    )
    pieces = [experience for mini_batch in mini_batches for experience in mini_batch]
    assert len(mini_batches) == 2 and len(pieces) > 2
    for name in ("advantages", "returns"):
        found = torch.zeros_like(case[name])
        for piece in pieces:
            rows = piece.batch.rows
            found[rows] = found[rows].masked_scatter(case.mask[rows], getattr(piece, name))
        same(found, torch.where(case.mask, case[name], 0.0))
    logged = metrics.means()
    for ours, theirs in {
        "kl": "objective/kl",
        "objective/entropy": "objective/entropy",
        "objective/non_score_reward": "objective/non_score_reward",
        "objective/rlhf_reward": "objective/rlhf_reward",
        "objective/scores": "objective/scores",
    }.items():
        assert logged[ours] == pytest.approx(case.logged(theirs), rel=1e-6), ours
