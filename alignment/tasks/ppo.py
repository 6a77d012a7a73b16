"""PPO with four roles (arXiv:1909.08593, 2203.02155): actor, reference, reward, critic. Without the critic, and
with `advantage.estimator` in its place, it is GRPO, Dr. GRPO, RLOO or REINFORCE++.

    collect     replies ~ actor  ->  scores  ->  experience: log-probs, KL, rewards, values, advantages
    update      epochs over mini-batches of it: actor, critic

The files of `alignment/rl` in reading order are in its docstring.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from alignment.config.data import ExampleKind
from alignment.config.errors import error_prefix, require
from alignment.config.model import ModelConfig
from alignment.config.online import PPOConfig
from alignment.config.ppo import AdvantageEstimator, Share
from alignment.data.loaded import Loaded
from alignment.generation.gold import build_gold
from alignment.generation.samples import Samples
from alignment.generation.server import PROCESSED
from alignment.losses import Mean
from alignment.losses.ppo import ImportanceRatio, Normalization
from alignment.models.optimizer_states import gradient_bytes, states_of
from alignment.rl.experience import Experience, count_nonfinite, make_experience
from alignment.rl.groups import not_all_alike, redraw_alike
from alignment.rl.memory import estimate_memory
from alignment.rl.on_policy import OnPolicy
from alignment.rl.ptx import Ptx, build_ptx
from alignment.rl.reference import shard_reference
from alignment.rl.roles import PPOModels, PPORoles, build_models, take_turns_on_one_backbone
from alignment.rl.rollouts import build_rollouts, load_prompts
from alignment.rl.state import PPOState, build_state
from alignment.rl.update import update_actor_and_critic
from alignment.runs.folder import RunFolder
from alignment.terminal import say
from alignment.training.checkpoint import Stateful
from alignment.training.loop import fit
from alignment.training.merging import with_merging
from alignment.training.metrics import Metrics
from alignment.training.nonfinite import NonFiniteGuard
from alignment.training.setup import (
    build_engine,
    fill_adapter,
    require_positions,
    required_split,
    save_trained,
)

GSPO_CLIP = 0.01  # above it a clip is one of tokens' ratios


def run(config: PPOConfig, folder: Path) -> str | None:
    """Returns why the run ended before its last iteration, where `kl.limit` had it end."""
    for line in unlike_its_authors(config):
        say(line)
    trainer = build_trainer(config, folder)
    reason = fit(trainer, trainer.config, folder)
    if config.train.max_steps != 0:
        trainer.save_average(folder)
    return reason


def unlike_its_authors(config: PPOConfig) -> Iterator[str]:
    """A line on each choice whose authors have another setting with it."""
    loss = config.loss.policy
    if loss.ratio is ImportanceRatio.sequence and loss.clip > GSPO_CLIP:
        own = "GSPO's clips are 3e-4 and 4e-4 (loss.policy.clip, clip_high)"
        yield f"loss.policy.ratio=sequence: {own}, not {loss.clip:g}"
    of_tokens = loss.ratio is ImportanceRatio.token and loss.normalization is not Normalization.constant
    if config.advantage.estimator is AdvantageEstimator.dr_grpo and of_tokens:
        own = "Dr. GRPO's loss is loss.policy.normalization=constant"
        yield f"advantage.estimator=dr_grpo: {own}, not {loss.normalization.value}"


@dataclass(slots=True)
class Iteration:
    """What one iteration learns from, and the KL of its replies to the reference (mean, nats a reply)."""

    mini_batches: list[list[Experience]]
    kl: Mean


@dataclass(slots=True)
class PPOTrainer(OnPolicy):
    """PPO as the loop drives it: a step is an iteration."""

    config: PPOConfig
    models: PPOModels
    roles: PPORoles
    ptx: Ptx | None
    state: PPOState

    @property
    def kl_limit(self) -> float | None:
        return self.config.kl.limit

    def collect(self, step: int) -> tuple[Metrics, Iteration]:
        """Replies, their scores, and the experience that they give."""
        advantage = self.config.advantage
        samples, scores, metrics = self.rollouts.draw_and_score(step)
        counted = None
        if advantage.is_grouped:
            samples, scores, groups = redraw_alike(self.rollouts, samples, scores, step, advantage.redraws)
            metrics |= groups
            counted = not_all_alike(scores) if advantage.drop_alike else None
        metrics["kl/weight"] = Mean.of(torch.tensor([self.state.controller.weight], dtype=torch.float64))
        with self.timer.part("experience"):
            mini_batches, of_replies = self.experience(samples, scores, self.rollouts.seed(step), counted)
        self.timer.count([experience.batch for mini_batch in mini_batches for experience in mini_batch])
        if self.config.roles.offload:
            self.models.offload()
            self.rollouts.scorer.offload()
        return of_replies | metrics.counted_by_main(), Iteration(mini_batches, of_replies["kl"])

    def experience(
        self, samples: Samples, scores: Tensor, seed: int, counted: Tensor | None = None
    ) -> tuple[list[list[Experience]], Metrics]:
        """Experience of replies and their `scores` [G, n], in mini-batches, and the replies' metrics. `counted` [G]
        bool: the prompts to learn from; None: all."""
        return make_experience(
            self.roles,
            samples,
            scores,
            self.config,
            kl_weight=self.state.controller.weight,
            packer=self.rollouts.batches.packer,
            seed=seed,
            counted=counted,
        )

    def update(self, step: int, units: Iteration, nonfinite: NonFiniteGuard) -> Metrics:
        """Epochs over the mini-batches, and then the KL's weight and the moving average of the actor."""
        config, state = self.config, self.state
        nonfinite.record_roles(step, count_nonfinite(units.mini_batches))
        actor_learns = step > config.critic.warmup
        learned = update_actor_and_critic(
            self.roles.actor,
            self.roles.critic,
            units.mini_batches,
            config,
            kl_weight=state.controller.weight,
            seed=self.rollouts.seed(step),
            actor_learns=actor_learns,
            ptx=None if self.ptx is None else partial(self.ptx.term, step),
            on_nonfinite=partial(nonfinite.record, step),
        )
        # While the critic warms up the policy is still the reference, whose KL of 0 must not change kl.weight.
        if actor_learns:
            state.controller.update(Metrics(kl=units.kl).means()["kl"], config.batch.size * config.num_samples)
        if state.average is not None:
            state.average.update()
        return learned

    def parts(self) -> dict[str, Stateful]:
        critic = {} if self.roles.critic is None else {"critic": self.roles.critic}
        return {**with_merging({"actor": self.roles.actor, **critic}), **self.state.parts()}

    def save_average(self, folder: Path) -> None:
        """The moving average, where there is one, as a model of its own."""
        if self.state.average is not None:
            with self.roles.actor.partitioned(), self.state.average.in_place():
                self.save(RunFolder(folder).model_ema)


