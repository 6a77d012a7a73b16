"""An adapter that somebody trained, of any kind that peft can merge, added into the weights of its base."""

import warnings
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, PeftType, load_peft_weights, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor
from transformers import PreTrainedModel

from alignment.config.adapter import NOT_MERGED, NOT_READ
from alignment.config.errors import ConfigError
from alignment.config.folders import ADAPTER_FILE, read_json
from alignment.distributed.placement import Placement
from alignment.models.adapters import DEFAULT, PREFIX
from alignment.models.files import Reading, check_adapter, one_line
from alignment.models.weight_dtype import widened


@torch.no_grad()
def merge_adapter(hf: PreTrainedModel, folder: Path, key: str, placement: Placement) -> set[str]:
    """Add the adapter in `folder` into the model's weights, one layer at a time.

    Returns:
        The names of the model's weights that the folder holds whole (`modules_to_save`), a scalar head for instance.

    Raises:
        ConfigError: it is of a kind that cannot be merged, is cut or damaged, or was trained on another model.
    """
    where = f"{key}: the adapter in {str(folder)!r}"
    config = _config(folder, key)
    check_adapter(folder, key)
    with Reading(f"{where} cannot be read"):
        weights = load_peft_weights(str(folder), device="cpu")
    trained = [p for p in hf.parameters() if p.requires_grad]
    written = _write_whole(hf, weights, where, placement)
    try:
        with Reading(f"{where} does not fit its base"), warnings.catch_warnings(action="ignore"):  # checked below
            model: Any = PeftModel(hf, config)
            found: Any = set_peft_model_state_dict(model, weights, adapter_name=DEFAULT)
    except RuntimeError as error:  # of shapes
        raise ConfigError(f"{where} does not fit its base ({one_line(error)})") from error
    lost = sorted({name for name, _ in model.named_parameters() if f".{DEFAULT}" in name} & set(found.missing_keys))
    if lost or found.unexpected_keys:
        what = f"has no {lost[0]}" if lost else f"has a weight that its base has not, {found.unexpected_keys[0]}"
        raise ConfigError(f"{where} {what}")
    tuned: list[Any] = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    for layer in tuned:
        with placement.whole(list(layer.parameters()), write=True), widened(layer):
            layer.merge()
    model.base_model.unload()
    for parameter in trained:
        parameter.requires_grad_(True)
    return written


def _config(folder: Path, key: str) -> PeftConfig:
    kind = read_json(folder / ADAPTER_FILE, key).get("peft_type")
    rule = f"{key} must be an adapter that peft can merge into its base"
    if kind not in PeftType.__members__:
        raise ConfigError(f"{rule}, got {kind!r} in {str(folder)!r}")
    with Reading(f"{key}: {str(folder / ADAPTER_FILE)!r} is no config that peft reads"):
        config = PeftConfig.from_pretrained(str(folder))
    if config.is_prompt_learning or kind in NOT_MERGED:
        why = f"; {NOT_READ[kind]}" if kind in NOT_READ else ""
        raise ConfigError(f"{rule}, got {kind} in {str(folder)!r}{why}")
    vars(config).update(modules_to_save=None, inference_mode=True)  # what is saved whole is written in its place here
    return config


def _write_whole(hf: PreTrainedModel, weights: dict[str, Tensor], where: str, placement: Placement) -> set[str]:
    """Take those out of an adapter's weights that are the model's own, and write them in their places."""
    own, written = dict(hf.named_parameters(remove_duplicate=False)), set()
    done: dict[int, Tensor] = {}
    for name in [name for name in weights if name.removeprefix(PREFIX) in own]:
        weight, name = weights.pop(name), name.removeprefix(PREFIX)
        with placement.whole([own[name]], write=True):
            if own[name].shape != weight.shape:
                shapes = f"{list(weight.shape)} for {list(own[name].shape)}"
                raise ConfigError(f"{where} has a {name} of another shape than its base's, {shapes}")
            if not torch.equal(done.setdefault(id(own[name]), weight), weight):
                raise ConfigError(f"{where} has another {name} than the weight which its base ties it to")
            own[name].copy_(weight)
        written.add(name)
    return written
