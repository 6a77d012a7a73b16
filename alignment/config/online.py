"""Runs that train on their own replies: what all of them have, and the configs of PPO and online DPO."""

from dataclasses import dataclass, field
from enum import Enum
from typing import ClassVar

from omegaconf import MISSING

from alignment.config.alarm import AlarmConfig
from alignment.config.data import ExampleKind, require_own_questions
from alignment.config.distributed import Offload
from alignment.config.errors import require
from alignment.config.generation import Generation, GenerationConfig, require_generator, require_launch, require_served
from alignment.config.marks import FUNCTION, REWARD_MODEL
from alignment.config.model import LoraInit
from alignment.config.optimizer import OptimizerName
from alignment.config.ppo import (
    AdvantageConfig,
    CriticConfig,
    KLConfig,
    KLControl,
    PPOLosses,
    PPOUpdateConfig,
    PtxConfig,
    RolesConfig,
    Share,
)
from alignment.config.reference import ReferenceModelConfig
from alignment.config.reward import RewardShapingConfig
from alignment.config.run import TrainingConfig
from alignment.losses import DPOLoss, ValueLoss


class PairSelection(str, Enum):
    """Which of a prompt's replies make pairs."""

    best_and_worst = "best_and_worst"
    """The best against the worst: one pair of each prompt."""
    all = "all"
    """Each against all that score less."""


@dataclass(slots=True)
class OnlineConfig(TrainingConfig):
    """Replies to prompts, scored; what is learned from them is the method's."""

    replies: ClassVar[bool] = True
    shares_rows: ClassVar[bool] = False
    is_policy: ClassVar[bool] = True
    example_kind: ClassVar[ExampleKind | None] = ExampleKind.prompts
    reward: RewardShapingConfig = MISSING
    num_samples: int = 1
    """Replies sampled for each prompt."""
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    gold: str | None = field(default=None, metadata=FUNCTION)
    """Dotted path of a function that scores replies, as reward.function does; its score is logged beside the reward and
    never learned from."""
    gold_model: str | None = field(default=None, metadata=REWARD_MODEL)
    """A reward model in the place of `gold`'s function; of other data or another seed than the reward's."""
    alarm: AlarmConfig = field(default_factory=AlarmConfig)

    def __post_init__(self) -> None:
        TrainingConfig.__post_init__(self)
        require_generator(self.generation, self.distributed)
        require_launch(self.generation, self.launch, num_nodes=self.cluster.nodes)
        require_served(self.generation, self.model)
        both = self.gold is not None and self.gold_model is not None
        require(not both, "at most one of gold and gold_model must be set", (self.gold, self.gold_model))
        has_gold = self.gold is not None or self.gold_model is not None
        unset = AlarmConfig()
        for key, value, default in (
            ("sigmas", self.alarm.sigmas, unset.sigmas),
            ("patience", self.alarm.patience, unset.patience),
        ):
            require(has_gold or value == default, f"alarm.{key} goes with gold or gold_model, which it watches", value)
        is_watched = self.generation.engine is Generation.vllm or self.alarm.max_mismatch == unset.max_mismatch
        rule = "alarm.max_mismatch goes with generation.engine=vllm, whose log-probs it watches"
        require(is_watched, rule, self.alarm.max_mismatch)
        require_own_questions(self.data, {**self.reward.functions(), "gold": self.gold})
        require(self.num_samples > 0, "num_samples must be > 0", self.num_samples)


