"""The files of a model's folder, asked before they are read: which are there, and whether each is what its name says.

A library that reads a damaged file says so in its own words, and which file it was, not always.
"""

import json
import pickle
import zipfile
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import CONFIG_MAPPING
from transformers.utils import (
    CONFIG_NAME,
    GENERATION_CONFIG_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
)

from alignment.config.errors import ConfigError, UserError
from alignment.config.folders import ModelFolder, read_json, require_fetched

INDICES = {SAFE_WEIGHTS_NAME: SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_NAME: WEIGHTS_INDEX_NAME}
"""A file of weights, and the index that stands for it where there are several; in transformers' order."""

HALVES = {"BF16": torch.bfloat16, "F16": torch.float16}  # as safetensors calls them

TRUST = "model.trust_remote_code=true (of an evaluation trust_remote_code=true)"
ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")

MISREADINGS = (
    *(OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError, RecursionError),
    *(ImportError, StrictDataclassError),
)
"""What transformers, peft and the like raise where a file holds another thing than they take for granted."""


class Reading:
    """Inside, a library reads a folder that somebody else has written: what it raises is told in one line, behind the
    rule that was broken. tokenizers raises `Exception` itself, of no class of its own."""

    def __init__(self, rule: str) -> None:
        self.rule = rule

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Raises:
        ConfigError: the library could not read the folder.
        """
        if not isinstance(error, Exception) or isinstance(error, UserError):
            return
        if type(error) is Exception or isinstance(error, MISREADINGS):
            raise ConfigError(f"{self.rule} ({type(error).__name__}: {one_line(error)})") from error


def check_folder(model: ModelFolder) -> None:
    """Raises:
    ConfigError: as `check_config`; or a file of the weights is missing, cut or no such file.
    """
    check_config(model)
    for file in _weight_files(model.path, model.key):
        _check(file, model.key)


def check_config(model: ModelFolder) -> None:
    """Of a folder whose weights need not be there.

    Raises:
        ConfigError: config.json is missing, cut or no such file; names `key` and the file. Or the architecture is one
            of code that comes with it, and that may not run.
    """
    folder, key = model.path, model.key
    if not folder.is_dir():
        raise ConfigError(f"{key} must be a model's folder, got {str(folder)!r}")
    settings = read_json(folder / CONFIG_NAME, key)
    kind = settings.get("model_type")
    code = settings.get("auto_map")
    if code and (model.trusted or kind not in CONFIG_MAPPING):
        require_trusted(model, code, CONFIG_NAME)
    elif kind not in CONFIG_MAPPING:
        rule = f"{key}: {CONFIG_NAME} must have a model_type that transformers knows"
        raise ConfigError(f"{rule}, got {kind!r} in {str(folder)!r}")
    quantized = settings.get("quantization_config")
    if quantized is not None and not isinstance(quantized, dict):
        rule = f"{key}: quantization_config in {str(folder / CONFIG_NAME)!r} must be an object"
        raise ConfigError(f"{rule}, got {quantized!r}")
    _check_generation(folder / GENERATION_CONFIG_NAME, key)


def require_trusted(model: ModelFolder, code: Any, file: str) -> None:
    """Raises:
    ConfigError: code that comes with a model may not run, or is of another repository, which is not fetched.
    """
    named = json.dumps(code)
    if not model.trusted:
        rule = f"{model.key}: {file} in {str(model.path)!r} asks for code that comes with it ({named:.120})"
        raise ConfigError(f"{rule}; {TRUST} runs it, where you trust who wrote it")
    if "--" in named:
        rule = f"{model.key}: {file} in {str(model.path)!r} asks for code of another repository, which is not fetched"
        raise ConfigError(f"{rule}: take a copy that holds its own, got {named:.120}")


def code_files(folder: Path) -> list[str]:
    """The code that comes with a model, where its config asks for it."""
    settings = read_json(folder / CONFIG_NAME, "model.path")
    return sorted(file.name for file in folder.glob("*.py")) if settings.get("auto_map") else []


def _check_generation(file: Path, key: str) -> None:
    """One that transformers cannot read it passes over, and with it the tokens that end a reply."""
    if not file.exists():
        return
    ends = read_json(file, key).get("eos_token_id")
    listed = ends if isinstance(ends, list) else [] if ends is None else [ends]
    if not all(isinstance(each, int) for each in listed):
        raise ConfigError(
            f"{key}: eos_token_id in {str(file)!r} must be a token's number or a list of them, got {ends!r}"
        )


def check_adapter(folder: Path, key: str) -> None:
    """The same of the weights of an adapter's folder."""
    files = [folder / name for name in ADAPTERS if (folder / name).is_file()]
    if not files:
        raise ConfigError(f"{key}: no adapter in {str(folder)!r}: neither {' nor '.join(ADAPTERS)}")
    _check(files[0], key)


