"""What one process of the test of bases in 4 bits under ZeRO 3 does.

python packed_ranks.py FOLDER NAME ... with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT set; `write_folder` made
FOLDER.
"""

import gc
import json
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit
from ranks import INIT, TRAIN, batches_of, config_of, objective_of

from alignment.config.distributed import Device, DistributedConfig, Precision
from alignment.config.model import LoraConfig, LoraInit, ModelConfig, Quantization
from alignment.distributed import collectives
from alignment.distributed.deepspeed import DeepSpeedEngine
from alignment.distributed.engine import Engine, TorchEngine, counts
from alignment.distributed.placement import WHOLE
from alignment.distributed.sharded import placement_of
from alignment.models.load import load_language_model, load_scalar_model, save_model
from alignment.models.quantized import packed_layers
from alignment.models.tokenizer import load_tokenizer
from alignment.training.optim import build_optimizer
from alignment.training.setup import save_trained
from alignment.training.step import train_step

STEPS = 4
PLAIN = DistributedConfig(device=Device.cpu)
DPO = dict.fromkeys(("dpo", "bfloat16 dpo", "loftq"), "lora")
METHODS = {"sft": "sft", "made again": "sft", "reward": "reward", **DPO}
"""Of names, the method as ranks.py has it: lora is DPO with an adapter."""
WIDE = {**INIT, "hidden_size": 64, "intermediate_size": 96, "tie_word_embeddings": False}


def write_folder(folder: Path) -> None:
    settings = ModelConfig(init=WIDE)
    tokenizer = load_tokenizer(settings)
    torch.manual_seed(0)
    save_model(load_language_model(settings, tokenizer, WHOLE), tokenizer, folder / "base")


def load(name: str, folder: Path, config: DistributedConfig) -> Any:
    torch.manual_seed(0)
    lora = LoraConfig(rank=4, init=LoraInit.loftq if name == "loftq" else LoraInit.default)
    settings = ModelConfig(path=str(folder / "base"), quantization=Quantization.nf4, lora=lora)
    settings = replace(settings, gradient_checkpointing=name == "made again")
    loader: Any = load_scalar_model if name == "reward" else load_language_model
    return loader(settings, load_tokenizer(settings), placement_of(precise(name, config)))


def precise(name: str, config: DistributedConfig) -> DistributedConfig:
    return replace(config, precision=Precision.bfloat16) if name.startswith("bfloat16") else config


def built(name: str, folder: Path, config: DistributedConfig) -> tuple[Any, Engine]:
    model, config = load(name, folder, config), precise(name, config)
    optimizer, scheduler = build_optimizer(model, TRAIN, num_steps=STEPS, learning_rate=TRAIN.learning_rate)
    kind = TorchEngine if config.zero is None else DeepSpeedEngine
    return model, kind(model, optimizer, scheduler, config=config, max_grad_norm=TRAIN.max_grad_norm)


def trained(name: str, folder: Path, config: DistributedConfig) -> tuple[Any, Engine, list[list[float]]]:
    """Some steps: of each the loss and the gradient's norm."""
    model, engine = built(name, folder, config)
    batches = batches_of(METHODS[name])
    objective = objective_of(METHODS[name], engine, batches)
    steps = [train_step(engine, objective, batches.step(index)).means() for index in range(STEPS)]
    return model, engine, [[step["loss"], step["grad_norm"]] for step in steps]