@dataclass(slots=True)
class OnlineDPOConfig(OnlineConfig):
    reference: ReferenceModelConfig = field(default_factory=ReferenceModelConfig)
    loss: DPOLoss = field(default_factory=DPOLoss)
    num_samples: int = 2
    """Replies sampled for each prompt."""
    pairs: PairSelection = PairSelection.best_and_worst
    """Which of a prompt's replies make pairs."""

    def __post_init__(self) -> None:
        OnlineConfig.__post_init__(self)
        require(self.num_samples > 1, "num_samples must be > 1: a pair is of two replies", self.num_samples)
        rule = "loss.margin_scale must be 1 for online_dpo, whose pairs have no margins"
        require(self.loss.margin_scale == 1, rule, self.loss.margin_scale)
        for key, limit in (("max_kl", self.alarm.max_kl), ("min_entropy", self.alarm.min_entropy)):
            require(limit is None, f"alarm.{key} must be null for online_dpo, which logs no such metric", limit)
        asked, unset = self.generation, GenerationConfig()
        is_whole = (asked.top_k, asked.top_p, asked.min_new_tokens) == (unset.top_k, unset.top_p, unset.min_new_tokens)
        rule = "alarm.max_mismatch needs generation.top_k=0, top_p=1 and min_new_tokens=0: nothing is watched else"
        require(is_whole or self.alarm.max_mismatch == AlarmConfig().max_mismatch, rule, self.alarm.max_mismatch)
        rule = "pairs=all needs num_samples > 2, of two replies there is one pair"
        require(self.pairs is PairSelection.best_and_worst or self.num_samples > 2, rule, self.num_samples)


