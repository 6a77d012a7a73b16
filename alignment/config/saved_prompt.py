"""A saved soft prompt, in peft's form: where a model is read with one, and how long it is. Asked of its files alone."""

from pathlib import Path
from typing import Any

from alignment.config.errors import ConfigError
from alignment.config.folders import ADAPTER_FILE, read_json
from alignment.config.hub import located
from alignment.config.model import ModelConfig
from alignment.config.soft_prompt import SoftPromptConfig

KINDS = ("PROMPT_TUNING", "P_TUNING")
"""peft's, of embeddings before a text; what others set before it are keys and values, or depends on what is read."""


def is_soft_prompt(folder: Path) -> bool:
    """Whether the folder holds one; of files that are no JSON who reads the adapter tells."""
    file = folder / ADAPTER_FILE
    try:
        return file.is_file() and read_json(file, str(folder)).get("peft_type") in KINDS
    except ConfigError:
        return False


def num_virtual_tokens(folder: Path, key: str) -> int:
    """How many embeddings it has.

    Raises:
        ConfigError: its files do not say, or it is of an encoder-decoder; names `key` and the file.
    """
    settings: dict[str, Any] = read_json(folder / ADAPTER_FILE, key)
    where = f"in {str(folder / ADAPTER_FILE)!r}"
    number, parts = settings.get("num_virtual_tokens"), settings.get("num_transformer_submodules")
    if not isinstance(number, int) or number < 1:
        raise ConfigError(f"{key}: num_virtual_tokens {where} must be a number >= 1, got {number!r}")
    if parts not in (None, 1):
        raise ConfigError(f"{key}: num_transformer_submodules {where} must be 1, of a decoder alone, got {parts!r}")
    return number


def saved_prompt(model: ModelConfig) -> Path | None:
    """The folder of the soft prompt that a model begins with, or is read with; None where it has none, or a new one."""
    given = [model.path] if model.adapter is None else [model.adapter]
    places = [located(path) for path in given if path is not None]
    return next((place for place in places if is_soft_prompt(place)), None)


def tokens_before(model: ModelConfig) -> int:
    """How many embeddings stand before each text of the model, beside its own tokens."""
    folder = None if model.has_soft_prompt else saved_prompt(model)
    return model.soft_prompt.tokens if folder is None else num_virtual_tokens(folder, "model.path")


def settled_prompt(model: ModelConfig, folder: Path, key: str) -> SoftPromptConfig:
    """That of a saved one which is trained on. What it was made by is not saved: each embedding is a weight from here
    on.

    Raises:
        ConfigError: a key of `model.soft_prompt` or `model.lora` says otherwise than it.
    """
    asked, own = model.soft_prompt, SoftPromptConfig(tokens=num_virtual_tokens(folder, key))
    if asked not in (SoftPromptConfig(), own):
        rule = f"model.soft_prompt must be left out beside {key}, whose own has {own.tokens} tokens, each a weight"
        raise ConfigError(f"{rule} ({folder}), got {asked}")
    given = {"rank": model.lora.rank} if model.lora.rank else model.lora.given()
    if given:
        name, value = next(iter(given.items()))
        raise ConfigError(f"model.lora.{name} must be left out beside {key}, a soft prompt ({folder}), got {value}")
    return own
