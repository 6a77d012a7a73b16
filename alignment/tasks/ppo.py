"""PPO with four roles (arXiv:1909.08593, 2203.02155): actor, reference, reward, critic; and what is PPO without a
critic, where `advantage.estimator` compares replies instead (GRPO, Dr. GRPO, RLOO, REINFORCE++).

repeat:  replies ~ actor;  scores;  experience;  learn
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from alignment.config.parts import require
from alignment.config.tasks import PPOConfig
from alignment.config.vocabulary import Need
from alignment.data.batches import Batches
from alignment.data.experience import Experience
from alignment.data.load import Loaded, load_split
from alignment.losses import Mean
from alignment.rollout.diagnostics import derived
from alignment.rollout.experience import Roles, make_experience
from alignment.rollout.generate import Generator
from alignment.rollout.gold import build_gold
from alignment.rollout.reward import shaped
from alignment.rollout.samples import Samples, build_generator, sample
from alignment.rollout.score import RewardModelScorer
from alignment.tasks.cast import Cast, cast
from alignment.tasks.judge import Judge
from alignment.tasks.memory import held
from alignment.tasks.prepare import (
    build_engine,
    prepare_tokenizer,
    require_positions,
    required_split,
    said,
    save_trained,
)
from alignment.tasks.tools import Ptx, Tools, inner_steps, ptx_of, tools_of
from alignment.terminal import say
from alignment.training.alarm import Alarm
from alignment.training.checkpoint import Stateful
from alignment.training.loop import fit
from alignment.training.nonfinite import Broken
from alignment.training.ppo import learn
from alignment.training.samples_log import SamplesLog
from alignment.training.step import Metrics, only_main, to_floats
from alignment.training.watch import Watch

EVAL_SEED = 2**31  # held-out replies are drawn with the same seed at every evaluation


def run(config: PPOConfig, folder: Path) -> str | None:
    """Returns why the run ended before its last iteration, where `kl.limit` had it end."""
    stage = set_up(config, folder)
    reason = fit(stage, stage.config, folder)
    stage.save_average(folder)
    return reason


@dataclass(slots=True)
class Iteration:
    """What one iteration learns from, and the KL of its replies to the reference (mean, nats a reply)."""

    mini_batches: list[list[Experience]]
    kl: Mean


@dataclass(slots=True)
class Stage:
    """PPO as the loop drives it: a step is an iteration."""

    config: PPOConfig
    tokenizer: PreTrainedTokenizerBase
    data: Loaded
    held_out: Loaded | None
    prompts: Batches
    players: Cast
    roles: Roles
    judge: Judge
    generator: Generator
    ptx: Ptx | None
    tools: Tools
    watch: Watch
    folder: Path
    shown: SamplesLog = field(init=False)

    @property
    def train(self) -> Batches:
        return self.prompts

    @property
    def alarm(self) -> Alarm:
        return self.tools.alarm

    @property
    def kl_limit(self) -> float | None:
        return self.config.kl.limit

    def begin(self, done: int) -> None:
        self.shown = SamplesLog(self.folder, done=done)

    def collect(self, step: int) -> tuple[Metrics, Iteration]:
        """Replies, scored and turned into what is learned from."""
        config, seed = self.config, seed_of(self.config, step)
        with self.watch.part("generate"):
            replies = draw(self, self.data, self.prompts.step_rows(step - 1), seed=seed, replies=config.ppo.replies)
        with self.watch.part("score"):
            scores, judged = self.judge(replies)
        self.shown.write(step, "train", self.judge.table(replies, scores, config.log.samples))
        with self.watch.part("experience"):
            mini_batches, experienced = make_experience(
                self.roles,
                replies,
                shaped(scores, replies, config),
                config,
                kl_weight=self.tools.controller.weight,
                pad_id=self.tokenizer.pad_token_id,
                seed=seed,
            )
        self.watch.count([experience.batch for mini_batch in mini_batches for experience in mini_batch])
        if config.roles.offload:
            self.players.rest(torch.device("cpu"))
        judged |= {"generation/live_fraction": replies.live_fraction(), "kl/weight": experienced["kl/weight"]}
        return {**experienced, **only_main(judged)}, Iteration(mini_batches, experienced["kl"])

    def update(self, step: int, units: Iteration, on_nonfinite: Callable[[Broken], None]) -> Metrics:
        """Epochs over the mini-batches; then what follows the policy: the weight of the KL, and the average."""
        config, tools = self.config, self.tools
        actor_learns = step > config.critic.warmup
        learned = learn(
            self.roles.actor,
            self.roles.critic,
            units.mini_batches,
            config,
            kl_weight=tools.controller.weight,
            seed=seed_of(config, step),
            actor_learns=actor_learns,
            ptx=None if self.ptx is None else partial(self.ptx.term, step),
            on_nonfinite=on_nonfinite,
        )
        if actor_learns:  # a KL that is zero because nothing has been learned yet asks for no smaller weight
            tools.controller.update(to_floats({"kl": units.kl})["kl"], config.batch.size * config.ppo.replies)
        if tools.average is not None:
            tools.average.update()
        return learned

    def evaluate(self, step: int) -> dict[str, float]:
        """The same of one reply to each held-out prompt; nothing where there are none."""
        if self.held_out is None:
            return {}
        everything = list(range(len(self.held_out.examples)))
        replies = draw(self, self.held_out, everything, seed=EVAL_SEED, replies=1)
        scores, judged = self.judge(replies)
        self.shown.write(step, "eval", self.judge.table(replies, scores, self.config.log.samples))
        return derived(to_floats(judged))

    def row(self, means: dict[str, float]) -> dict[str, float]:
        return derived(means)

    def learning_rate(self) -> float:
        return self.roles.actor.learning_rate()

    def parts(self) -> dict[str, Stateful]:
        critic: dict[str, Stateful] = {} if self.roles.critic is None else {"critic": self.roles.critic}
        return {"actor": self.roles.actor, **critic, **self.tools.parts()}

    def save(self, folder: Path) -> None:
        """The policy as it is now."""
        save_trained(self.roles.actor, self.players.policy, self.tokenizer, folder)

    def save_average(self, folder: Path) -> None:
        """The moving average, where there is one, as a model of its own."""
        if self.tools.average is not None:
            with self.roles.actor.at_rest(), self.tools.average.in_place():
                self.save(folder / "model_ema")


def set_up(config: PPOConfig, folder: Path) -> Stage:
    """Data first, models then: the user's mistakes are found before anything is computed."""
    tokenizer = prepare_tokenizer(config.model)
    train = required_split("train", config.data, tokenizer, Need.prompts)
    held_out = said(load_split("eval", config.data, tokenizer, Need.prompts), "eval")
    require_positions(config.model, [train, held_out], config.data, config.generation.max_new_tokens)
    texts = required_split("train", config.ptx.data, tokenizer, Need.demonstrations) if config.ptx.weight else None
    require_positions(config.model, [texts], config.ptx.data)
    gold = build_gold(config)
    players = cast(config, tokenizer)
    judge = Judge(players.reward, gold)
    judge.check([*train.records, *([] if held_out is None else held_out.records)], tokenizer)
    config = replace(config, batch=replace(config.batch, layout=players.layout(config.batch.layout)))
    prompts = Batches(train.examples, config.batch, config.seed, tokenizer.pad_token_id)
    iterations, warmup, inner = prompts.num_steps(config.train), config.critic.warmup, inner_steps(config)
    require(warmup < iterations, f"critic.warmup must be < the run's {iterations} iterations", warmup)
    trained = [list(role.trained().values()) for role in players.trained()]
    average, zero = config.ppo.ema is not None, config.distributed.zero
    say(held(players.models(), trained, average=average, zero=zero).said())
    actor = build_engine(players.policy, config, num_steps=(iterations - warmup) * inner)
    critic = None
    if players.value is not None:
        rate = config.critic.learning_rate
        critic = build_engine(players.value, config, num_steps=iterations * inner, learning_rate=rate)
    if config.distributed.zero == 3:
        players.share_out(config.distributed)
        if isinstance(gold, RewardModelScorer):
            gold.share_out()
    return Stage(
        config,
        tokenizer,
        train,
        held_out,
        prompts,
        players,
        Roles(actor, critic, players.reference),
        judge,
        build_generator(players.policy, tokenizer, config.generation, config.distributed),
        None if texts is None else ptx_of(texts, config, tokenizer.pad_token_id),
        tools_of(config, players.policy),
        Watch(actor.device),
        folder,
    )


def draw(stage: Stage, data: Loaded, rows: list[int], *, seed: int, replies: int) -> Samples:
    """The policy's replies to the prompts at `rows`."""
    return sample(
        stage.generator,
        stage.roles.actor,
        [data.records[row] for row in rows],
        [data.examples[row] for row in rows],
        replies=replies,
        seed=seed,
    )


def seed_of(config: PPOConfig, step: int) -> int:
    return config.seed * 1_000_003 + step