def build_trainer(config: PPOConfig, folder: Path) -> PPOTrainer:
    """Data first, models then: the user's mistakes are found before anything is computed."""
    prompts = load_prompts(config)
    tokenizer = prompts.tokenizer
    texts = None
    if config.ptx.weight:
        texts = required_split("train", config.ptx.data, tokenizer, ExampleKind.demonstrations, part="ptx.data")
    require_positions(config.model, [texts], config.ptx.data, part="ptx.data")
    gold = build_gold(config)
    models = build_models(config, tokenizer)
    require_critic_reads(models, prompts.train, config)
    scorer = prompts.scorer(models.reward, gold)
    config = replace(config, batch=replace(config.batch, layout=models.layout(config.batch.layout)))
    learners = [each for each in (models.policy, models.critic) if each is not None]
    memory = estimate_memory(
        [*models.modules(), *(each.model for each in scorer.models())],
        actor=list(models.policy.trained().values()),
        critic=[] if models.critic is None else list(models.critic.trained().values()),
        average=config.ppo.ema is not None,
        zero=config.distributed.zero,
        states=sum(states_of(each, config.train) for each in learners),
        keeps_gradients=gradient_bytes(config.train, 1.0) > 0,
    )
    say(memory.summary())
    rollouts = build_rollouts(config, prompts, scorer, models.policy, folder)
    rule = f"ppo.importance_clip needs a vLLM server that was started with --logprobs-mode {PROCESSED}"
    is_known = config.ppo.importance_clip is None or rollouts.generator.keeps_logprobs
    require(is_known, f"{rule} where generation.temperature is not 1", config.generation.temperature)
    iterations, warmup = rollouts.batches.num_steps(config.train), config.critic.warmup
    require(
        warmup < iterations or iterations == 0, f"critic.warmup must be < the run's {iterations} iterations", warmup
    )
    critic = None
    if models.critic is not None:
        fill_adapter(models.critic, config.model, rollouts.batches)
        steps, rate = iterations * config.ppo.inner_steps, config.critic.learning_rate
        critic = build_engine(models.critic, config, num_steps=steps, learning_rate=rate)
    shard_reference(models.reference, config.distributed)
    roles = PPORoles(rollouts.engine, critic, models.reference)
    if config.roles.share is Share.lora and config.distributed.zero == 3:
        take_turns_on_one_backbone(roles, models)
    return PPOTrainer(
        rollouts=rollouts,
        write=partial(save_trained, rollouts.engine, models.policy, tokenizer),
        config=config,
        models=models,
        roles=roles,
        ptx=None if texts is None else build_ptx(texts, config, rollouts.batches.packer),
        state=build_state(config, models.policy),
    )


def require_critic_reads(models: PPOModels, train: Loaded, config: PPOConfig) -> None:
    """Raises:
    ConfigError: the critic, which reads the policy's tokens, is of a model with fewer positions.
    """
    start = "" if models.critic is None else str(models.critic.hf.name_or_path or "")
    if start not in ("", config.model.path):
        with error_prefix(f"the critic, which begins as {start} (critic.path names another)"):
            asked = config.generation.max_new_tokens
            trusted, rope = config.model.trust_remote_code, config.model.rope
            critic = ModelConfig(path=start, trust_remote_code=trusted, rope=rope)
            require_positions(critic, [train], config.data, asked)