def read_weight(folder: Path, name: str, key: str) -> Tensor:
    """One weight, by its name in the files, on the CPU."""
    file = next(file for file in _weight_files(folder, key) if name in _names(file))
    if file.suffix != ".safetensors":
        return _pickled(file)[name]
    with safe_open(file, framework="pt") as weights:
        return weights.get_tensor(name)


def holds_packed_weights(folder: Path, key: str) -> bool:
    """Whether the weights are packed as bitsandbytes packs them, with the scales of each beside it."""
    return any(name.endswith((".absmax", ".SCB")) for name in names_in(folder, key))


def names_in(folder: Path, key: str) -> set[str]:
    """Of the weights, as the files call them."""
    return {name for file in _weight_files(folder, key) for name in _names(file)}


def dtype_in(folder: Path, key: str) -> torch.dtype:
    """The dtype that all matrices of the weights have there, where it is one of half precision; else float32."""
    found = {dtype for file in _weight_files(folder, key) for dtype in _dtypes(file)}
    return found.pop() if found in ({torch.bfloat16}, {torch.float16}) else torch.float32


def weights_in(folder: Path, key: str) -> int:
    """About how many there are, by the size of the files; 0 where they are packed, several to a number.

    Raises:
        ConfigError: as `check_folder`, of the weights.
    """
    files = _weight_files(folder, key)
    for file in files:
        _check(file, key)
    if holds_packed_weights(folder, key):
        return 0
    size = sum(file.stat().st_size for file in files)
    return size // dtype_in(folder, key).itemsize


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
            content = read_json(folder / index, key)
            parts: Any = content.get("weight_map")
            if not isinstance(parts, dict) or not parts or not all(isinstance(name, str) for name in parts.values()):
                rule = f"{key}: {str(folder / index)!r} must have a weight_map of names to files"
                raise ConfigError(f"{rule}, got {parts!r:.80}")
            files = [folder / name for name in sorted(set(parts.values()))]
            lost = [file.name for file in files if not file.is_file()]
            if lost:
                raise ConfigError(f"{key}: {str(folder / index)!r} names {lost[0]!r}, which is not there")
            if not isinstance(content.get("metadata"), dict):
                raise ConfigError(
                    f"{key}: {str(folder / index)!r} must have metadata, got {content.get('metadata')!r:.80}"
                )
            return files
    raise ConfigError(f"{key}: no model in {str(folder)!r}: neither {SAFE_WEIGHTS_NAME} nor {WEIGHTS_NAME}")


def _check(file: Path, key: str) -> None:
    require_fetched(file, f"{key}: {str(file)!r}")
    try:
        _names(file)
    except (SafetensorError, pickle.UnpicklingError, EOFError, OSError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"{key}: {str(file)!r} is cut or damaged ({type(error).__name__}: {one_line(error)})"
        ) from error


def _names(file: Path) -> list[str]:
    if file.suffix != ".safetensors":
        return list(_pickled(file))
    with safe_open(file, framework="pt") as weights:
        return list(weights.keys())


def _dtypes(file: Path) -> set[torch.dtype]:
    """Of the matrices; a scalar head is none, and is kept in float32 beside others."""
    if file.suffix != ".safetensors":
        weights = _pickled(file).values()
        return {weight.dtype for weight in weights if weight.ndim > 1 and len(weight) > 1}
    with safe_open(file, framework="pt") as opened:
        slices = list(map(opened.get_slice, opened.keys()))
        names = {each.get_dtype() for each in slices if len(each.get_shape()) > 1 and each.get_shape()[0] > 1}
    return {HALVES.get(name, torch.float32) for name in names}


def _pickled(file: Path) -> dict[str, Tensor]:
    weights = torch.load(file, map_location="cpu", mmap=zipfile.is_zipfile(file), weights_only=True)
    if not isinstance(weights, dict):
        raise ValueError(f"weights by name are wanted, got a {type(weights).__name__}")
    if not all(isinstance(name, str) for name in weights):
        raise ValueError("weights by name are wanted, and not all keys are names")
    return weights
