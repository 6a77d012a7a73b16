"""Which folder a model's weights are in: an adapter's lie on those of its base, which its folder names.

Asked of the files alone, before anything that can read a model is imported.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from alignment.config.errors import ConfigError
from alignment.config.hub import HubName, Kind, at_known_commit, fetched_folder, hub_name, located

MODEL_FILE, ADAPTER_FILE = "config.json", "adapter_config.json"  # transformers' and peft's
POINTER = b"version https://git-lfs.github.com/spec/"


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """Where a model's weights are: in a folder, or in an adapter's folder and in that of its base."""

    path: Path
    adapters: tuple[Path, ...]  # to be merged into it, one after the other
    key: str  # what its user named it by
    trusted: bool = False  # whether code in it may run


def find_model(path: str, key: str, *, trusted: bool = False) -> ModelFolder:
    """The model that a path, or a pinned name on the hub, stands for. An adapter lies on the folder that it names as
    its base, which may be an adapter's itself; one that lies beside whole weights lies on those, as transformers has
    it.

    Raises:
        ConfigError: the base is no folder here.
    """
    folder, adapters = located(path), list[Path]()
    while (folder / ADAPTER_FILE).is_file() and folder not in adapters:
        adapters.insert(0, folder)
        if (folder / MODEL_FILE).is_file():
            break
        base = base_of(folder, key)
        if base is None:
            rule = f"base_model_name_or_path in {str(folder / ADAPTER_FILE)!r} must be the folder of the adapter's base"
            merged = (folder.parent / MODEL_FILE).is_file()
            way_out = f"; {str(folder.parent)!r} is the model that it was merged into" if merged else ""
            raise ConfigError(f"{key}: {rule}, got {_named(folder, key)!r}{way_out}")
        folder = base
    return ModelFolder(folder, tuple(adapters), key, trusted)


def holds_model(folder: Path) -> bool:
    return any((folder / file).is_file() for file in (MODEL_FILE, ADAPTER_FILE))


def model_of(path: str) -> str:
    """A run's folder stands for its final model; any other path for itself."""
    inside = Path(path).expanduser() / "model"
    return str(inside) if holds_model(inside) and not holds_model(inside.parent) else path


def base_of(folder: Path, key: str) -> Path | None:
    """The base on which an adapter's folder lies; None for any other folder, and where the base is not here.

    Raises:
        ConfigError: what should name the base is cut or damaged.
    """
    if not (folder / ADAPTER_FILE).is_file() or (folder / MODEL_FILE).is_file():
        return None
    named = _named(folder, key)
    if not isinstance(named, str) or not named:
        return None
    tried = [Path(named), folder / named, folder.parent / named]
    name = base_on_hub(folder, key)
    if name is not None and (known := at_known_commit(name)).is_pinned:
        tried.append(fetched_folder(known))
    return next((each for each in tried if each.is_dir()), None)


def base_on_hub(adapter: Path, key: str) -> HubName | None:
    """The name of an adapter's base on the hub, with the revision that stands beside it; None for one that is a folder.

    Raises:
        ConfigError: what should name the base is cut or damaged.
    """
    settings = read_json(adapter / ADAPTER_FILE, key)
    named, revision = settings.get("base_model_name_or_path"), settings.get("revision")
    if not isinstance(named, str) or any((folder / named).is_dir() for folder in (adapter, adapter.parent)):
        return None
    name = hub_name(named, Kind.model)
    is_of_base = name is not None and name.revision is None and isinstance(revision, str)
    return replace(name, revision=revision) if name is not None and is_of_base else name


def _named(adapter: Path, key: str) -> Any:
    return read_json(adapter / ADAPTER_FILE, key).get("base_model_name_or_path")


def require_fetched(file: Path, name: str) -> None:
    """Raises:
    ConfigError: a clone without Git LFS has left a pointer in the place of the file, which the message calls `name`.
    """
    with file.open("rb") as opened:
        if opened.read(len(POINTER)) == POINTER:
            what = "is a pointer of Git LFS, not the file that it stands for"
            raise ConfigError(f"{name} {what} (git lfs pull fetches it)")


def read_json(file: Path, key: str) -> dict[str, Any]:
    """Raises:
    ConfigError: there is no such file, or it is no JSON object; names `key` and the file.
    """
    if not file.is_file():
        raise ConfigError(f"{key}: no {file.name} in {str(file.parent)!r}")
    require_fetched(file, f"{key}: {str(file)!r}")
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{key}: {str(file)!r} is no JSON ({error})") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{key}: {str(file)!r} must be a JSON object, got {type(content).__name__}")
    return content
