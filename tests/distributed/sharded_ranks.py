"""What one process of the test of sharded loading does: models from folders, sharded as they are read.

python sharded_ranks.py FOLDER with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT set; `write_folders` made FOLDER.
"""

import gc
import json
import shutil
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from ranks import INIT, TRAIN, batches_of, config_of, examples, objective_of
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedTokenizerBase

from alignment.config.batch import Layout
from alignment.config.distributed import Device, DistributedConfig, Precision
from alignment.config.errors import ConfigError
from alignment.config.model import LoraConfig, LoraInit, ModelConfig
from alignment.distributed import collectives
from alignment.distributed.deepspeed import DeepSpeedEngine, ready
from alignment.distributed.engine import Engine, TorchEngine, counts, shape_of
from alignment.distributed.placement import WHOLE
from alignment.distributed.sharded import placement_of
from alignment.models import save
from alignment.models.adapter_files import save_adapter
from alignment.models.layout import settle_layout
from alignment.models.load import (
    load_frozen_language_model,
    load_frozen_reward_model,
    load_language_model,
    load_scalar_model,
    save_model,
)
from alignment.models.tokenizer import load_tokenizer
from alignment.models.weight_dtype import as_its_original
from alignment.training.optim import build_optimizer
from alignment.training.reference import fingerprint
from alignment.training.setup import save_trained
from alignment.training.step import train_step

STEPS = 3
PLAIN = DistributedConfig(device=Device.cpu)
MIXTURE = {**INIT, "model_type": "mixtral", "num_local_experts": 4, "tie_word_embeddings": True}
WHOLE_MODULES = LoraConfig(rank=4, modules_to_save=["embed_tokens", "lm_head", "norm"])
MODELS: dict[str, tuple[str, Callable[..., Any], str, LoraConfig]] = {  # folder, loader, method if any, adapter
    "policy": ("policy", load_language_model, "sft", LoraConfig()),
    "new head": ("policy", load_scalar_model, "reward", LoraConfig()),
    "scalar": ("reward", load_scalar_model, "reward", LoraConfig()),
    "foreign head": ("foreign", load_scalar_model, "reward", LoraConfig()),
    "lora": ("policy", load_language_model, "lora", LoraConfig(rank=4)),
    "saved adapter": ("policy", load_language_model, "lora", LoraConfig()),
    "whole modules": ("policy", load_language_model, "lora", WHOLE_MODULES),
    "bfloat16 whole modules": ("mixture", load_language_model, "lora", WHOLE_MODULES),
    "pissa": ("policy", load_language_model, "lora", LoraConfig(rank=4, init=LoraInit.pissa)),
    "lora, new head": ("policy", load_scalar_model, "reward", LoraConfig(rank=4)),
    "experts": ("mixture", load_language_model, "sft", LoraConfig()),
    "bfloat16 lora": ("policy", load_language_model, "lora", LoraConfig(rank=4)),
    "bfloat16": ("reward", partial(load_frozen_reward_model, key="reward.path"), "", LoraConfig()),
    "bfloat16 policy": ("mixture", load_frozen_language_model, "", LoraConfig()),
    "grown": ("policy", load_language_model, "sft", LoraConfig()),
    "bfloat16 lora, grown": ("policy", load_language_model, "lora", LoraConfig(rank=4)),
    "grown, tied": ("mixture", load_scalar_model, "reward", LoraConfig(rank=4)),
}
BROKEN = ("lacking", "misshapen", "no number", "unread")


