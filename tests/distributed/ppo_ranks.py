"""What one process of PPO's invariance test does: ten iterations of the whole task, of GRPO and of online DPO, four of
their kin and of PPO with one backbone for all roles, packed too, rejection sampling, and an evaluation of the models
that one process has made; each under the ZeRO stages asked for.

python ppo_ranks.py OUT TASK/STAGE ... with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT set; `none` is the plain
engine.
"""

import gc
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from ranks import INIT, config_of

from alignment.cli.compose import composing, resolve, single
from alignment.config.model import LoraConfig, ModelConfig
from alignment.config.online import PPOConfig
from alignment.config.run import RunConfig
from alignment.config.tasks import RejectionConfig
from alignment.distributed import collectives
from alignment.distributed.placement import WHOLE
from alignment.models.load import load_language_model, load_scalar_model, save_model
from alignment.models.tokenizer import load_tokenizer
from alignment.tasks import evaluate, online_dpo, ppo, rejection
from alignment.training.generators import seed_everything

SMALL = [
    *("data.train.limit=40", "data.eval.limit=7", "batch.max_tokens=200", "log.progress=false"),
    *("generation.max_new_tokens=8", "generation.stop=[g,k]", "log.samples=2"),
]
PPO = [
    *(
        "batch.size=8",
        "train.max_steps=10",
        "train.eval_every=4",
        "ppo.mini_batches=2",
        "ppo.epochs=2",
        "num_samples=2",
    ),
    *("reward.function=null", "reward.models={model:{path:REWARD},gold:{function:alignment.toy.gold}}"),
    *("reward.whiten=true", "kl.limit=100", "kl.controller=adaptive", "kl.target=2", "critic.warmup=1"),
    *("ptx.weight=0.1", "ptx.size=4", "ptx.data.format=toy", "ptx.data.train.limit=20", "checkpoint.every=0"),
    "ppo.ema=0.8",
]
SHARED = [
    *(
        "batch.size=8",
        "train.max_steps=4",
        "train.eval_every=2",
        "train.learning_rate=1e-3",
        "ppo.mini_batches=2",
        "ppo.epochs=2",
    ),
    *("model.path=FOLDER/first", "model.lora.rank=4", "roles.share=lora", "checkpoint.every=0"),
    *("reward.function=null", "reward.path=FOLDER/judge/adapter", "num_samples=2"),
]
NO_CRITIC = [
    *(
        "batch.size=8",
        "train.max_steps=10",
        "train.eval_every=4",
        "train.learning_rate=1e-3",
        "ppo.mini_batches=2",
        "ppo.epochs=2",
    ),
    *("num_samples=3", "model.path=FOLDER/first", "checkpoint.every=0"),
]
FOUR = [*NO_CRITIC, "train.max_steps=4"]  # what GRPO is, but for an advantage and a loss
GRPO = [
    *NO_CRITIC,
    "reward.function=coarse.parity",
    "advantage.redraws=1",
    "advantage.drop_alike=true",
]
GRPO_WHITE = [*GRPO, "train.max_steps=4", "advantage.whiten=true"]  # not of what fills up the ranks
DR_GRPO = [*GRPO, "train.max_steps=4", "advantage.estimator=dr_grpo", "loss.policy.normalization=constant"]
GSPO = [*GRPO, "train.max_steps=4", "loss.policy.ratio=sequence", "loss.policy.clip=3e-4", "loss.policy.clip_high=4e-4"]
ONLINE_DPO = [  # what a pair's prompt gives a weight cancels but for rounding, of which AdamW's eps makes no step
    *("train.max_steps=10", "train.eval_every=4", "train.learning_rate=1e-3", "num_samples=3", "pairs=all"),
    # With seed=0 a draw of the sixth step lies 9e-9 from the next token, and rounding decides; here none within 3e-7.
    *("batch.size=8", "train.eps=1e-4", "seed=6"),
    *("model.path=FOLDER/first", "reward.function=null", "reward.path=REWARD", "checkpoint.every=0"),
]
ONLINE_AOT = [*ONLINE_DPO, "train.max_steps=4", "loss.variant=aot"]
REJECTION = ["reward.function=null", "reward.path=REWARD", "num_samples=3"]
EVALUATE = [
    *("runs={best:FOLDER/ppo-none-1/best,last:FOLDER/ppo-none-1/model,first:FOLDER/first}", "baseline=first"),
    *("reward=REWARD", "num_samples=3", "pairs={format:toy,eval:{limit:9},max_length:128,max_prompt_length:64}"),
    *("log.samples=100", "generation.temperature=0.9"),
]
BY_LAYER = "3, by layer"  # a stage in which replies are drawn from a model that is never whole
TASKS = {
    "ppo": ("tiny_ppo", PPO, ppo.run),
    "shared": ("tiny_ppo", SHARED, ppo.run),
    "shared_packed": ("tiny_ppo", [*SHARED, "model.quantization=nf4"], ppo.run),
    "grpo": ("tiny_grpo", GRPO, ppo.run),
    "grpo_white": ("tiny_grpo", GRPO_WHITE, ppo.run),
    "dr_grpo": ("tiny_grpo", DR_GRPO, ppo.run),
    "gspo": ("tiny_grpo", GSPO, ppo.run),
    "rloo": ("tiny_rloo", FOUR, ppo.run),
    "reinforce_pp": ("tiny_reinforce_pp", FOUR, ppo.run),
    "online_dpo": ("tiny_online_dpo", ONLINE_DPO, online_dpo.run),
    "online_aot": ("tiny_online_dpo", ONLINE_AOT, online_dpo.run),
    "rejection": ("tiny_rejection", REJECTION, rejection.run),
    "evaluate": ("tiny_evaluate", EVALUATE, evaluate.run),
}


