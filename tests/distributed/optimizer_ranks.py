"""What one process of the test of optimizers does: steps of SFT under each optimizer and ZeRO stage.

python optimizer_ranks.py OUT NAME,NAME STAGE ... with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT set; `none` is the
plain engine.
"""

import gc
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from ranks import INIT, TRAIN, batches_of, config_of, objective_of

from alignment.config.distributed import DistributedConfig
from alignment.config.errors import UserError
from alignment.config.model import LoraConfig, ModelConfig
from alignment.config.optimizer import UNSHARDED, OptimizerName
from alignment.config.train import Schedule
from alignment.distributed import collectives
from alignment.distributed.deepspeed import DeepSpeedEngine
from alignment.distributed.engine import Engine, TorchEngine
from alignment.distributed.sharded import placement_of
from alignment.models.load import load_language_model
from alignment.models.tokenizer import load_tokenizer
from alignment.training.optim import build_optimizer
from alignment.training.step import train_step

STEPS, LEFT = 6, 3
PLUS = "lora_plus"  # AdamW of adapters, B at four times A's rate
OWN: dict[str, dict[str, Any]] = {
    "lion": {"optimizer": OptimizerName.lion, "learning_rate": 1e-3},
    "sgd": {"optimizer": OptimizerName.sgd, "learning_rate": 0.1, "momentum": 0.8},
    "adamw_8bit": {"optimizer": OptimizerName.adamw_8bit},
    "adamw_bf16": {"optimizer": OptimizerName.adamw_bf16},
    "muon": {"optimizer": OptimizerName.muon},
    "adafactor": {"optimizer": OptimizerName.adafactor},
    PLUS: {},
}
RATES = {"head_lr_ratio": 2.0, "embedding_lr_ratio": 0.5}


def names_of(stage: str) -> list[str]:
    """What runs under it, of those asked for."""
    left_out = set() if stage in ("none", "0") else {name.value for name in UNSHARDED}
    return [
        name
        for name in sys.argv[2].split(",")
        if name not in left_out | ({"adamw_8bit"} if stage == "offload" else set())
    ]


def build(name: str, config: DistributedConfig) -> Engine:
    torch.manual_seed(0)
    lora = LoraConfig(rank=4, plus=4.0) if name == PLUS else LoraConfig()
    settings = ModelConfig(init=INIT, lora=lora)
    model = load_language_model(settings, load_tokenizer(settings), placement_of(config))
    train = replace(TRAIN, warmup_steps=0, schedule=Schedule.constant, **OWN[name], **({} if name == PLUS else RATES))
    optimizer, scheduler = build_optimizer(
        model, train, num_steps=STEPS, learning_rate=train.learning_rate, lora_plus=lora.plus
    )
    kind = TorchEngine if config.zero is None else DeepSpeedEngine
    return kind(model, optimizer, scheduler, config=config, max_grad_norm=train.max_grad_norm)


def saved_by(name: str, stage: str, rank: int) -> Path:
    return Path(sys.argv[1]).parent / f"{name}-{stage}-{collectives.size()}-{rank}.pt"


def losses(engine: Engine, first: int, *, save: Path | None = None) -> list[float]:
    batches = batches_of("sft")
    objective, found = objective_of("sft", engine, batches), []
    for index in range(first, STEPS):
        if index == LEFT and save is not None:
            torch.save(engine.state(), save)
        found.append(train_step(engine, objective, batches.step(index)).means()["loss"])
    return found


def resumed(name: str, stage: str, config: DistributedConfig) -> list[float]:
    """From step `LEFT` on, by a fresh engine."""
    engine = build(name, config)
    engine.load_state(torch.load(saved_by(name, stage, collectives.rank()), weights_only=True))
    return losses(engine, LEFT)


def cut_anew(name: str, stage: str, config: DistributedConfig) -> list[float] | str:
    """From step `LEFT` on, from what the processes saved under another stage; or what is said instead."""
    engine = build(name, config)
    paths = [saved_by(name, stage, rank) for rank in range(collectives.size())]
    try:
        engine.load_resharded([torch.load(path, weights_only=True, mmap=True) for path in paths])
    except UserError as error:
        return str(error)
    return losses(engine, LEFT)


def main() -> None:
    gc.freeze()
    torch.set_num_threads(1)
    out, stages = Path(sys.argv[1]), sys.argv[3:]
    results: dict[str, Any] = {}
    before = ""
    for stage in stages:
        config = config_of(stage, out.parent)
        collectives.init(config)
        for name in names_of(stage):
            save = saved_by(name, stage, collectives.rank())
            results[f"{name}/{stage}"] = losses(build(name, config), 0, save=save)
            results[f"resumed/{name}/{stage}"] = resumed(name, stage, config)
            collectives.barrier()
            if before and name in names_of(before):
                results[f"cut anew/{name}/{stage}"] = collectives.gathered(cut_anew(name, before, config))[0]
        before = stage
    if collectives.is_main():
        out.write_text(json.dumps(results))


if __name__ == "__main__":
    main()
