"""A model out of a folder in Hugging Face form, with all its weights found there or a line that says which is not."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, BitsAndBytesConfig, PreTrainedConfig, PreTrainedModel
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.utils import CONFIG_NAME
from transformers.utils import logging as transformers_logging

from alignment.config.adapter import BESIDE
from alignment.config.errors import ConfigError
from alignment.config.folders import ADAPTER_FILE, ModelFolder, find_model
from alignment.config.fp8 import Fp8
from alignment.config.model import Attention, ModelConfig
from alignment.distributed.placement import Placement, Whole
from alignment.models.attention import choose_attention
from alignment.models.files import Reading, check_config, check_folder, code_files, holds_packed_weights, names_in
from alignment.models.merged_folder import merge_adapters
from alignment.models.quantized import ask_packing, check_quantized, quantization_of, settle_packed
from alignment.models.rope import scale_rope, scaled_as
from alignment.models.unread import check_tied, check_unread, listed, unread_of
from alignment.models.weight_dtype import frozen_in, made_in
from alignment.terminal import say_once

AHEAD = "HF_DEACTIVATE_ASYNC_LOAD"  # of transformers
transformers_logging.disable_progress_bar()  # weights of a file at a time are not progress that anybody follows
transformers_logging.set_verbosity_error()  # what a folder lacks is asked for, and told, in from_folder


def read_config(folder: ModelFolder) -> PreTrainedConfig:
    """Raises:
    ConfigError: what the folder holds is no model, or its files are cut or damaged; names the key and the file.
    """
    check_folder(folder)
    return read_shape(folder)


def read_shape(folder: ModelFolder) -> PreTrainedConfig:
    """The same of a folder whose weights need not be there.

    Raises:
        as `read_config`.
    """
    check_config(folder)
    if (files := code_files(folder.path)) and folder.trusted:
        say_once(f"{folder.key}: trust_remote_code=true runs the code in {folder.path}: {', '.join(files)}")
    return _as_trained(parse_config(folder.path, folder.key, trusted=folder.trusted), folder)


def _as_trained(config: PreTrainedConfig, folder: ModelFolder) -> PreTrainedConfig:
    """The base's, with the RoPE scaling of the model that a run has left beside its adapter: an adapter's own files
    have no place for it."""
    for adapter in reversed(folder.adapters):
        beside = adapter.parent
        if adapter.name == BESIDE and adapter != folder.path and (beside / CONFIG_NAME).is_file():
            if scaled_as(config, parse_config(beside, folder.key, trusted=folder.trusted)):
                say_once(f"model.rope: {adapter} was trained with the RoPE scaling in {beside}, by which it is read")
            break
    return config


def parse_config(folder: Path, key: str, *, trusted: bool = False) -> PreTrainedConfig:
    """What config.json alone says.

    Raises:
        ConfigError: it holds what transformers does not take; names the key and the file.
    """
    with Reading(f"{key}: {str(folder / CONFIG_NAME)!r}: no config that transformers reads"):
        return AutoConfig.from_pretrained(folder, trust_remote_code=trusted)


def is_scalar_folder(folder: ModelFolder) -> bool:
    """Whether the folder says that its model has a head for classes or scores."""
    architectures = read_config(folder).architectures or []
    return any(name.endswith("ForSequenceClassification") for name in architectures)


def architecture_of(auto: Any, config: PreTrainedConfig, where: str, folder: ModelFolder | None = None) -> Any:
    """The class of the model, which may come with its folder.

    Raises:
        ConfigError: there is none.
    """
    own = (vars(config).get("auto_map") or {}).get(auto.__name__)
    if folder is not None and folder.trusted and own is not None:
        with Reading(f"{where}: no {own} in the code that comes with it"):
            return get_class_from_dynamic_module(own, str(folder.path))
    if type(config) not in auto._model_mapping:
        raise ConfigError(f"{where} must be a model that {auto.__name__} knows, got {config.model_type!r}")
    return auto._model_mapping[type(config)]


def attention_of(architecture: Any, config: PreTrainedConfig, asked: Attention, where: str) -> str:
    """transformers' name of the attention: sdpa, and where the architecture has none of it, or a soft cap that sdpa
    would leave out, its own, which is said.

    Raises:
        ConfigError: sdpa is asked for where it is not to be had.
    """
    if asked not in (Attention.auto, Attention.sdpa):
        return asked.value
    is_capped = config.get_text_config().to_dict().get("attn_logit_softcapping") is not None
    if architecture._supports_sdpa and not is_capped:
        return Attention.sdpa.value
    why = "attention has a soft cap, which sdpa leaves out" if is_capped else "architecture has no sdpa"
    if asked is Attention.sdpa:
        raise ConfigError(f"model.attention must be eager (or auto) for {where}, whose {why}, got 'sdpa'")
    on_gpu = " (on a GPU flex_attention)" if architecture._supports_flex_attn else ""
    say_once(f"model.attention: eager for {where}, whose {why}{on_gpu}")
    return Attention.eager.value


def from_folder(
    auto: Any, config: ModelConfig, placement: Placement, folder: ModelFolder, held: torch.dtype, **settings: Any
) -> tuple[PreTrainedModel, dict[str, str]]:
    """The model, and the weights that it has and the folder has not, each with what is wrong. Its products' weights are
    `held` in that dtype (`made_in`).

    Raises:
        ConfigError: there is no such model, or its files are cut or damaged, or hold weights that its config has no
            place for.
    """
    where = f"{folder.key} {config.path!r}"
    hf_config = scale_rope(read_config(folder), config.rope, where)
    ask_packing(hf_config, config, placement.compute, where, folder)
    check_quantized(hf_config, placement, where, folder)
    architecture = architecture_of(auto, hf_config, where, folder)
    attention = attention_of(architecture, hf_config, config.attention, where)
    is_packed = quantization_of(hf_config) is not None
    if is_packed or config.rope.rope_type is not None or folder.adapters:
        for name, value in settings.items():
            setattr(hf_config, name, value)
        settings = {"config": hf_config}  # which now says what is not to be quantised, and how positions turn
    if is_packed:
        if not holds_packed_weights(folder.path, folder.key):  # transformers would take them for packed ones
            settings["quantization_config"] = BitsAndBytesConfig(**quantization_of(hf_config) or {})
            del hf_config.quantization_config
        settings["device_map"] = placement.packs_on  # where transformers would take a GPU by itself
    if placement.reads_to is not None:
        settings["device_map"] = placement.reads_to
    unread = f"{where} with model.attention={attention}: no model"
    reading = placement.reading_packed if is_packed else placement.reading
    with Reading(unread), reading(), made_in(held), _one_by_one(), _without_adapter(folder) as path:
        hf, found = auto.from_pretrained(
            path,
            dtype=torch.float32,
            attn_implementation=attention,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are found below, by name
            trust_remote_code=folder.trusted,
            **settings,
        )
    if config.attention is Attention.auto:
        choose_attention(hf)
    hf.name_or_path = hf.config._name_or_path = config.path
    hf.config.return_dict = True  # what a model gives is read by name here
    lacking = {name: f"no {name}" for name in sorted(found["missing_keys"])}
    if is_packed:
        placement.shard(hf)  # what was not read, and is drawn
    lacking |= settle_packed(hf, config, placement)
    for name, theirs, own in sorted(found["mismatched_keys"]):
        lacking[name] = f"{name} of shape {list(theirs)}, not {list(own)},"
    left = found["unexpected_keys"]
    if not isinstance(placement, Whole):  # where transformers does not say
        check_tied(hf, folder.path, folder.key, where)
        left = left if is_packed else unread_of(hf, names_in(folder.path, folder.key))
    if apart := check_unread(hf, left, where):
        what = f"what a {type(hf).__name__} has no part for is left out, also where it is saved ({len(apart)})"
        say_once(f"{where}: {what}: {listed(apart)}")
    for name in merge_adapters(hf, config, folder, placement, where, held):
        lacking.pop(name, None)
    return hf, lacking


def dtype_of(folder: ModelFolder) -> torch.dtype:
    """That its config names for its weights; float32 where it names none."""
    found = read_config(folder).dtype
    return found if isinstance(found, torch.dtype) else torch.float32


def held_frozen(config: ModelConfig, compute: torch.dtype) -> torch.dtype:
    """In which a model's weights are held that is only read, by `frozen_in`."""
    came_in = None
    if config.path is not None and config.fp8 is not Fp8.none:
        folder = find_model(config.path, "model.path", trusted=config.trust_remote_code)
        came_in = None if folder.adapters else dtype_of(folder)
    return frozen_in(config.fp8, came_in, compute)


@contextmanager
def _one_by_one() -> Iterator[None]:
    """Inside, transformers reads a weight when the one before it is in its place. Its threads would read ahead: several
    conversions at once, and the experts of all layers before they are put together."""
    before = os.environ.get(AHEAD)
    os.environ[AHEAD] = "1"
    try:
        yield
    finally:
        del os.environ[AHEAD]
        if before is not None:
            os.environ[AHEAD] = before


@contextmanager
def _without_adapter(folder: ModelFolder) -> Iterator[str]:
    """The folder as it is without an adapter in it, which transformers would put into the model but not merge."""
    if not (folder.path / ADAPTER_FILE).is_file():
        yield str(folder.path)
        return
    with tempfile.TemporaryDirectory() as view:
        for file in folder.path.iterdir():
            if file.name != ADAPTER_FILE:
                (Path(view) / file.name).symlink_to(file.resolve())
        yield view
