"""The parts of PPO's config: how experience is made and learned from."""

import math
from dataclasses import dataclass, field
from enum import Enum

from alignment.config.base import Config
from alignment.config.data import DataConfig, ExampleKind, Format, has_rows, require_no_rows, require_read
from alignment.config.errors import require
from alignment.config.marks import REWARD_MODEL
from alignment.losses import KLEstimator, PolicyLoss, ValueLoss

KL_HORIZON = 10_000  # of Ziegler et al.'s code; their paper has none


class AdvantageEstimator(str, Enum):
    """How much better than expected a reply or its token was. gae expects what a critic says; the others have none."""

    gae = "gae"
    """delta_t + gamma lam A_(t+1), delta_t = r_t + gamma V_(t+1) - V_t, V the critic's (1506.02438, eq. 16)."""
    grpo = "grpo"
    """(r - mean) / standard deviation, both of the replies to a prompt (2402.03300, section 4.1.2)."""
    dr_grpo = "dr_grpo"
    """r - mean of the replies to a prompt (2503.20783, section 3.2)."""
    rloo = "rloo"
    """r - mean of the other replies to the prompt (2402.14740, eq. 8)."""
    reinforce_pp = "reinforce_pp"
    """r_t + gamma A_(t+1), from each token to the reply's end (2501.03262, section 3.1)."""


class KLControl(str, Enum):
    fixed = "fixed"
    """beta stays at kl.weight."""
    adaptive = "adaptive"
    """beta grows while the KL is above kl.target and shrinks while it is below, by about a fifth at most in
    kl.horizon replies (arXiv:1909.08593, section 2.2)."""


class KLPlace(str, Enum):
    """Where the KL to the reference is held down."""

    reward = "reward"
    """Taken off each token's reward, and so carried through values and advantages."""
    loss = "loss"
    """Added to the actor's loss, and differentiated."""


class Share(str, Enum):
    """Which weights PPO's roles have in common."""

    none = "none"
    """Four models (three where the actor is an adapter, whose base is the reference)."""
    lora = "lora"
    """One backbone: its base is the reference; actor, critic and reward are adapters, with heads of their own."""


@dataclass(slots=True)
class CriticConfig(Config):
    path: str | None = field(default=None, metadata=REWARD_MODEL)
    """What the critic begins as: a model with a scalar head and the policy's vocabulary. Null: the (first) reward
    model, if it is one; else the actor's body and a new head."""
    learning_rate: float = 1e-5
    """The critic's own; its schedule is the actor's."""
    warmup: int = 0
    """Iterations at the start in which the critic learns and the actor does not."""

    def __post_init__(self) -> None:
        require(0 < self.learning_rate < math.inf, "critic.learning_rate must be > 0 and finite", self.learning_rate)
        require(self.warmup >= 0, "critic.warmup must be >= 0", self.warmup)