def write_folders(folder: Path) -> None:
    """`policy` is of several files in bfloat16, `mixture` of experts and tied, `foreign` has another
    name for its scalar head, and a bias; those of BROKEN are broken."""
    torch.manual_seed(0)
    tokenizer = load_tokenizer(ModelConfig(init=INIT))
    for name, load, init in (
        ("policy", load_language_model, INIT),
        ("reward", load_scalar_model, INIT),
        ("mixture", load_language_model, MIXTURE),
    ):
        model = load(ModelConfig(init=init), tokenizer, WHOLE)
        save_model(model, tokenizer, folder / name)
    policy = load_language_model(ModelConfig(path=str(folder / "policy")), tokenizer, WHOLE)
    (folder / "policy" / "model.safetensors").unlink()
    policy.hf.bfloat16().save_pretrained(folder / "policy", max_shard_size="150KB")
    adapted = load_language_model(ModelConfig(path=str(folder / "policy"), lora=LoraConfig(rank=4)), tokenizer, WHOLE)
    for weight in adapted.trained().values():
        nn.init.normal_(weight, std=0.1)
    save_adapter(adapted.hf, folder / "adapter", WHOLE, torch.float32)
    shutil.copytree(folder / "reward", folder / "foreign")
    weights = load_file(folder / "foreign" / "model.safetensors")
    head = {"v_head.summary.weight": weights.pop("score.weight"), "v_head.summary.bias": torch.tensor([50.0])}
    save_file(weights | head, folder / "foreign" / "model.safetensors", metadata={"format": "pt"})
    for name in BROKEN:
        save_model(policy, tokenizer, folder / name)
        file = folder / name / "model.safetensors"
        weights = load_file(file)
        weight = weights.pop("model.layers.1.mlp.up_proj.weight")
        if name == "misshapen":
            weights["model.layers.1.mlp.up_proj.weight"] = weight[1:].clone()
        if name == "no number":
            weight[-1, -1] = float("nan")  # in the second process's shard
            weights["model.layers.1.mlp.up_proj.weight"] = weight
        if name == "unread":
            scale = {"model.layers.1.mlp.up_proj.weight_scale": torch.ones(())}
            weights |= {"model.layers.1.mlp.up_proj.weight": weight, **scale}
        save_file(weights, file, metadata={"format": "pt"})


def precise(name: str, config: DistributedConfig) -> DistributedConfig:
    return replace(config, precision=Precision.bfloat16) if name.startswith("bfloat16") else config


def load(name: str, folder: Path, config: DistributedConfig) -> Any:
    torch.manual_seed(0)
    where, loader, _, lora = MODELS[name]
    adapter = str(folder / "adapter") if name == "saved adapter" else None
    settings = ModelConfig(path=str(folder / where), adapter=adapter, lora=lora, resize_embeddings="grown" in name)
    return loader(settings, tokenizer_of(name), placement_of(precise(name, config)))


def tokenizer_of(name: str) -> PreTrainedTokenizerBase:
    """That of the models in FOLDER; of one that grows, with three pieces more."""
    tokenizer = load_tokenizer(ModelConfig(init=INIT))
    if "grown" in name:
        tokenizer.add_tokens(["<one>", "<two>", "<three>"])
    return tokenizer


def problem(name: str, folder: Path, config: DistributedConfig) -> str:
    settings = ModelConfig(path=str(folder / name))
    try:
        load_language_model(settings, load_tokenizer(settings), placement_of(config))
    except ConfigError as error:
        return str(error)
    return ""


def trained(name: str, folder: Path, config: DistributedConfig) -> tuple[Any, Engine, list[list[float]]]:
    """A few steps: of each the loss and the gradient's norm."""
    model, method, config = load(name, folder, config), MODELS[name][2], precise(name, config)
    optimizer, scheduler = build_optimizer(model, TRAIN, num_steps=STEPS, learning_rate=TRAIN.learning_rate)
    kind = TorchEngine if config.zero is None else DeepSpeedEngine
    engine = kind(model, optimizer, scheduler, config=config, max_grad_norm=TRAIN.max_grad_norm)
    batches = batches_of(method)
    objective = objective_of(method, engine, batches)
    steps = [train_step(engine, objective, batches.step(index)).means() for index in range(STEPS)]
    return model, engine, [[step["loss"], step["grad_norm"]] for step in steps]


