"""Rejection sampling (Llama 2, section 3.2.3): K replies a prompt, the reward model's pick becomes training data."""

import json
from dataclasses import replace
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from alignment.config.data import ExampleKind
from alignment.config.errors import UserError
from alignment.config.tasks import RejectionConfig
from alignment.data.checks import signs_of
from alignment.data.loaded import Loaded
from alignment.distributed.collectives import is_main
from alignment.distributed.frozen import FrozenEngine, frozen_engine
from alignment.distributed.sharded import placement_of
from alignment.generation.function import asked_by
from alignment.generation.generate import TransformersGenerator
from alignment.generation.samples import Samples, build_generator, sample, side_by_side
from alignment.generation.select import is_plain_reply, select
from alignment.generation.vllm import VLLMGenerator, say_scaling
from alignment.models.load import load_frozen_language_model
from alignment.rl.rewards import Reward, RewardScorer, build_reward
from alignment.runs.folder import RunFolder
from alignment.runs.written import whole_file
from alignment.terminal import say
from alignment.training.samples_log import SamplesLog
from alignment.training.setup import prepare_tokenizer, require_positions, required_split


def run(config: RejectionConfig, folder: Path) -> None:
    files = RunFolder(folder)
    tokenizer, prompts, reward = set_up(config)
    reward.shard()
    policy = load_frozen_language_model(config.model, tokenizer, placement_of(config.distributed))
    engine = frozen_engine(policy, config.distributed)
    generator = build_generator(policy, tokenizer, config.generation, config.distributed)
    samples = draw(generator, engine, prompts, config)
    scores = reward.score(samples)
    shown = samples.first(config.log.samples)
    at = temperature_of_each(config) * len(shown.records) if config.temperatures else None
    table = shown.table(score=scores[: config.log.samples].flatten().tolist(), temperature=at)
    SamplesLog(folder, done=0).write(1, "train", table)
    signs = signs_of(tokenizer, config.data.template)
    rows = select(samples, scores, config.select, signs)
    if not rows:
        raise UserError(
            f"no row was selected: no prompt has replies that end within generation.max_new_tokens="
            f"{config.generation.max_new_tokens} and differ in score; raise generation.max_new_tokens, or "
            f"num_samples, which is {config.num_samples}"
        )
    if is_main():
        with whole_file(files.selected) as path, path.open("w") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    summary = {
        "step": 1,
        "reward": scores.mean().item(),
        "reward/best": scores.amax(1).mean().item(),
        "reward/worst": scores.amin(1).mean().item(),
        **by_temperature(scores, config),
        "rows": len(rows),
    }
    if is_main():
        with whole_file(files.metrics) as path:
            path.write_text(json.dumps(summary) + "\n")
    unread = sum(not is_plain_reply(reply.text, signs) for replies in samples.replies for reply in replies)
    if unread:
        say(f"{unread} replies hold a control token or NUL, which no row of data may: they are no candidates")
    ended = [reply.finished for replies in samples.replies for reply in replies]
    say(
        f"{len(rows)} of {len(samples.records)} prompts gave a row ({sum(ended)} of {len(ended)} replies end, and the "
        f"others are no candidates); mean reward {summary['reward']:.3f}, of the best of {config.num_samples} "
        f"{summary['reward/best']:.3f}"
    )


def set_up(config: RejectionConfig) -> tuple[PreTrainedTokenizerBase, Loaded, Reward]:
    """Data first, models then: the user's mistakes are found before anything is computed."""
    tokenizer = prepare_tokenizer(config.model)
    carried = asked_by(config.reward.functions())
    prompts = required_split("train", config.data, tokenizer, ExampleKind.prompts, carried=carried)
    require_positions(config.model, [prompts], config.data, config.generation.max_new_tokens)
    say_scaling(config.model, config.generation)
    reward = build_reward(config.reward, config.batch, config.distributed, trusted=config.model.trust_remote_code)
    RewardScorer(reward, None).check(prompts.records, tokenizer)
    return tokenizer, prompts, reward


def temperature_of_each(config: RejectionConfig) -> list[float]:
    """[K], of a prompt's replies."""
    temperatures = config.temperatures or [config.generation.temperature]
    return [each for each in temperatures for _ in range(config.num_samples // len(temperatures))]


def draw(
    generator: TransformersGenerator | VLLMGenerator, engine: FrozenEngine, prompts: Loaded, config: RejectionConfig
) -> Samples:
    """K replies a prompt, as many at each temperature."""
    temperatures = config.temperatures or [config.generation.temperature]
    parts = [
        sample(
            replace(generator, config=replace(config.generation, temperature=temperature)),
            engine,
            prompts.records,
            prompts.examples,
            replies=config.num_samples // len(temperatures),
            seed=config.seed + (number << 32),  # the same draws at two temperatures would make much the same replies
            describe=f"{config.num_samples // len(temperatures)} replies a prompt at temperature {temperature:g}",
        )
        for number, temperature in enumerate(temperatures)
    ]
    return side_by_side(parts)


def by_temperature(scores: Tensor, config: RejectionConfig) -> dict[str, float]:
    """Of each temperature, where several are given: the mean reward, and the share of prompts whose best it made."""
    if not config.temperatures:
        return {}
    n = config.num_samples // len(config.temperatures)
    best = scores.argmax(1) // n
    found = {}
    for number, (temperature, part) in enumerate(zip(config.temperatures, scores.split(n, dim=1), strict=True)):
        found[f"reward/temperature_{temperature:g}"] = part.mean().item()
        found[f"best/temperature_{temperature:g}"] = (best == number).double().mean().item()
    return found
