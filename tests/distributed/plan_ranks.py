"""What one of several processes holds of a model that trains, counted on the tensors of its engine, and whole runs
under ZeRO 3 beside their plans.

python plan_ranks.py OUT RUN ... STAGE ... as ranks.py is run, runs first: once DeepSpeed is there, linear layers are
its own. Writes {stage: {weights, moments, masters, backward, step}, run: {ratio, highest}}.
"""

import gc
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from alignment.cli.compose import composing, resolve, single
from alignment.config.batch import Layout
from alignment.config.distributed import Device, DistributedConfig, Precision
from alignment.config.model import ModelConfig
from alignment.config.train import TrainConfig
from alignment.data.pack import pack
from alignment.data.records import Source
from alignment.data.tokenize import Example
from alignment.distributed import collectives
from alignment.distributed.deepspeed import DeepSpeedEngine
from alignment.distributed.sharded import placement_of
from alignment.losses import CrossEntropyLoss
from alignment.models.allocations import Allocations
from alignment.models.load import load_language_model
from alignment.models.tokenizer import load_tokenizer
from alignment.plan.measured import measure
from alignment.plan.roles import Counts
from alignment.training.objectives import SFT
from alignment.training.optim import build_optimizer
from alignment.training.step import train_step

MODEL = ModelConfig(
    init={"model_type": "llama", "hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4}
    | {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": False}
)
TRAIN = TrainConfig(max_steps=4, learning_rate=1e-3)
DTYPE, LAYOUT = torch.float32, Layout.shared
BUCKET = 2**17  # elements: small beside the weights
SHAPE = "model.init={hidden_size: 256, intermediate_size: 768, num_hidden_layers: 4, tie_word_embeddings: true}"
COMMON = ["train.eval_every=0", "train.warmup_steps=0", "train.max_steps=2", "checkpoint.every=0", "log.progress=false"]
COMMON += [
    "distributed.device=cpu",
    "distributed.zero=3",
    "distributed.precision=bfloat16",
    "launch.processes=2",
    SHAPE,
]
DRAWN = ["gold=null", "log.samples=0", "data.max_prompt_length=12", "generation.max_new_tokens=24", "num_samples=8"]
DRAWN += ["generation.batch_size=256"]
READ = ["data=native", "data.train.path=rows.jsonl", "data.eval.path=null", "data.max_length=64"]
RUNS = {
    "sft": [*READ, "data.max_prompt_length=16", "batch.size=8", "batch.max_tokens=128"],
    "sft shared": [
        *(*READ[:-1], "data.max_length=512", "data.max_prompt_length=16", "batch.size=4", "batch.max_tokens=1024"),
        "distributed.sequence_parallel=2",
    ],
    "grpo": [*DRAWN, "batch.size=32", "batch.max_tokens=512", "model.gradient_checkpointing=true"],
}


def distributed(stage: int, folder: Path) -> DistributedConfig:
    settings = folder / f"deepspeed-{collectives.num_launched()}.json"
    zero = {"stage3_param_persistence_threshold": 0, "reduce_bucket_size": BUCKET, "allgather_bucket_size": BUCKET}
    settings.write_text(json.dumps({"zero_optimization": zero}))
    return DistributedConfig(device=Device.cpu, precision=Precision.float32, zero=stage, deepspeed_config=str(settings))


def of(tensors: Any) -> int:
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


class Probed(DeepSpeedEngine):
    """Told what is alive, it notes that when no pass is: as the last backward pass ends, and when its step is over."""

    counted: Allocations
    alive: dict[str, int]

    def backward(self, loss: Tensor, *, is_last: bool) -> None:
        super().backward(loss, is_last=is_last)
        self.note("backward")

    def step(self, *, update: Tensor | None = None, agree: Callable[[bool], bool] | None = None) -> tuple[Tensor, bool]:
        taken = super().step(update=update, agree=agree)
        self.note("step")
        return taken

    def note(self, when: str) -> None:
        gc.collect()
        self.alive[when] = self.counted.alive


def held(stage: int, folder: Path) -> dict[str, int]:
    config = distributed(stage, folder)
    torch.manual_seed(0)
    row = Example(np.arange(5, 13, dtype=np.int32), (np.arange(5, 21, dtype=np.int32),), None, Source("-", 1), (True,))
    batches = [pack([row] * 2, range(2), layout=LAYOUT, pad_id=0)] * 2
    with Allocations([]) as counted:
        model = load_language_model(MODEL, load_tokenizer(MODEL), placement_of(config))
        optimizer, scheduler = build_optimizer(model, TRAIN, num_steps=4, learning_rate=1e-3)
        engine = Probed(model, optimizer, scheduler, config=config, max_grad_norm=1.0)
        engine.counted, engine.alive = counted, {}
        for _ in range(2):
            train_step(engine, SFT(CrossEntropyLoss()), batches)
    weights = [each.ds_tensor if stage == 3 else each for each in list[Any](model.parameters())]
    states = [each for state in engine.state()["optimizer"]["state"].values() for each in state.values()]
    return {
        "weights": of(weights),
        "moments": of(each for each in states if each.numel() > 1),
        "masters": of(engine.state()["weights"]) if stage else 0,
        **engine.alive,
    }


def beside_its_plan(name: str) -> dict[str, Any]:
    recipe = f"tiny_{name.partition(' ')[0]}"
    with composing([], recipe):
        words = [*COMMON, *RUNS[name], f"output_dir={name.replace(' ', '_')}"]
        measured = measure(resolve(single(recipe, words)), Counts())
    return {"ratio": measured.ratio, "highest": measured.plan.highest.name}


def main() -> None:
    out, *wanted = sys.argv[1:]
    os.chdir(Path(out).parent)
    found = {each: beside_its_plan(each) if each in RUNS else held(int(each), Path(out).parent) for each in wanted}
    if collectives.is_main():
        Path(out).write_text(json.dumps(found))
    collectives.leave()


if __name__ == "__main__":
    main()
