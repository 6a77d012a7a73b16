"""A saved adapter that is trained on: where it lies, and what of `model` it settles. Asked of its files alone."""

from collections.abc import Collection
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

from alignment.config.errors import ConfigError, require
from alignment.config.folders import ADAPTER_FILE, MODEL_FILE, base_of, read_json
from alignment.config.hub import located
from alignment.config.model import LoraConfig, ModelConfig
from alignment.config.rope import RopeConfig
from alignment.config.run import RunConfig, TrainingConfig
from alignment.config.saved_prompt import KINDS, is_soft_prompt, settled_prompt

KEY = "model.adapter"
BESIDE = "adapter"  # the weights of a run's model into which it is merged

LAYERS = "keys and values that a layer has of no token have no place among those of a packed row's own tokens"
OTHERS = "what it sets before a text depends on its task or its examples, and a packed row has neither"
NOT_READ = {
    **dict.fromkeys(("PREFIX_TUNING", "CARTRIDGE"), LAYERS),
    **dict.fromkeys(("MULTITASK_PROMPT_TUNING", "CPT"), OTHERS),
}
"""Kinds of peft's that stand before a text and are no embeddings of their own alone -> why they are not read."""
NOT_MERGED = ("ADAPTION_PROMPT", "XLORA", "POLY", "LILY", "SHADOW")
"""Kinds of others whose change depends on what is read, so that peft adds it to no weight."""

Run = TypeVar("Run", bound=RunConfig)


def adapter_of(path: str) -> str:
    """A model's folder, as a run leaves it, stands for the adapter beside it; any other path for itself."""
    folder = Path(path).expanduser()
    is_beside = (folder / BESIDE / ADAPTER_FILE).is_file() and not (folder / ADAPTER_FILE).is_file()
    return str(folder / BESIDE) if is_beside else path


def require_trainable(key: str, folder: Path) -> None:
    """Raises:
    ConfigError: the folder holds no adapter, or one that is neither LoRA's nor a soft prompt.
    """
    if not (folder / ADAPTER_FILE).is_file():
        is_whole = (folder / MODEL_FILE).is_file()
        way = f", got a whole model; model.path={folder} trains it" if is_whole else f", got {str(folder)!r}"
        raise ConfigError(f"{key} must be the folder of an adapter ({ADAPTER_FILE}){way}")
    kind = read_json(folder / ADAPTER_FILE, key).get("peft_type")
    if kind != "LORA" and kind not in KINDS:
        way = NOT_READ.get(str(kind), f"model.path={folder} merges others into their base, and trains on from there")
        if kind in NOT_MERGED:
            way = "peft cannot merge its kind, so that model.path does not take it either"
        rule = f"{key} must be an adapter of LoRA or a soft prompt"
        raise ConfigError(f"{rule}, got {kind!r} in {str(folder / ADAPTER_FILE)!r}; {way}")


def settled(config: Run) -> Run:
    """The run with the base of its adapter, where `model.path` is null, and the adapter's own shape as `model.lora`, or
    as `model.soft_prompt`. As it is where it trains no saved adapter, or one that is not here yet.

    Raises:
        ConfigError: the adapter names no base that is here, or a key of `model.lora` says otherwise than it; or the
            weights that are to train are read with a soft prompt.
    """
    if not isinstance(config, TrainingConfig):
        return config
    _require_no_prompt(config.model.path)
    _require_weights_beneath(config.model)
    if config.model.adapter is None:
        return config
    folder = located(config.model.adapter)
    if not (folder / ADAPTER_FILE).is_file():
        return config
    _require_apart(config.model.path, folder)
    _require_scaling(config.model, folder)
    if is_soft_prompt(folder):
        shape: dict[str, Any] = {"soft_prompt": settled_prompt(config.model, folder, KEY)}
    else:
        shape = {"lora": _shape(config, folder)}
    model: ModelConfig = replace(config.model, path=config.model.path or _base(folder), **shape)
    settled_config: Run = replace(config, model=model)
    return settled_config


def _require_no_prompt(path: str | None) -> None:
    """Raise `ConfigError` where `model.path`, which is to train or to be the base of what does, has a soft prompt."""
    folder = None if path is None else located(path)
    rule = f"model.path must be a model without a soft prompt, whose weights are read alone; {KEY}={path} trains it on"
    require(folder is None or not is_soft_prompt(folder), rule, path)


def _require_weights_beneath(model: ModelConfig) -> None:
    """Raise `ConfigError` where the adapter that is left alone would lie on another one: peft puts it in that one's
    place."""
    if model.lora.merge or model.path is None or not (located(model.path) / ADAPTER_FILE).is_file():
        return
    rule = f"model.lora.merge must be true with model.path={model.path}, an adapter's folder, on which peft lays no "
    raise ConfigError(f"{rule}adapter; {KEY}={model.path} in its place trains that one on, got false")


def _require_apart(path: str | None, folder: Path) -> None:
    """Raise `ConfigError` where `model.path` is what the adapter is merged into already."""
    if path is None:
        return
    base = located(path).resolve()
    is_own = folder.resolve() in (base, base / BESIDE, base / "model" / BESIDE)
    rule = f"{KEY} must be apart from model.path={path}, into whose weights it is merged"
    way = "leave model.path out, and it is trained on its own base, or model.adapter"
    require(not is_own, f"{rule} ({way})", str(folder))


