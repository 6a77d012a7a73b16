"""Rejection sampling (Llama 2, section 3.2.3): K replies a prompt, the reward model's pick becomes training data."""

import json
from pathlib import Path

from alignment.config.parts import UserError
from alignment.config.tasks import RejectionConfig
from alignment.config.vocabulary import Need
from alignment.distributed.engine import autocast
from alignment.distributed.world import is_main, pick_device
from alignment.models.load import load_language_model
from alignment.rollout.reward import build_reward
from alignment.rollout.samples import build_generator, sample
from alignment.rollout.select import select
from alignment.tasks.prepare import prepare_tokenizer, required_split
from alignment.terminal import say
from alignment.training.samples_log import SamplesLog


def run(config: RejectionConfig, folder: Path) -> None:
    tokenizer = prepare_tokenizer(config.model)
    prompts = required_split("train", config.data, tokenizer, Need.prompts)
    reward = build_reward(config.reward, tokenizer, config.batch, config.distributed)
    if config.distributed.zero == 3:
        reward.share_out(config.distributed)
    device = pick_device(config.distributed.device)
    policy = load_language_model(config.model, tokenizer).to(device)
    with autocast(device, config.distributed.precision):
        samples = sample(
            build_generator(policy, tokenizer, config.generation, config.distributed),
            prompts.records,
            prompts.examples,
            replies=config.samples,
            seed=config.seed,
            describe=f"{config.samples} replies a prompt",
        )
    scores = reward.score(samples)
    shown = samples.first(config.log.samples)
    SamplesLog(folder, done=0).write(1, "train", shown.table(score=scores[: config.log.samples].flatten().tolist()))
    rows = select(samples, scores, config.select)
    if not rows:
        raise UserError(
            f"no prompt gave a row: none of {config.samples} replies ended within max_new_tokens, or all tied"
        )
    if is_main():
        with (folder / "selected.jsonl").open("w") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    summary = {
        "step": 1,
        "reward": scores.mean().item(),
        "reward/best": scores.amax(1).mean().item(),
        "reward/worst": scores.amin(1).mean().item(),
        "rows": len(rows),
    }
    if is_main():
        (folder / "metrics.jsonl").write_text(json.dumps(summary) + "\n")
    say(
        f"{len(rows)} of {len(samples.prompts)} prompts gave a row; mean reward {summary['reward']:.3f}, "
        f"of the best of {config.samples} {summary['reward/best']:.3f}"
    )
