"""The files of a model's folder, asked before they are read: which are there, and whether each is what its name says.

A library that reads a damaged file says so in its own words, and which file it was, not always.
"""

import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import CONFIG_MAPPING
from transformers.utils import (
    CONFIG_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
)

from alignment.config.parts import ConfigError

INDICES = {SAFE_WEIGHTS_NAME: SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_NAME: WEIGHTS_INDEX_NAME}
"""A file of weights, and the index that stands for it where there are several; in transformers' order."""

ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")


def check_folder(folder: Path, key: str) -> None:
    """Raises:
    ConfigError: config.json or a file of the weights is missing, cut or no such file; names `key` and the file.
    """
    if not folder.is_dir():
        raise ConfigError(f"{key} must be a model's folder, got {str(folder)!r}")
    settings = read_json(folder / CONFIG_NAME, key)
    kind = settings.get("model_type")
    if kind not in CONFIG_MAPPING:
        rule = f"{key}: {CONFIG_NAME} must have a model_type that transformers knows"
        raise ConfigError(f"{rule}, got {kind!r} in {str(folder)!r}")
    for file in _weight_files(folder, key):
        _check(file, key)


def check_adapter(folder: Path, key: str) -> None:
    """The same of the weights of an adapter's folder."""
    files = [folder / name for name in ADAPTERS if (folder / name).is_file()]
    if not files:
        raise ConfigError(f"{key}: no adapter in {str(folder)!r}: neither {' nor '.join(ADAPTERS)}")
    _check(files[0], key)


def read_json(file: Path, key: str) -> dict[str, Any]:
    """Raises:
    ConfigError: there is no such file, or it is no JSON object; names `key` and the file.
    """
    if not file.is_file():
        raise ConfigError(f"{key}: no {file.name} in {str(file.parent)!r}")
    try:
        content = json.loads(file.read_text())
    except ValueError as error:
        raise ConfigError(f"{key}: {str(file)!r} is no JSON ({error})") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{key}: {str(file)!r} must be a JSON object, got {type(content).__name__}")
    return content


def read_weight(folder: Path, name: str, key: str) -> Tensor:
    """One weight, by its name in the files, on the CPU."""
    file = next(file for file in _weight_files(folder, key) if name in _names(file))
    if file.suffix != ".safetensors":
        return _pickled(file)[name]
    with safe_open(file, framework="pt") as weights:
        return weights.get_tensor(name)


def holds_packed_weights(folder: Path, key: str) -> bool:
    """Whether the weights are packed as bitsandbytes packs them, with the scales of each beside it."""
    names = {name for file in _weight_files(folder, key) for name in _names(file)}
    return any(name.endswith((".absmax", ".SCB")) for name in names)


def one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 200 else f"{text[:200]}..."


def _weight_files(folder: Path, key: str) -> list[Path]:
    """As transformers chooses them.

    Raises:
        ConfigError: there is none, or an index names one that is not there.
    """
    for single, index in INDICES.items():
        if (folder / single).is_file():
            return [folder / single]
        if (folder / index).is_file():
            parts = read_json(folder / index, key).get("weight_map")
            if not isinstance(parts, dict) or not parts:
                raise ConfigError(f"{key}: {str(folder / index)!r} must have a weight_map, got {parts!r}")
            files = [folder / name for name in sorted(set(parts.values()))]
            lost = [file.name for file in files if not file.is_file()]
            if lost:
                raise ConfigError(f"{key}: {str(folder / index)!r} names {lost[0]!r}, which is not there")
            return files
    raise ConfigError(f"{key}: no model in {str(folder)!r}: neither {SAFE_WEIGHTS_NAME} nor {WEIGHTS_NAME}")


def _check(file: Path, key: str) -> None:
    try:
        _names(file)
    except (SafetensorError, pickle.UnpicklingError, EOFError, OSError, RuntimeError, ValueError) as error:
        raise ConfigError(f"{key}: {str(file)!r} is cut or damaged ({one_line(error)})") from error


def _names(file: Path) -> list[str]:
    if file.suffix != ".safetensors":
        return list(_pickled(file))
    with safe_open(file, framework="pt") as weights:
        return list(weights.keys())


def _pickled(file: Path) -> dict[str, Tensor]:
    weights = torch.load(file, map_location="cpu", mmap=zipfile.is_zipfile(file), weights_only=True)
    if not isinstance(weights, dict):
        raise ValueError(f"weights by name are wanted, got a {type(weights).__name__}")
    return weights