def _require_scaling(model: ModelConfig, folder: Path) -> None:
    """Raise `ConfigError` where the model that a run has left beside the adapter has RoPE scaling, which an adapter's
    own files have no place for, and the run that trains it on does not say how its base is to be read."""
    if model.rope.rope_type is not None or folder.name != BESIDE or not (folder.parent / MODEL_FILE).is_file():
        return
    beside, base = folder.parent, base_of(folder, KEY) if model.path is None else located(model.path)
    own = rope_of(beside)
    if base is None or own in ({}, rope_of(base)):
        return
    given = ", ".join(f"{name}: {value}" for name, value in own.items())
    rule = f"model.rope must be given beside {KEY}={model.adapter}, which was trained with a scaling that its base has"
    raise ConfigError(f"{rule} not: 'model.rope={{{given}}}', got null")


def rope_of(folder: Path) -> dict[str, Any]:
    """The RoPE scaling that a model's config names; nothing where it has none."""
    settings = read_json(folder / MODEL_FILE, KEY) if (folder / MODEL_FILE).is_file() else {}
    found = settings.get("rope_parameters") or {}
    found = found.get("full_attention", found)
    names = {each.name for each in fields(RopeConfig)}
    return {name: value for name, value in found.items() if name in names} if "factor" in found else {}


def _base(folder: Path) -> str:
    base = base_of(folder, KEY)
    if base is None:
        named = read_json(folder / ADAPTER_FILE, KEY).get("base_model_name_or_path")
        rule = f"model.path must name the base of the adapter in {str(folder)!r}, whose base_model_name_or_path is not"
        raise ConfigError(f"{rule} a folder here or a name on the hub: {named!r}, got null")
    return str(base)


def _shape(config: TrainingConfig, folder: Path) -> LoraConfig:
    """That of the adapter; dropout and LoRA+ are the run's."""
    asked, own = config.model.lora, _own(folder)
    given = asked.given() | ({"rank": asked.rank} if asked.rank else {})
    _require_same(own, given, folder)
    return replace(asked, **own)


def require_own_shape(model: ModelConfig, names: Collection[str]) -> None:
    """Raise `ConfigError` where one of these keys of `model.lora`, which are given, says otherwise than the adapter
    that is trained on; one that is not here yet says nothing."""
    folder = None if model.adapter is None else located(model.adapter)
    if folder is not None and names and is_soft_prompt(folder):
        raise ConfigError(f"model.lora.{min(names)} must be left out beside {KEY}, a soft prompt, got {folder}")
    if folder is not None and not is_soft_prompt(folder) and (folder / ADAPTER_FILE).is_file():
        given = {each.name: getattr(model.lora, each.name) for each in fields(LoraConfig) if each.name in names}
        _require_same(_own(folder), given, folder)


def _require_same(own: dict[str, Any], given: dict[str, Any], folder: Path) -> None:
    for name, value in own.items():
        is_other = name in given and not _is_same(value, given[name])
        rule = f"model.lora.{name} must be left out beside model.adapter, whose own is {value} ({folder})"
        require(not is_other, rule, given.get(name))


def _is_same(own: Any, asked: Any) -> bool:
    """Modules may be named by the end of their names."""
    if not isinstance(own, list):
        return bool(own == asked)
    return all(any(_ends(each, name) for name in asked) for each in own) and all(
        any(_ends(each, name) for each in own) for name in asked
    )


def _ends(module: str, name: str) -> bool:
    return f".{module}".endswith(f".{name}")


def _own(folder: Path) -> dict[str, Any]:
    settings = read_json(folder / ADAPTER_FILE, KEY)
    rank, alpha, targets = settings.get("r"), settings.get("lora_alpha"), settings.get("target_modules")
    for name, value in (("r", rank), ("lora_alpha", alpha)):
        if not isinstance(value, int) or value < 1:
            rule = f"{KEY}: {name} in {str(folder / ADAPTER_FILE)!r} must be a number >= 1"
            raise ConfigError(f"{rule}, got {value!r}")
    whole = settings.get("modules_to_save") or []
    for name, value in (("modules_to_save", whole), ("target_modules", [] if targets is None else targets)):
        are_names = isinstance(value, list) and all(isinstance(each, str) for each in value)
        if not are_names and not (name == "target_modules" and isinstance(value, str)):
            raise ConfigError(f"{KEY}: {name} in {str(folder / ADAPTER_FILE)!r} must be a list of names, got {value!r}")
    own: dict[str, Any] = {"rank": rank, "alpha": alpha, "modules_to_save": list(whole)}
    for name in ("rank_pattern", "alpha_pattern"):
        own[name] = settings.get(name) or {}
        are_numbers = isinstance(own[name], dict) and all(isinstance(each, int) for each in own[name].values())
        if not are_numbers or any(each < 1 for each in own[name].values()):
            rule = f"{KEY}: {name} in {str(folder / ADAPTER_FILE)!r} must be names of layers with numbers >= 1"
            raise ConfigError(f"{rule}, got {own[name]!r}")
    own |= {"rslora": bool(settings.get("use_rslora")), "dora": bool(settings.get("use_dora"))}
    own["target_parameters"] = sorted(settings.get("target_parameters") or [])
    if targets is None:
        return own
    return own | {"targets": sorted(targets) if isinstance(targets, list) else [str(targets)]}
