"""What a weight takes in one of several processes, by ZeRO stage, optimizer and role, counted on tensors.

python bytes_ranks.py OUT as ranks.py is run. Writes {stage: {row of the table: bytes a weight}}, ZeRO 3 last: from then
on linear layers are DeepSpeed's own. `in_one` is the same without DeepSpeed.
"""

import gc
import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from alignment.config.batch import Layout
from alignment.config.distributed import Device, DistributedConfig, Precision
from alignment.config.model import LoraConfig, ModelConfig, Quantization
from alignment.config.optimizer import UNSHARDED, OptimizerName
from alignment.config.train import TrainConfig
from alignment.data.pack import Batch, pack
from alignment.data.records import Source
from alignment.data.tokenize import Example
from alignment.distributed import collectives
from alignment.distributed.deepspeed import DeepSpeedEngine
from alignment.distributed.engine import TorchEngine, shape_of
from alignment.distributed.lomo import LomoEngine
from alignment.distributed.placement import WHOLE
from alignment.distributed.sharded import placement_of
from alignment.losses import CrossEntropyLoss
from alignment.models.allocations import Allocations
from alignment.models.heads import LanguageModel, ScalarModel
from alignment.models.load import load_frozen_language_model, load_language_model, save_model
from alignment.models.tokenizer import load_tokenizer
from alignment.training.objectives import SFT
from alignment.training.optim import build_optimizer

INIT = {"model_type": "llama", "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2}
INIT |= {"num_attention_heads": 4, "num_key_value_heads": 4, "tie_word_embeddings": True}
BUCKET = 2**14  # elements
SHARDED = [each for each in OptimizerName if each not in UNSHARDED]


def distributed(stage: int | None, precision: Precision, folder: Path | None = None) -> DistributedConfig:
    """With buckets that are small beside the weights, under a stage."""
    scale = 1 if precision is Precision.float16 else DistributedConfig().initial_loss_scale  # no step is left out
    config = DistributedConfig(device=Device.cpu, precision=precision, zero=stage, initial_loss_scale=scale)
    if folder is None:
        return config
    settings = folder / f"deepspeed-{collectives.num_launched()}.json"
    zero = {"stage3_param_persistence_threshold": 0, "reduce_bucket_size": BUCKET, "allgather_bucket_size": BUCKET}
    settings.write_text(json.dumps({"zero_optimization": zero}))
    return replace(config, deepspeed_config=str(settings))


def batch() -> Batch:
    ids = np.arange(5, 21, dtype=np.int32)
    row = Example(ids[:8], (ids,), None, Source("-", 1), (True,))
    return pack([row], range(1), layout=Layout.shared, pad_id=0)


def linear(model: LanguageModel | ScalarModel) -> list[nn.Parameter]:
    """The weights of the body's matrix products, of which the table is; not an adapter's."""
    named = model.hf.base_model.named_modules()
    return [m.weight for name, m in named if isinstance(m, nn.Linear) and ".lora_" not in name]


def size(tensors: Iterable[Any]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, Tensor))


def held(weight: nn.Parameter) -> int:
    """Bytes of a weight in this process, with what unpacks it."""
    own = vars(weight).get("ds_tensor", weight)
    state = vars(weight).get("quant_state")
    scales = [] if state is None else [state.absmax, state.code, state.offset]
    nested = [] if state is None or not state.nested else [state.state2.absmax, state.state2.code]
    return size([own, *scales, *nested, vars(weight).get("SCB")])


def frozen(config: DistributedConfig, settings: ModelConfig) -> float:
    """Bytes a weight of a model that does not train, or of the base of an adapter."""
    load: Any = load_language_model if settings.has_adapter else load_frozen_language_model
    model = load(settings, load_tokenizer(settings), placement_of(config))
    weights = linear(model)
    return sum(map(held, weights)) / sum(shape_of(p).numel() for p in weights)


def in_one(name: OptimizerName, precision: Precision, load: Callable[..., Any]) -> float:
    """Bytes a weight that trains in one process: itself, its gradient when all is there, what its optimizer keeps."""
    config, settings = distributed(None, precision), ModelConfig(init=INIT)
    model = load(settings, load_tokenizer(settings), placement_of(config))
    engine = _engine(LomoEngine if name is OptimizerName.lomo else TorchEngine, model, name, config)
    weights = linear(model)
    with engine.precision():
        loss = _loss(engine, model)
    engine.backward(loss, is_last=True)
    found = size(weights) + size(p.grad for p in weights)
    engine.step()
    states = [vars(engine.optimizer)["state"].get(p, {}) for p in weights]
    found += size(t for state in states for key, t in state.items() if not key.startswith("qmap"))
    return found / sum(p.numel() for p in weights)


def in_several(stage: int, name: OptimizerName, folder: Path) -> float:
    """Bytes of all of a model that trains, in this process, after the first of its second step's two passes."""
    config, settings = distributed(stage, Precision.float32, folder), ModelConfig(init=INIT)
    with Allocations([]) as counted:
        model = load_language_model(settings, load_tokenizer(settings), placement_of(config))
        engine = _engine(DeepSpeedEngine, model, name, config)
        for _ in range(2):
            engine.backward(_loss(engine, model), is_last=False)
            gc.collect()
            alive = counted.alive
            engine.backward(_loss(engine, model), is_last=True)
            engine.step()
    return alive


def _engine(kind: Any, model: Any, name: OptimizerName, config: DistributedConfig) -> Any:
    train = TrainConfig(max_steps=4, optimizer=name)
    optimizer, scheduler = build_optimizer(model, train, num_steps=4, learning_rate=1e-3)
    return kind(model, optimizer, scheduler, config=config, max_grad_norm=float("inf"))


def _loss(engine: Any, model: LanguageModel | ScalarModel) -> Tensor:
    if isinstance(model, ScalarModel):
        return engine.model(batch(), torch.arange(4)).sum()
    return SFT(CrossEntropyLoss())(engine.model, batch()).loss.mean()


def main() -> None:
    out = Path(sys.argv[1])
    found: dict[str, dict[str, float]] = {}
    base = str(out.with_name("base"))
    collectives.init(distributed(1, Precision.float32, out.parent))
    if collectives.is_main():
        settings = ModelConfig(init=INIT)
        tokenizer = load_tokenizer(settings)
        save_model(load_language_model(settings, tokenizer, WHOLE), tokenizer, Path(base))
    collectives.barrier()
    for stage in (1, 2, 3):
        half = distributed(stage, Precision.bfloat16, out.parent)
        found[str(stage)] = {name.value: in_several(stage, name, out.parent) for name in SHARDED}
        found[str(stage)] |= {
            "frozen float32": frozen(distributed(stage, Precision.float32, out.parent), ModelConfig(init=INIT)),
            "frozen": frozen(half, ModelConfig(init=INIT)),
            "base": frozen(half, ModelConfig(init=INIT, lora=LoraConfig(rank=2))),
            "nf4": frozen(half, ModelConfig(path=base, quantization=Quantization.nf4, lora=LoraConfig(rank=2))),
        }
    if collectives.is_main():
        out.write_text(json.dumps(found))
    collectives.leave()


if __name__ == "__main__":
    main()
