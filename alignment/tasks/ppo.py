"""PPO with four roles (arXiv:1909.08593, 2203.02155): actor, reference, reward, critic; and what is PPO without a
critic, where `advantage.estimator` compares replies instead (GRPO, Dr. GRPO, RLOO, REINFORCE++).

repeat:  replies ~ actor;  scores;  experience;  learn
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from alignment.config.cross_checks import told_of
from alignment.config.enums import ExampleKind
from alignment.config.sections import ModelConfig, require
from alignment.config.tasks import PPOConfig
from alignment.data.batches import Batches
from alignment.data.load import Loaded
from alignment.generation.gold import build_gold
from alignment.generation.samples import Samples, build_generator
from alignment.losses import Mean
from alignment.rl.experience import Experience, Roles, broken_roles, make_experience
from alignment.rl.memory import estimate_memory
from alignment.rl.roles import PPOModels, build_models
from alignment.rl.rollouts import OnPolicy, Rollouts, load_prompts, not_alike, shard_reference
from alignment.rl.state import PPOState, Ptx, build_state, inner_steps, ptx_of
from alignment.rl.update import learn
from alignment.runs.folder import RunFolder
from alignment.terminal import say
from alignment.training.checkpoint import Stateful
from alignment.training.loop import fit
from alignment.training.metrics import Metrics
from alignment.training.nonfinite import NonFiniteGuard
from alignment.training.setup import (
    build_engine,
    packer_of,
    require_positions,
    required_split,
    save_trained,
)
from alignment.training.timer import StepTimer


def run(config: PPOConfig, folder: Path) -> str | None:
    """Returns why the run ended before its last iteration, where `kl.limit` had it end."""
    trainer = build_trainer(config, folder)
    reason = fit(trainer, trainer.config, folder)
    trainer.save_average(folder)
    return reason


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
    roles: Roles
    ptx: Ptx | None
    state: PPOState

    @property
    def kl_limit(self) -> float | None:
        return self.config.kl.limit

    def collect(self, step: int) -> tuple[Metrics, Iteration]:
        """Replies, scored and turned into what is learned from."""
        samples, scores, judged = self.rollouts.step(step, self.config.ppo.replies)
        counted = None
        if self.config.advantage.is_grouped:
            samples, scores, groups = self.rollouts.redrawn(samples, scores, step, self.config.advantage.redraws)
            judged = judged | groups
            if self.config.advantage.drop_alike:
                counted = not_alike(scores)
        with self.timer.part("experience"):
            mini_batches, experienced = experienced_of(
                self, samples, scores, seed=self.rollouts.seed(step), counted=counted
            )
        self.timer.count([experience.batch for mini_batch in mini_batches for experience in mini_batch])
        if self.config.roles.offload:
            self.models.rest(torch.device("cpu"))
        judged = judged | {"kl/weight": experienced["kl/weight"]}
        return experienced | judged.counted_by_main(), Iteration(mini_batches, experienced["kl"])

    def update(self, step: int, units: Iteration, nonfinite: NonFiniteGuard) -> Metrics:
        """Epochs over the mini-batches; then what follows the policy: the weight of the KL, and the average."""
        config, state = self.config, self.state
        nonfinite.record_roles(step, broken_roles(units.mini_batches))
        actor_learns = step > config.critic.warmup
        learned = learn(
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
        if actor_learns:  # a KL that is zero because nothing has been learned yet asks for no smaller weight
            state.controller.update(Metrics(kl=units.kl).means()["kl"], config.batch.size * config.ppo.replies)
        if state.average is not None:
            state.average.update()
        return learned

    def parts(self) -> dict[str, Stateful]:
        critic: dict[str, Stateful] = {} if self.roles.critic is None else {"critic": self.roles.critic}
        return {"actor": self.roles.actor, **critic, **self.state.parts()}

    def save_average(self, folder: Path) -> None:
        """The moving average, where there is one, as a model of its own."""
        if self.state.average is not None:
            with self.roles.actor.partitioned(), self.state.average.in_place():
                self.save(RunFolder(folder).model_ema)


def build_trainer(config: PPOConfig, folder: Path) -> PPOTrainer:
    """Data first, models then: the user's mistakes are found before anything is computed."""
    data = load_prompts(config)
    tokenizer = data.tokenizer
    texts = None
    if config.ptx.weight:
        texts = required_split("train", config.ptx.data, tokenizer, ExampleKind.demonstrations, part="ptx.data")
    require_positions(config.model, [texts], config.ptx.data, part="ptx.data")
    gold = build_gold(config)
    models = build_models(config, tokenizer)
    require_critic_reads(models, data.train, config)
    scorer = data.scorer(models.reward, gold)
    config = replace(config, batch=replace(config.batch, layout=models.layout(config.batch.layout)))
    prompts = Batches(data.train.examples, packer_of(config.batch, tokenizer), config.seed)
    iterations, warmup, inner = prompts.num_steps(config.train), config.critic.warmup, inner_steps(config)
    require(warmup < iterations, f"critic.warmup must be < the run's {iterations} iterations", warmup)
    trained = [list(role.trained().values()) for role in models.trained()]
    average, zero = config.ppo.ema is not None, config.distributed.zero
    say(estimate_memory(models.modules(), trained, average=average, zero=zero).summary())
    actor = build_engine(models.policy, config, num_steps=(iterations - warmup) * inner)
    critic = None
    if models.value is not None:
        rate = config.critic.learning_rate
        critic = build_engine(models.value, config, num_steps=iterations * inner, learning_rate=rate)
    if config.distributed.zero == 3:
        scorer.shard()
        shard_reference(models.reference, config.distributed)
    generator = build_generator(models.policy, tokenizer, config.generation, config.distributed)
    return PPOTrainer(
        Rollouts(config, data, prompts, scorer, actor, generator, folder, StepTimer(actor.device)),
        partial(save_trained, actor, models.policy, tokenizer),
        config,
        models,
        Roles(actor, critic, models.reference),
        None if texts is None else ptx_of(texts, config, prompts.packer),
        build_state(config, models.policy),
    )


def require_critic_reads(models: PPOModels, train: Loaded, config: PPOConfig) -> None:
    """Raises:
    ConfigError: the critic, which reads the policy's tokens, is of a model with fewer positions.
    """
    start = "" if models.value is None else str(models.value.hf.name_or_path or "")
    if start not in ("", config.model.path):
        with told_of(f"the critic, which begins as {start} (critic.path names another)"):
            asked = config.generation.max_new_tokens
            require_positions(ModelConfig(path=start), [train], config.data, asked)


def experienced_of(
    trainer: PPOTrainer, samples: Samples, scores: Tensor, *, seed: int, counted: Tensor | None = None
) -> tuple[list[list[Experience]], Metrics]:
    """The mini-batches that replies and what they are worth, [G, n], give to learn from, and what was measured."""
    return make_experience(
        trainer.roles,
        samples,
        scores,
        trainer.config,
        kl_weight=trainer.state.controller.weight,
        packer=trainer.rollouts.batches.packer,
        seed=seed,
        counted=counted,
    )
