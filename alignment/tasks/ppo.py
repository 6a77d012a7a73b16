"""PPO with four roles (arXiv:1909.08593, 2203.02155): actor, reference, reward, critic.

repeat:  replies ~ actor;  scores;  experience;  learn
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from alignment.config.parts import ModelConfig, require
from alignment.config.rules import told_of
from alignment.config.tasks import PPOConfig
from alignment.config.vocabulary import Need
from alignment.data.batches import Batches
from alignment.data.experience import Experience
from alignment.data.load import Loaded, load_split
from alignment.rollout.diagnostics import derived
from alignment.rollout.experience import Roles, broken_roles, make_experience
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
    model_folder,
    prepare_tokenizer,
    require_positions,
    required_split,
    said,
    save_trained,
)
from alignment.tasks.tools import Ptx, Tools, inner_steps, ptx_of, tools_of
from alignment.terminal import say
from alignment.training.checkpoint import Checkpoints, Stateful
from alignment.training.log import MetricsLog
from alignment.training.loop import is_due
from alignment.training.nonfinite import told_at
from alignment.training.ppo import learn
from alignment.training.samples_log import SamplesLog
from alignment.training.step import Metrics, only_main, to_floats
from alignment.training.watch import Watch

EVAL_SEED = 2**31  # held-out replies are drawn with the same seed at every evaluation


def run(config: PPOConfig, folder: Path) -> str | None:
    """Returns why the run ended before its last iteration, where `kl.limit` had it end."""
    stage = set_up(config, folder)
    config = stage.config
    actor, critic, tools = stage.roles.actor, stage.roles.critic, stage.tools
    iterations = stage.prompts.num_steps(config.train)
    parts: dict[str, Stateful] = {"actor": actor, "critic": critic, **tools.parts()}
    checkpoints = Checkpoints(folder / "checkpoints", config.checkpoint, parts, zero=config.distributed.zero)
    done = checkpoints.restore()
    shown = SamplesLog(folder, done=done)
    with MetricsLog(folder, config, stage.watch, num_steps=iterations, done=done) as log:
        for step in range(done + 1, iterations + 1):
            measured, mini_batches = experience(stage, step, shown)
            now = to_floats({"kl": measured["kl"], "reward": measured["reward"]})
            if tools.best.exceeded(now["kl"]):
                tools.pending.add(measured)
                log.write(step, derived(tools.pending.take()))
                tools.alarm.say_summary(folder / "checkpoints")
                stage.save_average(folder)
                return tools.best.stop(step, now["kl"], model_folder(folder))
            tools.best.keep_if_best(step, now["reward"], stage.save)
            learning_rate, actor_learns = actor.learning_rate(), step > config.critic.warmup
            with stage.watch.part("learn"):
                measured |= learn(
                    actor,
                    critic,
                    mini_batches,
                    config,
                    kl_weight=tools.controller.weight,
                    seed=seed_of(config, step),
                    actor_learns=actor_learns,
                    ptx=None if stage.ptx is None else partial(stage.ptx.term, step),
                    on_nonfinite=partial(tools.nonfinite.meet, step),
                )
            if actor_learns:  # a KL that is zero because nothing has been learned yet asks for no smaller weight
                tools.controller.update(now["kl"], config.batch.size * config.ppo.replies)
            if tools.average is not None:
                tools.average.update()
            tools.pending.add(measured | only_main(tools.alarm.watch(step, to_floats(measured))))
            watched: dict[str, float] = {}
            if is_due(step, config.train.eval_every, iterations):
                with stage.watch.part("eval"):
                    watched = evaluated(stage, step, shown)
            tools.best.evaluated(watched.get("eval/reward"))
            if watched or is_due(step, config.log.every, iterations):
                row = {**derived(tools.pending.take()), "lr": learning_rate}
                log.write(step, {**row, **tools.nonfinite.metrics(), **watched})
            with stage.watch.part("save"):
                checkpoints.save_if_due(step)
    stage.save_average(folder)
    stage.save(model_folder(folder))
    tools.alarm.say_summary(folder / "checkpoints")
    return None


@dataclass(slots=True)
class Stage:
    """What every iteration needs, and none changes but by learning."""

    config: PPOConfig
    tokenizer: PreTrainedTokenizerBase
    train: Loaded
    held_out: Loaded | None
    prompts: Batches
    players: Cast
    roles: Roles
    judge: Judge
    generator: Generator
    ptx: Ptx | None
    tools: Tools
    watch: Watch

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
    texts = None
    if config.ptx.weight:
        texts = required_split("train", config.ptx.data, tokenizer, Need.demonstrations, part="ptx.data")
    require_positions(config.model, [texts], config.ptx.data, part="ptx.data")
    gold = build_gold(config)
    players = cast(config, tokenizer)
    require_critic_reads(players, train, config)
    judge = Judge(players.reward, gold)
    judge.check([*train.records, *([] if held_out is None else held_out.records)], tokenizer)
    config = replace(config, batch=replace(config.batch, layout=players.layout(config.batch.layout)))
    prompts = Batches(train.examples, config.batch, config.seed, tokenizer.pad_token_id)
    iterations, warmup, inner = prompts.num_steps(config.train), config.critic.warmup, inner_steps(config)
    require(warmup < iterations, f"critic.warmup must be < the run's {iterations} iterations", warmup)
    trained = [list(role.trained().values()) for role in (players.policy, players.value)]
    average, zero = config.ppo.ema is not None, config.distributed.zero
    say(held(players.models(), trained, average=average, zero=zero).said())
    actor = build_engine(players.policy, config, num_steps=(iterations - warmup) * inner)
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
        tools_of(config, players.policy, prompts, folder),
        Watch(actor.device),
    )


def require_critic_reads(players: Cast, train: Loaded, config: PPOConfig) -> None:
    """Raises:
    ConfigError: the critic, which reads the policy's tokens, is of a model with fewer positions.
    """
    start = str(players.value.hf.name_or_path or "")
    if start not in ("", config.model.path):
        with told_of(f"the critic, which begins as {start} (critic.path names another)"):
            require_positions(ModelConfig(path=start), [train], config.data, config.generation.max_new_tokens)


def experience(stage: Stage, step: int, shown: SamplesLog) -> tuple[Metrics, list[list[Experience]]]:
    """One iteration's replies, scored and turned into what is learned from; and what was measured on the way."""
    config, seed = stage.config, seed_of(stage.config, step)
    with stage.watch.part("generate"), told_at(step):
        replies = draw(stage, stage.train, stage.prompts.step_rows(step - 1), seed=seed, replies=config.ppo.replies)
    with stage.watch.part("score"), told_at(step):
        scores, judged = stage.judge(replies)
    shown.write(step, "train", stage.judge.table(replies, scores, config.log.samples))
    with stage.watch.part("experience"):
        mini_batches, experienced = experienced_of(stage, replies, scores, seed=seed)
    stage.tools.nonfinite.meet_roles(step, broken_roles(mini_batches))
    stage.watch.count([experience.batch for mini_batch in mini_batches for experience in mini_batch])
    if config.roles.offload:
        stage.players.rest(torch.device("cpu"))
    judged |= {"generation/live_fraction": replies.live_fraction(), "kl/weight": experienced["kl/weight"]}
    return {**experienced, **only_main(judged)}, mini_batches


def experienced_of(
    stage: Stage, replies: Samples, scores: Tensor, *, seed: int
) -> tuple[list[list[Experience]], Metrics]:
    """The mini-batches that replies and their scores [G, n] give to learn from, and what was measured on the way."""
    return make_experience(
        stage.roles,
        replies,
        shaped(scores, replies, stage.config),
        stage.config,
        kl_weight=stage.tools.controller.weight,
        pad_id=stage.tokenizer.pad_token_id,
        seed=seed,
    )


def evaluated(stage: Stage, step: int, shown: SamplesLog) -> dict[str, float]:
    """The same of one reply to each held-out prompt, as `eval/*`; nothing where there are none."""
    if stage.held_out is None:
        return {}
    everything = list(range(len(stage.held_out.examples)))
    with told_at(step):
        replies = draw(stage, stage.held_out, everything, seed=EVAL_SEED, replies=1)
        scores, judged = stage.judge(replies)
    shown.write(step, "eval", stage.judge.table(replies, scores, stage.config.log.samples))
    return {f"eval/{name}": number for name, number in derived(to_floats(judged)).items()}


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
