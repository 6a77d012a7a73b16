"""What one process of the test of merged adapters does: steps of SFT with merges, under each ZeRO stage.

python merging_ranks.py OUT STAGE ... with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT set; `none` is the plain
engine. From the second stage on it also goes on from what the stage before it has saved.
"""

import gc
import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from ranks import BATCH, INIT, TRAIN, batches_of, config_of, objective_of

from alignment.config.data import DataConfig
from alignment.config.distributed import DistributedConfig
from alignment.config.model import LoraConfig, ModelConfig
from alignment.config.sources import Format, TrainSource
from alignment.config.supervised import SFTConfig
from alignment.config.train import Schedule
from alignment.distributed import collectives
from alignment.distributed.engine import Engine
from alignment.distributed.sharded import placement_of
from alignment.models.load import load_language_model
from alignment.models.tokenizer import load_tokenizer
from alignment.training.merging import with_merging
from alignment.training.setup import build_engine
from alignment.training.step import evaluate_step, train_step

STEPS, EVERY, LEFT = 5, 2, 3
LORA = LoraConfig(rank=4, merge_every=EVERY, restart_warmup_steps=1, modules_to_save=["lm_head"], plus=2.0)
DATA = DataConfig(format=Format.toy, train=TrainSource(limit=6))


def build(config: DistributedConfig) -> tuple[Engine, Any]:
    torch.manual_seed(0)
    settings = ModelConfig(init=INIT, lora=LORA)
    model = load_language_model(settings, load_tokenizer(settings), placement_of(config))
    train = replace(TRAIN, warmup_steps=0, schedule=Schedule.constant)
    run = SFTConfig(model=settings, data=DATA, batch=BATCH, train=train, distributed=config)
    return build_engine(model, run, num_steps=STEPS), model


def losses(engine: Engine, first: int, at: Callable[[int], None]) -> list[float]:
    """Of the steps, and of an evaluation behind each; `at` is called before each."""
    batches = batches_of("sft")
    objective, found = objective_of("sft", engine, batches), []
    for index in range(first, STEPS):
        at(index)
        found.append(train_step(engine, objective, batches.step(index)).means()["loss"])
        found.append(evaluate_step(engine, objective, batches.once()).means()["loss"])
    return found


class Watched:
    """Merges, and notes how far each moves the loss of an evaluation."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.merging, self.moved = engine, engine.merging, list[float]()

    def after(self) -> None:
        batches = batches_of("sft")
        objective = objective_of("sft", self.engine, batches)
        before = evaluate_step(self.engine, objective, batches.once()).means()["loss"]
        self.merging.after()
        after = evaluate_step(self.engine, objective, batches.once()).means()["loss"]
        self.moved.append(abs(after - before))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.merging, name)


def digest(engine: Engine, model: Any) -> str:
    """Of all weights, to the bit."""
    found = hashlib.sha256()
    with engine.partitioned():
        for weight in model.parameters():
            with model.placement.whole([weight]):
                found.update(weight.detach().contiguous().numpy().tobytes())
    return found.hexdigest()


def saved_by(stage: str, rank: int) -> Path:
    return Path(sys.argv[1]).parent / f"merged-{stage}-{collectives.size()}-{rank}.pt"


def save(engine: Engine, stage: str) -> None:
    state = {name: part.state() for name, part in with_merging({"model": engine}).items()}
    torch.save(state, saved_by(stage, collectives.rank()))


def main() -> None:
    gc.freeze()
    torch.set_num_threads(1)
    out, stages = Path(sys.argv[1]), sys.argv[2:]
    results: dict[str, Any] = {}
    before = ""
    for stage in stages:
        config = config_of(stage, out.parent)
        collectives.init(config)
        engine, model = build(config)
        engine.merging = watched = Watched(engine)
        results[stage] = losses(engine, 0, lambda index, e=engine, s=stage: save(e, s) if index == LEFT else None)
        results[f"moved/{stage}"] = watched.moved
        whole = digest(engine, model)
        results[f"digests/{stage}"] = collectives.gathered(whole)
        collectives.barrier()
        engine, model = build(config)
        own = torch.load(saved_by(stage, collectives.rank()), weights_only=True)
        for name, part in with_merging({"model": engine}).items():
            part.load_state(own[name])
        results[f"resumed/{stage}"] = losses(engine, LEFT, lambda index: None)
        results[f"is resumed/{stage}"] = collectives.gathered(digest(engine, model) == whole)
        if before:
            engine, model = build(config)
            paths = [saved_by(before, rank) for rank in range(collectives.size())]
            saved = [torch.load(path, weights_only=True, mmap=True) for path in paths]
            for name, part in with_merging({"model": engine}).items():
                part.load_resharded([each[name] for each in saved])
            results[f"cut anew/{stage}"] = losses(engine, LEFT, lambda index: None)
        before = stage
    if collectives.is_main():
        out.write_text(json.dumps(results))


if __name__ == "__main__":
    main()