def loaded(name: str, folder: Path, config: DistributedConfig) -> dict[str, bool]:
    """What a model that is sharded as it is packed has in common with a plain one."""
    model = load(name, folder, config)
    random = torch.get_rng_state()
    plain = load(name, folder, PLAIN)
    same = [torch.equal(random, torch.get_rng_state()), counts(model) == counts(plain)]
    for own, other in zip(model.parameters(), plain.parameters(), strict=True):
        shard = vars(own)["ds_tensor"]
        same.append(own.numel() == 0 and (shard.dtype, shard.numel()) == (other.dtype, -(-other.numel() // 2)))
        with model.placement.whole([own]):
            same.append(torch.equal(own.data, other.data))
    return {"loaded": all(same), "packed": len(packed_layers(model)) == len(packed_layers(plain)) == 14}


@contextmanager
def watched(model: Any) -> Iterator[list[Any]]:
    """What was gathered of each packed layer as it ran."""
    seen: list[Any] = []
    hooks = [
        layer.register_forward_pre_hook(lambda layer, _: seen.append(weakref.ref(layer.weight.data.untyped_storage())))
        for _, layer in packed_layers(model)
    ]
    yield seen
    for hook in hooks:
        hook.remove()


def lets_go(name: str, folder: Path, config: DistributedConfig) -> bool:
    """Whether what is gathered of packed layers for a forward that learns is gone before its backward pass, in the
    first pass of an engine, which keeps nothing for that."""
    model, engine = built(name, folder, config)
    batches = batches_of(METHODS[name])
    objective = objective_of(METHODS[name], engine, batches)
    with watched(model) as seen, engine.precision():
        output = objective(engine.model, batches.step(0)[0])
    gc.collect()
    return len(seen) == 14 and all(each() is None for each in seen) and output.loss.total.requires_grad


def goes_on(name: str, folder: Path, config: DistributedConfig) -> bool:
    """Whether two steps, a fresh engine and two more are four, bit for bit."""
    batches, found = batches_of(METHODS[name]), []
    saved: dict[str, Any] = {}
    for first, last in ((0, STEPS), (2, STEPS)):
        _, engine = built(name, folder, config)
        objective = objective_of(METHODS[name], engine, batches)
        if saved:
            engine.load_state(saved)
        for index in range(first, last):
            if index == 2 and not saved:
                torch.save(engine.state(), folder / f"state-{collectives.rank()}.pt")
                saved = torch.load(folder / f"state-{collectives.rank()}.pt", weights_only=True)
            step = train_step(engine, objective, batches.step(index))
            found.append([step[key].total.item() for key in ("loss", "grad_norm")])
    return found[2:STEPS] == found[STEPS:]


def odd(config: DistributedConfig) -> bool:
    """Whether an odd number of bytes is shared out and comes back to the bit, whatever they would be as floats."""
    torch.manual_seed(0)
    layer: Any = torch.nn.Sequential(Linear4bit(34, 49, bias=False, quant_type="nf4")).to("cpu")
    codes, placement = layer[0].weight.data.clone(), placement_of(config)
    placement.shard(layer)
    halved = vars(layer[0].weight)["ds_tensor"].numel() == 417
    with placement.whole([layer[0].weight]):
        return halved and codes.numel() == 833 and torch.equal(layer[0].weight.data, codes)


def saved(name: str, folder: Path, config: DistributedConfig) -> list[list[float]]:
    """Train and save, beside what one process saves of the same weights."""
    model, engine, steps = trained(name, folder, config)
    save_trained(engine, model, load_tokenizer(ModelConfig(init=WIDE)), folder / "sharded" / name)
    plain = load(name, folder, PLAIN)
    with engine.partitioned():
        for own, other in zip(model.parameters(), plain.parameters(), strict=True):
            with model.placement.whole([own]):
                other.data.copy_(own.data)
    if collectives.is_main():
        save_model(plain, load_tokenizer(ModelConfig(init=WIDE)), folder / "plain" / name)
    return steps


def main() -> None:
    gc.freeze()  # as a run does; DeepSpeed collects often
    torch.set_num_threads(1)
    folder, names = Path(sys.argv[1]), sys.argv[2:]
    default = DistributedConfig(device=Device.cpu, zero=3)
    kinds = (config_of("3", folder), default, config_of("offload", folder))  # small weights stay whole by default alone
    collectives.init(default)
    found: dict[str, Any] = {"odd": collectives.gathered(odd(default))}
    for index, name in enumerate(names):
        own = loaded(name, folder, default) | {"goes on": goes_on(name, folder, kinds[index % 3])}
        found[f"holds/{name}"] = collectives.gathered(own | {"lets go": lets_go(name, folder, kinds[0])})
        found[f"steps/{name}"] = saved(name, folder, kinds[index % 3])
    if collectives.is_main():
        (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
