"""What one process of the test of products in 8 bits does: a first step under each stage of ZeRO that is asked for.

python fp8_ranks.py TORCHAO OUT RECIPE STAGE ... with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT set: the folder of
torchao; `none` is the plain engine. A CPU rounds as a GPU does and multiplies in float32.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from ranks import BATCH, INIT, examples
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from alignment.config.distributed import Device, DistributedConfig, Precision
from alignment.config.fp8 import Fp8
from alignment.config.model import ModelConfig
from alignment.data.batches import Batches, Packer
from alignment.distributed import collectives
from alignment.distributed.deepspeed import DeepSpeedEngine
from alignment.distributed.engine import TorchEngine
from alignment.distributed.sharded import placement_of
from alignment.losses import CrossEntropyLoss
from alignment.models.load import load_language_model
from alignment.models.tokenizer import load_tokenizer
from alignment.training.objectives import SFT
from alignment.training.step import train_step


def first_step(stage: int | None, how: Fp8) -> dict[str, float]:
    config = DistributedConfig(device=Device.cpu, precision=Precision.bfloat16, zero=stage)
    collectives.init(config)
    torch.manual_seed(0)
    settings = ModelConfig(init=INIT, fp8=how)
    model = load_language_model(settings, load_tokenizer(settings), placement_of(config))
    optimizer = AdamW(model.parameters(), lr=3e-3)
    kind: Any = TorchEngine if stage is None else DeepSpeedEngine
    engine = kind(model, optimizer, LambdaLR(optimizer, lambda step: 1.0), config=config, max_grad_norm=1.0)
    batches = Batches(examples(1), Packer(BATCH, 0, collectives.rank(), collectives.size()), 0)
    means = train_step(engine, SFT(CrossEntropyLoss()), batches.step(0)).means()
    return {name: means[name] for name in ("loss", "grad_norm")}


def main() -> None:
    sys.path.insert(0, sys.argv[1])
    from torchao.float8 import Float8LinearConfig

    recipe = Float8LinearConfig.from_recipe_name
    Float8LinearConfig.from_recipe_name = staticmethod(lambda name: replace(recipe(name), emulate=True))
    how, stages = Fp8(sys.argv[3]), sys.argv[4:]
    found = {stage: first_step(None if stage == "none" else int(stage), how) for stage in stages}
    if collectives.is_main():
        Path(sys.argv[2]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