@dataclass(slots=True)
class PPOConfig(OnlineConfig):
    loss: PPOLosses = field(default_factory=PPOLosses)
    ppo: PPOUpdateConfig = field(default_factory=PPOUpdateConfig)
    critic: CriticConfig = field(default_factory=CriticConfig)
    kl: KLConfig = field(default_factory=KLConfig)
    advantage: AdvantageConfig = field(default_factory=AdvantageConfig)
    ptx: PtxConfig = field(default_factory=PtxConfig)
    roles: RolesConfig = field(default_factory=RolesConfig)

    def __post_init__(self) -> None:
        OnlineConfig.__post_init__(self)
        self._check_processes()
        rule = "train.best.metric must be null with kl.limit, which keeps the best model by its reward"
        require(self.kl.limit is None or self.train.best.metric is None, rule, self.train.best.metric)
        rule = "ppo.ema must be null with model.lora.merge_every, whose adapters begin anew: their mean is of none"
        require(self.ppo.ema is None or self.model.lora.merge_every == 0, rule, self.ppo.ema)
        rule = "model.lora.dropout must be 0 for PPO: with it the ratio is not 1 before the first step"
        require(self.model.lora.dropout == 0, rule, self.model.lora.dropout)
        full = self.generation.top_k == 0 and self.generation.top_p == 1
        rule = "generation.top_k and top_p must be 0 and 1 for PPO, whose log-probs are of the whole distribution"
        require(full, rule, (self.generation.top_k, self.generation.top_p))
        if self.roles.share is Share.lora:
            self._check_one_backbone()
        is_lomo = self.train.optimizer is OptimizerName.lomo
        rule = "roles.share must be none with train.optimizer=lomo, which updates weights that no other role reads"
        require(not is_lomo or self.roles.share is Share.none, rule, self.roles.share)
        rule = "ptx.weight must be 0 with train.optimizer=lomo, which takes each step in one pass"
        require(not is_lomo or self.ptx.weight == 0, rule, self.ptx.weight)
        self._check_estimator()
        rule = "generation.min_new_tokens must be 0 for PPO, whose log-probs know of no token that is held back"
        require(self.generation.min_new_tokens == 0, rule, self.generation.min_new_tokens)
        is_vllm, clip = self.generation.engine is Generation.vllm, self.ppo.importance_clip
        require(clip is None or is_vllm, "ppo.importance_clip goes with generation.engine=vllm", clip)
        rule = f"ppo.mini_batches must be <= batch.size ({self.batch.size}); set both"
        require(self.ppo.mini_batches <= self.batch.size, rule, self.ppo.mini_batches)
        replies = self.batch.size * self.num_samples
        rule = f"kl.horizon must be >= batch.size * num_samples ({replies}), the replies of one iteration"
        require(self.kl.controller is KLControl.fixed or self.kl.horizon >= replies, rule, self.kl.horizon)
        rule = "batch.size * num_samples must be > 1 with reward.whiten or reward.combine=llama2"
        require(replies > 1 or not self.reward.whitens, rule, replies)

    @property
    def has_scalar_head(self) -> bool:
        return self.advantage.has_critic

    def _check_one_backbone(self) -> None:
        """What roles that are adapters on one base cannot be combined with."""
        is_adapted = self.model.has_adapter and not self.model.has_soft_prompt
        require(is_adapted, "roles.share=lora needs model.lora.rank > 0", self.model.lora.rank)
        rule = "model.lora.init must be default or gaussian with roles.share=lora, whose adapters are on one base"
        is_plain = self.model.lora.init in (LoraInit.default, LoraInit.gaussian)
        require(is_plain, rule, self.model.lora.init)
        rule = "model.lora.dora must be false with roles.share=lora, whose critic has a plain adapter"
        require(not self.model.lora.dora, rule, self.model.lora.dora)
        rule = "model.lora.merge_every must be 0 with roles.share=lora, whose roles read one base"
        require(self.model.lora.merge_every == 0, rule, self.model.lora.merge_every)
        rule = "model.lora.target_parameters must be [] with roles.share=lora, whose adapters are on linear layers"
        require(not self.model.lora.target_parameters, rule, self.model.lora.target_parameters)
        rule = "model.lora.modules_to_save must be [] with roles.share=lora, whose roles share all but adapters"
        require(not self.model.lora.modules_to_save, rule, self.model.lora.modules_to_save)
        rule = "roles.share=lora takes one reward model as it is: no reward.models, no reward.normalize"
        require(not self.reward.models and not self.reward.normalize, rule, self.reward)
        require(not self.roles.offload, "roles.share=lora leaves nothing to offload", "roles.offload=true")

    def _check_estimator(self) -> None:
        """Keys of a critic are for an estimator that has one, groups for one that compares replies."""
        estimator = self.advantage.estimator.value
        rule = f"num_samples must be > 1 with advantage.estimator={estimator}, which compares the replies to a prompt"
        require(not self.advantage.is_grouped or self.num_samples > 1, rule, self.num_samples)
        rule = (
            "advantage.redraws must be 0 with reward.whiten or reward.combine=llama2, which whiten all scores together"
        )
        require(not self.advantage.redraws or not self.reward.whitens, rule, self.advantage.redraws)
        if not self.advantage.has_critic:
            rule = f"{{}} must be as it is by default with advantage.estimator={estimator}, which has no critic"
            require(self.critic == CriticConfig(), rule.format("critic"), self.critic)
            require(self.loss.value == ValueLoss(), rule.format("loss.value"), self.loss.value)

    def _check_processes(self) -> None:
        zero = self.distributed.zero
        rule = "distributed.offload_param must not be nvme with roles.share=lora, whose roles take turns on one base"
        offload = self.distributed.offload_param
        require(self.roles.share is not Share.lora or offload is not Offload.nvme, rule, offload)
        rule = "ppo.ema must be null with distributed.offload_param=nvme"
        require(self.ppo.ema is None or self.distributed.offload_param is not Offload.nvme, rule, self.ppo.ema)
        require(not self.roles.offload or zero != 3, "roles.offload must be false with distributed.zero=3", True)

    def optimizer_steps(self, num_steps: int) -> int:
        """The actor's, which waits while the critic warms up."""
        return (num_steps - self.critic.warmup) * self.ppo.inner_steps

    def check_processes(self, processes: int) -> None:
        TrainingConfig.check_processes(self, processes)
        least = self.ppo.mini_batches * processes
        rule = f"batch.size must be a multiple of ppo.mini_batches times the number of processes ({least})"
        require(processes == 1 or self.batch.size % least == 0, rule, self.batch.size)
        rule = f"ptx.size must be a multiple of the number of processes ({processes})"
        require(self.ptx.weight == 0 or self.ptx.size % processes == 0, rule, self.ptx.size)
