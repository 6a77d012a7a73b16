"""LoRA through peft: adapters put into a model in place, saved and read.

Who needs an adapter imports this there and then: peft, with what it looks for itself, takes a fifth of a process's
start, and most runs train without.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from peft import LoraConfig as PeftLoraConfig
from peft import inject_adapter_in_model
from peft.tuners.tuners_utils import cast_adapter_dtype
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from alignment.config.backbone import HEAD, require_on_backbone
from alignment.config.errors import ConfigError, require
from alignment.config.model import EVERYTHING, LoraConfig, LoraInit
from alignment.models.adapters import DEFAULT, PREFIX, adapted_names, is_adapted, lora_layers, use_adapter
from alignment.models.lora_targets import (
    PARAMETERS,
    TARGETS,
    has_fused_experts,
    is_of_router,
    linear_layers,
    require_experts,
    require_targets,
)
from alignment.models.quantized import keep_scales
from alignment.models.scalar_head import head_name, scalar_head
from alignment.terminal import say

WEIGHTS_FILE = "adapter_model.safetensors"
MERGED = {"Linear", "Linear4bit", "Linear8bitLt"}  # peft's layers that can be added into a weight, whole or packed


def add_adapter(hf: PreTrainedModel, config: LoraConfig) -> None:
    """Freeze the weights and put LoRA layers into them (arXiv:2106.09685); a scalar head stays trained in full."""
    head = head_name(hf)
    targets, everything = config.targets, config.targets == [EVERYTHING]
    require_experts(hf, config.target_parameters)
    if not everything:
        require_targets(hf, targets)
    if everything and has_fused_experts(hf):
        targets = linear_layers(hf)
        what = "the routers" if config.target_parameters else "the experts of this mixture and its routers"
        way = "" if config.target_parameters else f" ({PARAMETERS} puts adapters on experts)"
        say(f"{TARGETS}: adapters on {', '.join(targets)}; {what} are frozen{way}")
    kept = [name for name, _ in hf.named_modules() if name == head or (everything and is_of_router(hf, name))]
    peft_config = PeftLoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        rank_pattern=dict(config.rank_pattern),
        alpha_pattern=dict(config.alpha_pattern),
        lora_dropout=config.dropout,
        use_rslora=config.rslora,
        use_dora=config.dora,
        init_lora_weights="gaussian" if config.init is LoraInit.gaussian else True,
        target_modules=EVERYTHING if targets == [EVERYTHING] else targets,
        target_parameters=config.target_parameters or None,
        exclude_modules=kept or None,
    )
    try:
        with warnings.catch_warnings():  # a pattern of no layer, and a head that is tied, are refused
            warnings.filterwarnings("ignore", r"The following \w+_pattern keys did not match")
            warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True` and a tied layer")
            put_adapter(hf, peft_config, TARGETS)
    except ValueError as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{TARGETS}: {str(error).splitlines()[0]}, got {config.targets}") from error
    _require_patterns(hf, config)
    widths = [(layer.in_features or 0, layer.out_features or 0) for layer in lora_layers(hf)]
    full = max(map(min, widths))
    if config.rank > full:
        what = f"more than {full}, the full rank of the widest layer that has an adapter"
        say(f"WARNING: model.lora.rank={config.rank} is {what}: the rest takes memory and adds nothing")


def put_adapter(hf: PreTrainedModel, config: PeftLoraConfig, key: str) -> None:
    """The same by peft's own config, which `key` is about.

    Raises:
        ConfigError: it is on what cannot be merged.
        ValueError: peft finds no such modules.
    """
    merged = MERGED | ({"ParamWrapper"} if config.target_parameters else set())  # before peft adds to the config
    hf.requires_grad_(False)
    if config.use_dora:
        keep_scales(hf)
    inject_adapter_in_model(config, hf)
    cast_adapter_dtype(hf, DEFAULT)  # float32, whatever the weights beneath are held in
    _check_layers(hf, key, merged)
    if head_name(hf) is not None:
        scalar_head(hf).requires_grad_(True)
    if hf.is_activation_checkpointing:
        hf.enable_input_require_grads()


def _require_patterns(hf: PreTrainedModel, config: LoraConfig) -> None:
    """Raises:
    ConfigError: a pattern fits no layer that has an adapter, or none that no earlier one fits.
    """
    names = adapted_names(hf)
    for key, numbers in (("rank_pattern", config.rank_pattern), ("alpha_pattern", config.alpha_pattern)):
        used = {get_pattern_key(list(numbers), name) for name in names}
        if unused := [pattern for pattern in numbers if pattern not in used]:
            rule = f"model.lora.{key} must fit layers with an adapter, each pattern some that no earlier one fits"
            raise ConfigError(f"{rule}, got {unused[0]!r}; they are called as {names[0]} is")


def _check_layers(hf: PreTrainedModel, key: str, merged: set[str]) -> None:
    """Only what can be merged for export, peft's layers of these names: on linear layers, and none whose weight is
    another module's too, and on experts where they are asked for by name."""
    head = hf.get_output_embeddings()
    tied = hf.config.get_text_config().tie_word_embeddings and head is not None and is_adapted(head)
    strange = sorted({type(layer).__name__ for layer in lora_layers(hf) if type(layer).__name__ not in merged})
    routes = any(is_adapted(module) and is_of_router(hf, name) for name, module in hf.named_modules())
    if tied or strange or routes:
        kind = strange[0] if strange else "the head, tied to the embeddings"
        if "ParamWrapper" in strange or routes:
            kind = "the experts or routers of a mixture, which are no such layers"
        raise ConfigError(f"{key} must be linear layers with a weight of their own, got {kind}")


