"""A saved adapter of LoRA, put into a model to be trained on: its layers first, which have a shape without weights too,
and its weights once the model's are in their places.

As `lora` it imports peft.
"""

from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import load_peft_weights
from torch import Tensor
from transformers import PreTrainedModel

from alignment.config.adapter import KEY
from alignment.config.errors import ConfigError
from alignment.config.folders import ADAPTER_FILE, base_of, base_on_hub, read_json
from alignment.config.hub import located, pinned_name
from alignment.config.model import ModelConfig
from alignment.distributed.engine import shape_of
from alignment.distributed.placement import Placement
from alignment.models.adapter_files import name_in_file
from alignment.models.adapters import DEFAULT, FIRST, PREFIX, use_adapter
from alignment.models.files import Reading, check_adapter
from alignment.models.lora import config_of_adapter, inject_beside, put_adapter
from alignment.models.packed_base import say_packed_otherwise
from alignment.models.scalar_head import head_name
from alignment.models.unread import listed
from alignment.models.whole_modules import is_tied, whole_modules
from alignment.terminal import say_once

SHAPE = {"r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora"}
TAKEN = {*SHAPE, "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"}
"""Of peft's settings what the adapter is: these come from its folder."""
UNREAD = {"task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"}
UNREAD |= {"inference_mode", "lora_dropout", "fan_in_fan_out", "init_lora_weights", "modules_to_save", "eva_config"}
UNREAD |= {
    "ensure_weight_tying",
    "runtime_config",
    "megatron_core",
    "qalora_group_size",
    "corda_config",
    "loftq_config",
    "lora_ga_config",
}
"""What tells of how it came to be, or is asked for below."""
CHANGED_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Beginnings that change the weights beneath the adapter, as peft names them."""


def add_saved(hf: PreTrainedModel, config: ModelConfig) -> None:
    """The layers of the adapter in `config.adapter`, still without its weights; what was there is frozen.

    Raises:
        ConfigError: it is on other modules than the model has, or is more than LoRA on linear layers.
    """
    folder = located(str(config.adapter))
    own = _config(folder)
    taken: dict[str, Any] = {name: value for name, value in vars(own).items() if name in TAKEN}
    where = f"{KEY}: target_modules in {str(folder / ADAPTER_FILE)!r}"
    try:
        put_adapter(hf, PeftLoraConfig(**taken, lora_dropout=config.lora.dropout), where)
    except ValueError as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{where}: {str(error).splitlines()[0]} ({config.path})") from error
    say_packed_otherwise(hf, folder, KEY)
    shape = f"rank {own.r}, alpha {own.lora_alpha}{', rslora' * own.use_rslora}{', dora' * own.use_dora}"
    say_once(f"{KEY}: training goes on from {folder}: {shape}, on {config.path}{_trained_on_another(folder, config)}")


def _trained_on_another(folder: Path, config: ModelConfig) -> str:
    """Said, and no more: its base may lie elsewhere than it did."""
    path, base, on_hub = str(config.path), base_of(folder, KEY), base_on_hub(folder, KEY)
    is_named = base is not None and base.resolve() == located(path).resolve()
    pinned = pinned_name(path)
    is_named |= on_hub is not None and pinned is not None and on_hub.repo == pinned.repo
    named = read_json(folder / ADAPTER_FILE, KEY).get("base_model_name_or_path")
    return "" if is_named or not named else f" (it names {named} as its base)"


def _config(folder: Path) -> PeftLoraConfig:
    file = folder / ADAPTER_FILE
    if not file.is_file():  # peft would ask the hub for it
        raise ConfigError(f"{KEY}: there is no {ADAPTER_FILE} in it, got {str(folder)!r}")
    with Reading(f"{KEY}: {str(file)!r} is no config that peft reads"):
        config = PeftLoraConfig.from_pretrained(str(folder))
    for each in fields(PeftLoraConfig):
        unset = each.default if each.default_factory is MISSING else each.default_factory()
        value = vars(config)[each.name]
        if each.name not in TAKEN | UNREAD and value != unset and not (each.name == "bias" and value == "none"):
            rule = f"{KEY}: {str(file)!r} must be of an adapter that is LoRA alone, without {each.name}"
            raise ConfigError(f"{rule}, got {value!r}; model.path={folder} merges it into its base")
    how = str(config.init_lora_weights)
    if how.startswith(CHANGED_BASE):
        rule = f"{KEY}: {str(file)!r} tells of a base whose weights it has changed (init_lora_weights={how!r})"
        way = "peft's save_pretrained(..., path_initial_model_for_weight_conversion=...) makes one of the base as it is"
        raise ConfigError(f"{rule}: {way}")
    return config


@torch.no_grad()
def fill_saved(hf: PreTrainedModel, config: ModelConfig, placement: Placement) -> None:
    """The weights of the adapter, and of a scalar head where the folder has one.

    Raises:
        ConfigError: the files are cut or damaged, hold what the model has no place for, or lack what it has: the
            adapter was trained on another model.
    """
    folder = located(str(config.adapter))
    check_adapter(folder, KEY)
    with Reading(f"{KEY}: the adapter in {str(folder)!r} cannot be read"):
        given = load_peft_weights(str(folder), device="cpu")
    given = {name.removeprefix(PREFIX): weight for name, weight in given.items()}
    head, whole = f"{head_name(hf)}.", whole_modules(hf)
    own = {
        name_in_file(name): weight
        for name, weight in hf.named_parameters()
        if f".{DEFAULT}." in name or (name.rpartition(".")[0] in whole and (name in given or not name.startswith(head)))
    }
    if is_tied(hf):
        _check_tied(hf, given, folder)
    _check_fit(own, given, f"{KEY}: the adapter in {str(folder)!r}", config.path)
    for name, weight in own.items():
        with placement.whole([weight], write=True):
            weight.copy_(given[name])


def _check_tied(hf: PreTrainedModel, given: dict[str, Tensor], folder: Path) -> None:
    """Of a weight that is head and embeddings, one of the two is enough."""
    modules = dict(hf.named_modules())
    head, embeddings = (
        next(f"{path}.weight" for path, module in modules.items() if module is tied)
        for tied in (hf.get_output_embeddings(), hf.get_input_embeddings())
    )
    own = given.pop(head, None)
    if own is not None and not torch.equal(own, given.get(embeddings, own[:0])):
        rule = f"{KEY}: the head and the embeddings of the adapter in {str(folder)!r} must be one weight, as its base's"
        raise ConfigError(f"{rule} are, got two (peft's ensure_weight_tying=True keeps them so)")


@torch.no_grad()
def add_copy(hf: PreTrainedModel, placement: Placement) -> None:
    """A frozen copy of the adapter as it is now, `FIRST`, beside it and on the same layers."""
    own = config_of_adapter(hf)
    kept = {key: value for key, value in vars(own).items() if key in SHAPE}
    inject_beside(hf, FIRST, PeftLoraConfig(**kept))
    use_adapter(hf, DEFAULT)
    placement.shard(hf)
    weights = dict(hf.named_parameters())
    for key, weight in weights.items():
        if f".{FIRST}." in key:
            weight.requires_grad_(False)
            original = weights[key.replace(f".{FIRST}.", f".{DEFAULT}.")]
            with placement.whole([original, weight], write=True):
                weight.copy_(original)


def has_copy(hf: PreTrainedModel) -> bool:
    return FIRST in vars(hf)["peft_config"]


def _check_fit(own: dict[str, Any], given: dict[str, Tensor], where: str, base: str | None) -> None:
    rule = f"{where} does not fit model.path={base}"
    if lacking := sorted(own.keys() - given.keys()):
        raise ConfigError(f"{rule}: it has no {listed(lacking)}")
    if strange := sorted(given.keys() - own.keys()):
        is_head = not any(".lora_" in name for name in strange)
        why = "it was trained with weights beside LoRA that this run does not train," if is_head else "it has"
        raise ConfigError(f"{rule}: {why} {listed(strange)}")
    for name, weight in own.items():
        if shape_of(weight) != given[name].shape:
            shapes = f"{list(given[name].shape)}, where the model takes {list(shape_of(weight))}"
            raise ConfigError(f"{rule}: its {name} is of shape {shapes}")
        if not given[name].isfinite().all():
            raise ConfigError(f"{where} must hold weights that are numbers, got nan or inf in {name}")