def composed(recipe: str, overrides: list[str], folder: Path) -> RunConfig:
    with composing([]):
        overrides = [word.replace("REWARD", str(folder / "reward")) for word in [*SMALL, *overrides]]
        config = resolve(single(recipe, [word.replace("FOLDER", str(folder)) for word in overrides]))
    if isinstance(config, PPOConfig | RejectionConfig) and config.model.path is None:
        return replace(config, model=ModelConfig(init=INIT))
    return config


def make_models(folder: Path) -> None:
    """A policy, a reward model, and one that is an adapter on the policy's weights."""
    settings = ModelConfig(init=INIT)
    tokenizer = load_tokenizer(settings)
    for seed, (name, load) in enumerate({"first": load_language_model, "reward": load_scalar_model}.items()):
        torch.manual_seed(seed)
        save_model(load(settings, tokenizer, WHOLE), tokenizer, folder / name)
    judge = load_scalar_model(ModelConfig(path=str(folder / "first"), lora=LoraConfig(rank=4)), tokenizer, WHOLE)
    for weight in judge.trained().values():
        torch.nn.init.normal_(weight, std=0.1)
    save_model(judge, tokenizer, folder / "judge")


def seen(where: Path) -> dict[str, Any]:
    """What a task has written that is compared."""
    shown = [json.loads(row) for row in (where / "samples.jsonl").read_text().splitlines()]
    if (where / "summary.json").exists():
        return {"shown": shown, "summary": json.loads((where / "summary.json").read_text())}
    rows = [json.loads(line) for line in (where / "metrics.jsonl").read_text().splitlines()]
    return {"rows": rows, "shown": [row["reply"] for row in shown]}


def main(make: Callable[[Path], None] = make_models) -> None:
    gc.freeze()  # as a run does; DeepSpeed collects often
    torch.set_num_threads(1)
    out, cases = Path(sys.argv[1]), [case.split("/") for case in sys.argv[2:]]
    folder = out.parent
    collectives.init(config_of(cases[0][1], folder))
    if collectives.is_main():
        make(folder)
    collectives.barrier()
    results: dict[str, Any] = {}
    for name, stage in cases:
        recipe, overrides, run = TASKS[name]
        more, zero = (["distributed=zero3", "generation.gather=layer"], "3") if stage == BY_LAYER else ([], stage)
        config = replace(composed(recipe, [*overrides, *more], folder), distributed=config_of(zero, folder))
        where = folder / f"{name}-{stage}-{collectives.size()}"
        where.mkdir(exist_ok=True)
        collectives.barrier()
        seed_everything(config.seed)
        run(config, where)  # type: ignore[operator]
        collectives.barrier()
        results[f"{name}/{stage}"] = seen(where)
    if collectives.is_main():
        out.write_text(json.dumps(results))


if __name__ == "__main__":
    main()
