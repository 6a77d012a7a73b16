"""What one process of the test of casts does: replies in bfloat16, of models that train and one that does not.

python casts_ranks.py OUT with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT set.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ranks import INIT
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from torch.utils._python_dispatch import TorchDispatchMode

from alignment.config.distributed import Device, DistributedConfig, Precision
from alignment.config.generation import GenerationConfig
from alignment.config.model import LoraConfig, ModelConfig
from alignment.distributed import collectives
from alignment.distributed.deepspeed import DeepSpeedEngine
from alignment.distributed.engine import TorchEngine
from alignment.distributed.frozen import frozen_engine
from alignment.distributed.sharded import placement_of
from alignment.generation.generate import TransformersGenerator
from alignment.models.load import load_frozen_language_model, load_language_model
from alignment.models.tokenizer import load_tokenizer

STAGES = (None, 2, 3)
TOKENS = (4, 12)
RANKS = {"trained": 0, "lora": 4, "frozen": 0}


class Casts(TorchDispatchMode):
    """Counts how often one of the weights is made into another dtype."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.number = 0
        self._weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if operation is torch.ops.aten._to_copy.default:
            self.number += args[0].untyped_storage().data_ptr() in self._weights
        return operation(*args, **(kwargs or {}))


def casts(name: str, config: DistributedConfig) -> list[int]:
    """Of a rollout of so many tokens."""
    settings = ModelConfig(init=INIT, lora=LoraConfig(rank=RANKS[name]))
    tokenizer = load_tokenizer(settings)
    if name == "frozen":
        model = load_frozen_language_model(settings, tokenizer, placement_of(config))
        engine: Any = frozen_engine(model, config)
    else:
        model = load_language_model(settings, tokenizer, placement_of(config))
        optimizer = AdamW([weight for weight in model.parameters() if weight.requires_grad])
        kind = TorchEngine if config.zero is None else DeepSpeedEngine
        schedule = LambdaLR(optimizer, lambda _: 1.0)
        engine = kind(model, optimizer, schedule, config=config, max_grad_norm=1.0)
    found = []
    for number in TOKENS:
        generator = TransformersGenerator(model, tokenizer, GenerationConfig(max_new_tokens=number))
        with generator.reading(engine), Casts(model) as seen:
            generator.generate([np.array([5, 6, 7], dtype=np.int32)], keys=[0], replies=1, seed=0)
        found.append(seen.number)
        assert {weight.dtype for name, weight in model.trained().items()} <= {torch.float32}
    return found


def main() -> None:
    found = {}
    for stage in STAGES:
        config = DistributedConfig(device=Device.cpu, precision=Precision.bfloat16, zero=stage)
        collectives.init(config)
        found |= {f"{name}/{stage}": casts(name, config) for name in RANKS}
    Path(sys.argv[1]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
