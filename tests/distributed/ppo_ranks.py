"""What one process of PPO's invariance test does: the whole task, ten iterations, under each ZeRO stage asked for.

python ppo_ranks.py OUT STAGE ... with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT set; `none` is the plain engine.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
from ranks import INIT, config_of

from alignment.cli.compose import composing, resolve, single
from alignment.config.parts import ModelConfig
from alignment.config.tasks import PPOConfig, RejectionConfig
from alignment.distributed import world
from alignment.models.load import load_scalar_model, load_tokenizer, save_model
from alignment.tasks import ppo, rejection
from alignment.training.checkpoint import seed_everything

SMALL = [
    *("data.train.limit=40", "data.eval.limit=7", "batch.size=8", "batch.max_tokens=200", "log.progress=false"),
    *("generation.max_new_tokens=8", "generation.stop=[g,k]", "log.samples=2"),
]
PPO = [
    *("train.max_steps=10", "train.eval_every=4", "ppo.mini_batches=2", "ppo.epochs=2", "ppo.replies=2"),
    *("reward.function=null", "reward.models={model:{path:REWARD},gold:{function:alignment.world.gold}}"),
    *("reward.whiten=true", "kl.limit=100", "kl.controller=adaptive", "kl.target=2", "critic.warmup=1"),
    *("ptx.weight=0.1", "ptx.size=4", "ptx.data.format=world", "ptx.data.train.limit=20", "checkpoint.every=0"),
]
REJECTION = ["reward.function=null", "reward.path=REWARD", "samples=3"]


def composed(recipe: str, overrides: list[str], reward: Path) -> PPOConfig | RejectionConfig:
    with composing([]):
        overrides = [word.replace("REWARD", str(reward)) for word in [*SMALL, *overrides]]
        config = resolve(single(recipe, overrides))
    assert isinstance(config, PPOConfig | RejectionConfig)
    return replace(config, model=ModelConfig(init=INIT))


def main() -> None:
    torch.set_num_threads(1)
    out, stages = Path(sys.argv[1]), sys.argv[2:]
    folder = out.parent
    world.init(config_of(stages[-1], folder))
    reward = folder / "reward"
    if world.is_main():
        torch.manual_seed(1)
        settings = ModelConfig(init=INIT)
        save_model(load_scalar_model(settings, load_tokenizer(settings)), load_tokenizer(settings), reward)
    world.barrier()
    results = {}
    for stage in stages:
        for name, recipe, overrides in (("ppo", "tiny_ppo", PPO), ("rejection", "tiny_rejection", REJECTION)):
            config = replace(composed(recipe, overrides, reward), distributed=config_of(stage, folder))
            where = folder / f"{name}-{stage}-{world.size()}"
            where.mkdir(exist_ok=True)
            world.barrier()
            seed_everything(config.seed)
            ppo.run(config, where) if isinstance(config, PPOConfig) else rejection.run(config, where)
            world.barrier()
            rows = [json.loads(line) for line in (where / "metrics.jsonl").read_text().splitlines()]
            shown = (where / "samples.jsonl").read_text().splitlines()
            results[f"{name}/{stage}"] = {"rows": rows, "shown": [json.loads(row)["reply"] for row in shown]}
    if world.is_main():
        out.write_text(json.dumps(results))
    world.leave()


if __name__ == "__main__":
    main()