class Watched:
    """The most elements of shared-out weights that were whole at the same time in this process."""

    def __init__(self) -> None:
        self.most = 0
        self._weights: list[weakref.ref[nn.Parameter]] = []

    def look(self) -> None:
        alive = [weight for weight in (each() for each in self._weights) if weight is not None]
        self.most = max(self.most, sum(weight.numel() for weight in alive))

    @contextmanager
    def watching(self) -> Iterator["Watched"]:
        deepspeed, _ = ready(config_of("3", Path(sys.argv[1])))
        init, gathering = deepspeed.zero.Init, deepspeed.zero.GatheredParameters
        convert, enter = init._convert_to_deepspeed_param, gathering.__enter__

        def seen(zero: Any, weight: nn.Parameter) -> None:
            convert(zero, weight)
            self._weights.append(weakref.ref(weight))
            self.look()

        def entered(context: Any) -> None:
            enter(context)
            self.look()

        init._convert_to_deepspeed_param, gathering.__enter__ = seen, entered
        try:
            yield self
        finally:
            init._convert_to_deepspeed_param, gathering.__enter__ = convert, enter


def loaded(name: str, folder: Path, config: DistributedConfig) -> dict[str, Any]:
    """What a model sharded as it is read has in common with a plain one."""
    with Watched().watching() as watched:
        model = load(name, folder, config)
        random = torch.get_rng_state()
        layout = settle_layout(model, Layout.auto)
    plain = load(name, folder, PLAIN)
    same_random = torch.equal(random, torch.get_rng_state())
    shards = [[p.numel(), vars(p)["ds_tensor"].numel() - -(-shape_of(p).numel() // 2)] for p in model.parameters()]
    same = []
    for own, other in zip(model.parameters(), plain.parameters(), strict=True):
        with model.placement.whole([own]):
            is_alike = own.dtype == other.dtype and own.requires_grad == other.requires_grad
            same.append(torch.equal(own.cpu(), other) and is_alike and vars(own)["ds_tensor"].dtype == own.dtype)
    copy, whole = (each.placement.copy_of(each, as_its_original(torch.bfloat16)) for each in (model, plain))
    copied = [{p.dtype for p in whole.parameters()} == {torch.float32, torch.bfloat16}]
    for own, other in zip(copy.parameters(), whole.parameters(), strict=True):
        with model.placement.whole([own]):
            copied.append(torch.equal(own.cpu(), other) and own.dtype == other.dtype)
    return {
        "weights": all(same),
        "copy": all(copied) and not any(p.numel() for p in copy.parameters()),
        "random numbers": same_random,
        "shards": not any(left or missing for left, missing in shards),
        "most": watched.most == max(p.numel() for p in plain.parameters()),
        "counts": counts(model) == counts(plain),
        "layout": layout == settle_layout(plain, Layout.auto),
        "names": list(dict(model.named_buffers())) == list(dict(plain.named_buffers())),
        "fingerprint": fingerprint(model, examples(2), "") == fingerprint(plain, examples(2), ""),
    }


def saved(name: str, folder: Path, config: DistributedConfig) -> list[list[float]]:
    """Train and save, beside what one process saves of the same weights."""
    save.FILE_SIZE = "150KB" if name == "policy" else "50GB"
    model, engine, steps = trained(name, folder, config)
    tokenizer = tokenizer_of(name)
    save_trained(engine, model, tokenizer, folder / "sharded" / name)
    plain = load(name, folder, PLAIN)
    with engine.partitioned():  # gathered for replies, weights are in what these compute in
        for own, other in zip(model.parameters(), plain.parameters(), strict=True):
            with model.placement.whole([own]):
                other.data.copy_(own)
    if collectives.is_main():
        save_model(plain, tokenizer, folder / "plain" / name)
    return steps


def main() -> None:
    gc.freeze()  # as a run does; DeepSpeed collects often
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    default = DistributedConfig(device=Device.cpu, zero=3)
    kinds = (config_of("3", folder), default, config_of("offload", folder))  # small weights stay whole by default alone
    collectives.init(default)
    found: dict[str, Any] = {}
    for index, name in enumerate(MODELS):
        found[f"loaded/{name}"] = collectives.gathered(loaded(name, folder, default))
        if MODELS[name][2]:
            found[f"steps/{name}"] = saved(name, folder, kinds[index % 3])
    for name in BROKEN:
        found[f"problem/{name}"] = collectives.gathered(problem(name, folder, default))
    if collectives.is_main():
        (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