@dataclass(frozen=True, slots=True)
class AdapterShape:
    """What the outputs of an adapter are scaled by comes of these."""

    rank: int
    alpha: int
    rslora: bool
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, int] = field(default_factory=dict)


def shape_of_adapter(hf: PreTrainedModel) -> AdapterShape:
    """Of the one that the model was loaded with."""
    return _shape(config_of_adapter(hf))


def _shape(config: PeftLoraConfig) -> AdapterShape:
    patterns = dict(config.rank_pattern or {}), dict(config.alpha_pattern or {})
    return AdapterShape(config.r, config.lora_alpha, config.use_rslora, *patterns)


def config_of_adapter(hf: PreTrainedModel) -> PeftLoraConfig:
    """peft's, of the same."""
    config: PeftLoraConfig = vars(hf)["peft_config"][DEFAULT]
    return config


def add_another(hf: PreTrainedModel, name: str, shape: AdapterShape) -> None:
    """A second adapter, which is nothing until it is trained or loaded, beside the first and on the same layers."""
    config = PeftLoraConfig(
        r=shape.rank,
        lora_alpha=shape.alpha,
        use_rslora=shape.rslora,
        rank_pattern=dict(shape.rank_pattern),
        alpha_pattern=dict(shape.alpha_pattern),
    )
    inject_beside(hf, name, config)


def leave_alone(hf: PreTrainedModel, name: str) -> None:
    """Of the adapters on the same layers this one, which is then the active one; the others are taken out."""
    use_adapter(hf, name)
    for layer in lora_layers(hf):
        for other in [each for each in layer.lora_A if each != name]:
            layer.delete_adapter(other)
    vars(hf)["peft_config"] = {name: vars(hf)["peft_config"][name]}


def inject_beside(hf: PreTrainedModel, name: str, config: PeftLoraConfig) -> None:
    """The same by peft's own config, but for its modules."""
    config.target_modules = [key for key, module in hf.named_modules() if is_adapted(module)]
    before = vars(hf).pop("peft_config")  # found there, it has peft warn of several adapters, which are what is wanted
    inject_adapter_in_model(config, hf, adapter_name=name)
    cast_adapter_dtype(hf, name)
    vars(hf)["peft_config"] = before | vars(hf)["peft_config"]


@dataclass(frozen=True, slots=True)
class SavedAdapter:
    shape: AdapterShape
    base: str | None  # the folder of the model beneath, or its pinned name
    weights: dict[str, Tensor]  # by their names in the model


def read_adapter(folder: Path) -> SavedAdapter:
    """What `save_adapter` wrote.

    Raises:
        ConfigError: the folder holds no adapter, or one that is more than LoRA and a head.
    """
    require_on_backbone(folder)
    if not (folder / WEIGHTS_FILE).exists():
        raise ConfigError(f"roles.share=lora needs an adapter's weights ({WEIGHTS_FILE}), got {str(folder)!r}")
    config = PeftLoraConfig.from_pretrained(str(folder))
    weights = {name.removeprefix(PREFIX): tensor for name, tensor in load_file(folder / WEIGHTS_FILE).items()}
    others = sorted(name for name in weights if ".lora_" not in name and name != f"{HEAD}.weight")
    require(not others, "roles.share=lora needs an adapter of LoRA and a head alone", others[:1])
    base = config.base_model_name_or_path
    if base is not None and config.revision is not None:
        base = f"{base}@{config.revision}"
    return SavedAdapter(_shape(config), base, weights)


def write_adapter(hf: PreTrainedModel, name: str, weights: dict[str, Tensor]) -> None:
    """Set the weights of the adapter `name`.

    Raises:
        ConfigError: it has other layers or another rank than the weights.
    """
    own = {key.replace(f".{name}.", "."): p for key, p in hf.named_parameters() if f".{name}." in key}
    given = {key: tensor for key, tensor in weights.items() if ".lora_" in key}
    strange = own.keys() ^ given.keys() or {key for key in own if own[key].shape != given[key].shape}
    if strange:
        raise ConfigError(f"roles.share=lora needs adapters on the same layers, got another at {sorted(strange)[0]}")
    for key, parameter in own.items():
        parameter.data.copy_(given[key])