@dataclass(slots=True)
class KLConfig(Config):
    weight: float = 0.05
    """beta of the penalty in each token's reward, -beta * KL_t, or of the loss's term; adaptive: the first one. A
    run that goes on with another (resume.accept) has that one at once, and adapts from there."""
    estimator: KLEstimator = KLEstimator.k1
    """Of the KL at a token, from the one that was drawn; d = log pi_ref - log pi of it
    (joschu.net/blog/kl-approx.html)."""
    place: KLPlace = KLPlace.reward
    """In each token's reward or in the loss (verl's use_kl_in_reward and use_kl_loss). In the loss, on average, k2 has
    the gradient of KL(pi || pi_ref), k3 that of KL(pi_ref || pi), k1 none. In the reward of estimators that compare
    whole replies (grpo, dr_grpo, rloo) it is that of the reply: the sum over its tokens is taken off its score."""
    bias_correction: bool = False
    """In the loss, times pi / pi_old of the token: then k1 and k3 have the gradient of KL(pi || pi_ref), also for the
    replies of an older policy (DeepSeek-V3.2 2512.02556; TRL's GRPO does so by default)."""
    controller: KLControl = KLControl.fixed
    """What becomes of beta as the run goes."""
    target: float | None = None
    """adaptive: KL per reply, nats."""
    horizon: int = KL_HORIZON
    """adaptive: replies in which beta changes by about a fifth at most."""
    limit: float | None = None
    """KL per reply, nats: an iteration above it ends the run, with the best model before it, which is that of the
    highest held-out reward, or, without evaluations, of the highest reward of an iteration. It is kept in `best/`,
    whatever checkpoint.keep says."""

    def __post_init__(self) -> None:
        require(0 <= self.weight < math.inf, "kl.weight must be >= 0 and finite", self.weight)
        rule = "kl.bias_correction needs kl.place=loss"
        require(self.place is KLPlace.loss or not self.bias_correction, rule, self.bias_correction)
        of_k1 = "the gradient of k1 is zero on average without kl.bias_correction"
        rule, without = f"kl.estimator must be k2 or k3 with kl.place=loss: {of_k1}", KLEstimator.k1
        if self.bias_correction:
            rule, without = (
                "kl.estimator must be k1 or k3 with kl.bias_correction: k2 is no KL on average",
                KLEstimator.k2,
            )
        require(self.place is KLPlace.reward or self.estimator is not without, rule, self.estimator.value)
        adaptive = self.controller is KLControl.adaptive
        rule = "kl.target must be set, > 0 and finite, with kl.controller=adaptive, and only there"
        is_target = self.target is not None and 0 < self.target < math.inf
        require(is_target if adaptive else self.target is None, rule, self.target)
        require(not adaptive or self.weight > 0, "kl.weight must be > 0 with kl.controller=adaptive", self.weight)
        require(self.horizon > 0, "kl.horizon must be > 0", self.horizon)
        require(adaptive or self.horizon == KL_HORIZON, "kl.horizon needs kl.controller=adaptive", self.horizon)
        rule = "kl.limit must be > 0 and above kl.target"
        require(self.limit is None or self.limit > (self.target or 0), rule, self.limit)

    def split(self, weight: float) -> tuple[float, float]:
        """Of a weight of the KL, what the tokens' rewards have of it and what the policy's loss has."""
        return (weight, 0.0) if self.place is KLPlace.reward else (0.0, weight)


GROUPED = (AdvantageEstimator.grpo, AdvantageEstimator.dr_grpo, AdvantageEstimator.rloo)
LAM = 0.95


@dataclass(slots=True)
class AdvantageConfig(Config):
    estimator: AdvantageEstimator = AdvantageEstimator.gae
    """A, how much better than expected a reply or its token was. gae has a critic; grpo, dr_grpo and rloo compare the
    replies to one prompt, of reward r; reinforce_pp, with r_t of a token, compares those of all by `whiten`."""
    gamma: float = 1.0
    """Discount of later rewards."""
    lam: float = LAM
    """GAE's: 1 takes whole returns, 0 one step and the critic's word."""
    whiten: bool | None = None
    """Zero mean and unit variance over all reply tokens of the iteration, on all processes. Null: as the estimator's
    authors have it, which is true for gae and reinforce_pp."""
    redraws: int = 0
    """How often the replies to a prompt are drawn anew in an iteration, while they all score alike: nothing is learned
    from such ones (DAPO, 2503.14476, section 3.2, takes other prompts)."""
    drop_alike: bool = False
    """Leave those out that still score alike: they neither count in the loss nor are held to the reference. Where all
    prompts are alike none is left out."""

    def __post_init__(self) -> None:
        require(0 <= self.gamma <= 1, "advantage.gamma must be in [0, 1]", self.gamma)
        require(0 <= self.lam <= 1, "advantage.lam must be in [0, 1]", self.lam)
        rule = "advantage.lam needs advantage.estimator=gae"
        require(self.has_critic or self.lam == LAM, rule, self.lam)
        rule = "advantage.gamma must be 1 for an estimator that takes a reply as one action (grpo, dr_grpo, rloo)"
        require(not self.is_grouped or self.gamma == 1, rule, self.gamma)

        require(self.redraws >= 0, "advantage.redraws must be >= 0", self.redraws)
        rule = "advantage.{} goes with an estimator that compares the replies to a prompt (grpo, dr_grpo, rloo)"
        require(self.is_grouped or not self.redraws, rule.format("redraws"), self.redraws)
        require(self.is_grouped or not self.drop_alike, rule.format("drop_alike"), self.drop_alike)

    @property
    def has_critic(self) -> bool:
        return self.estimator is AdvantageEstimator.gae

    @property
    def is_grouped(self) -> bool:
        """The replies to one prompt are compared with each other."""
        return self.estimator in GROUPED

    @property
    def whitens(self) -> bool:
        return not self.is_grouped if self.whiten is None else self.whiten


@dataclass(slots=True)
class PPOUpdateConfig(Config):
    """How often, and in how many pieces, one iteration's experience is learned from."""

    epochs: int = 4
    """Passes over an iteration's experience."""
    mini_batches: int = 1
    """Pieces that a pass is cut into; each is one step of actor and critic."""
    max_kl: float | None = None
    """The actor's inner steps of an iteration end once `policy/approx_kl` (nats a token) is above this. Null: never."""
    importance_clip: float | None = None
    """C of min(pi_old / mu, C), by which each token's advantage is weighed where another engine mu drew the replies
    (generation.engine=vllm). Null: as if the actor had drawn them."""
    ema: float | None = None
    """Decay of a moving average of the actor's weights, saved as `model_ema/`. Null: none."""

    def __post_init__(self) -> None:
        require(self.epochs > 0, "ppo.epochs must be > 0", self.epochs)
        require(self.mini_batches > 0, "ppo.mini_batches must be > 0", self.mini_batches)
        require(self.max_kl is None or self.max_kl > 0, "ppo.max_kl must be > 0, or null to never stop", self.max_kl)
        rule = "ppo.max_kl ends an iteration's inner steps, of which ppo.epochs and ppo.mini_batches make one"
        require(self.max_kl is None or self.inner_steps > 1, rule, self.max_kl)
        clip = self.importance_clip
        rule = "ppo.importance_clip must be > 0 and finite, or null to weigh nothing"
        require(clip is None or 0 < clip < math.inf, rule, clip)
        require(self.ema is None or 0 < self.ema < 1, "ppo.ema must be in (0, 1)", self.ema)

    @property
    def inner_steps(self) -> int:
        """Steps of actor and critic in one iteration."""
        return self.epochs * self.mini_batches


PTX_SIZE = 64


@dataclass(slots=True)
class PtxConfig(Config):
    """PPO-ptx: each actor step also raises the likelihood of other texts (Ouyang et al. 2203.02155, eq. 2)."""

    weight: float = 0.0
    """Weight of their mean log-likelihood per token (gamma in the paper, whose 27.8 is of a sum over a text).
    0: none."""
    size: int = PTX_SIZE
    """Texts or demonstrations a step."""
    data: DataConfig = field(default_factory=DataConfig)
    """Where they are: `ptx.data.train`; texts as in pre-training with `ptx.data.format=text`. Refused are
    `ptx.data.eval`, and `margin`, `scores` and `step_separator`, which are of rows of other kinds."""

    def __post_init__(self) -> None:
        require(self.weight >= 0, "ptx.weight must be >= 0", self.weight)
        require(self.size > 0, "ptx.size must be > 0", self.size)
        require(self.weight > 0 or self.size == PTX_SIZE, "ptx.size goes with a ptx.weight above 0", self.size)
        require_no_rows(self.data.eval, "ptx.data.eval", "ptx")
        has_data = has_rows(self.data, "train") or self.data.format is Format.toy
        require_read(self.data, ExampleKind.demonstrations, "ptx.data")
        require(has_data == (self.weight > 0), "ptx.data.train goes with a ptx.weight above 0", self.weight)


@dataclass(slots=True)
class PPOLosses(Config):
    policy: PolicyLoss = field(default_factory=PolicyLoss)
    value: ValueLoss = field(default_factory=ValueLoss)


@dataclass(slots=True)
class RolesConfig(Config):
    share: Share = Share.none
    """Which weights actor, reference, reward and critic have in common."""
    offload: bool = False
    """Keep reference and reward on the CPU between uses."""
