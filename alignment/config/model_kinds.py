"""Whether a folder holds what its key asks for, a language model or a reward model: by its files alone, before anything
that can read a model is imported."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

from alignment.config.errors import ConfigError
from alignment.config.folders import ADAPTER_FILE, MODEL_FILE, base_of
from alignment.config.packed_base import packing_of

HEAD_NAMES = (
    *(".score", "classifier", "classification_head", "regression_head", "reward_head"),
    *("v_head.summary", "v_head", "value_head"),
)
"""What trainers call a scalar head beside `score`, transformers' own name: one linear map of the last hidden state."""
SCORES, WRITES = "ForSequenceClassification", ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
LONGEST_HEADER = 100_000_000  # bytes: what safetensors itself takes
OF_NO_MODEL = {  # task: what its run is, and what to do with its folder
    "evaluate": "an evaluation, which leaves no model: its report is {folder}/report.html",
    "rejection": "a rejection sampling, which trains no model: its rows {folder}/selected.jsonl are data.train.path "
    "of an SFT or DPO run",
    "pipeline": "a pipeline, whose models lie in its stages' folders, {folder}/STAGE",
}
TASK = re.compile(r"^ *- task: (\S+)", re.MULTILINE)


def require_language_model(key: str, folder: Path) -> None:
    """Raises:
    ConfigError: the files in the folder say that it holds a reward model.
    """
    if _has_head(folder, key):
        raise ConfigError(no_language_model(key, folder))


def require_reward_model(key: str, folder: Path) -> None:
    """Raises:
    ConfigError: the files in the folder say that it holds a language model without a reward head.
    """
    if _has_head(folder, key) is False:
        raise ConfigError(no_reward_model(key, folder))


def is_language_model(folder: Path) -> bool:
    """Whether the files in the folder say that its model has no reward head."""
    return _has_head(folder, "MODEL") is False


def is_reward_model(folder: Path) -> bool:
    """Whether they say that it has one."""
    return _has_head(folder, "MODEL") is True


def quantized_by(key: str, folder: Path) -> str | None:
    """What the files of a model's folder, or of a run's, name as the package that has quantized its weights, or those
    of an adapter's base; None where they name none."""
    settings = _read(_down_from(folder, key)[-1] / MODEL_FILE).get("quantization_config")
    return settings.get("quant_method") if isinstance(settings, dict) else None


def packed_beneath(key: str, folder: Path) -> bool:
    """Whether the folder is one of an adapter whose base was packed as it was read, or of a run that left one."""
    return any(packing_of(each, key) is not None for each in _down_from(folder, key))


def _down_from(folder: Path, key: str) -> list[Path]:
    """A model's folder, or that of a run's model, and those of its bases where it is an adapter's."""
    is_run = (folder / "model").is_dir() and not (folder / MODEL_FILE).is_file()
    found = [folder / "model" if is_run else folder]
    while (base := _under(found[-1], key)) is not None:
        found.append(base)
    return found


def no_language_model(key: str, folder: Path) -> str:
    ways = "alignment score MODEL FILE and alignment evaluate --reward MODEL --pairs FILE are for such"
    return f"{key} must be a language model, got a reward model{_called(folder, key)}, which writes no replies; {ways}"


def no_reward_model(key: str, folder: Path) -> str:
    way = f"alignment run reward model.path={folder} data.train.path=PAIRS trains one of it"
    return f"{key} must be a reward model, got a language model without a reward head{_called(folder, key)}; {way}"


def require_run_with_model(key: str, path: str, place: Path) -> None:
    """Raises:
    ConfigError: it is the folder of a run that leaves no model, or has not left one yet, or no folder of a run or of a
        model; says which.
    """
    if any((place / name).exists() for name in (MODEL_FILE, ADAPTER_FILE, "model")):
        return
    if not (place / "config.yaml").is_file():
        raise ConfigError(f"{key} must be the folder of a run or of a model, got {path!r}")
    raise ConfigError(f"{key} must be the folder of a model, got {path!r}, that of {run_without_model(place)}")


def run_without_model(place: Path) -> str:
    """Of which task the run in a folder is, and the way to what it has made, or is to make."""
    named = TASK.search((place / "config.yaml").read_text(errors="replace"))
    task = "" if named is None else named[1]
    if task in OF_NO_MODEL:
        return OF_NO_MODEL[task].format(folder=place)
    is_saved = any((place / "checkpoints").glob("step-*"))
    way = f", or take that of a checkpoint: alignment export {shlex.quote(str(place))}" if is_saved else ""
    return f"a run{f' of {task}' if task else ''} that has left no model yet: finish it first{way}"


def _has_head(folder: Path, key: str) -> bool | None:
    """Whether there is a head of one number; None where the files do not tell. One with a head beside its own of words
    may be either."""
    if (folder / ADAPTER_FILE).is_file() and not (folder / MODEL_FILE).is_file():
        settings, base = _read(folder / ADAPTER_FILE), _under(folder, key)
        if settings.get("task_type") == "SEQ_CLS":
            return True
        is_plain = settings.get("task_type") == "CAUSAL_LM" and not settings.get("modules_to_save")
        return _has_head(base, key) if is_plain and base is not None else None
    settings = _read(folder / MODEL_FILE)
    listed = settings.get("architectures")
    names = [name for name in listed if isinstance(name, str)] if isinstance(listed, list) else []
    if any(name.endswith(SCORES) for name in names):
        return True
    weights = _weights(folder)
    is_open = weights is None or "auto_map" in settings or not any(name.endswith(WRITES) for name in names)
    return None if is_open or any(_is_head(name) for name in weights or ()) else False


def _under(folder: Path, key: str) -> Path | None:
    """The model that an adapter in a folder of its own was trained on; None where it is not here, and of a model."""
    base = base_of(folder, key)
    return None if base == folder else base


def _is_head(weight: str) -> bool:
    stem = weight.removesuffix(".weight")
    return stem == "score" or stem.endswith(HEAD_NAMES)


def _called(folder: Path, key: str) -> str:
    """Its architecture and where it is."""
    while (base := _under(folder, key)) is not None:
        folder = base
    listed = _read(folder / MODEL_FILE).get("architectures")
    name = f" ({listed[0]})" if isinstance(listed, list) and listed else ""
    return f"{name} in {str(folder)!r}"


def _weights(folder: Path) -> set[str] | None:
    """The names of the weights; None where that takes a library, or they cannot be read, which others tell."""
    file, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if not file.is_file():
        named = _read(index).get("weight_map")
        return set(named) if isinstance(named, dict) else None
    try:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            header = json.loads(opened.read(length)) if length <= LONGEST_HEADER else None
    except (OSError, ValueError):
        return None
    return set(header) if isinstance(header, dict) else None


def _read(file: Path) -> dict[str, Any]:
    """Nothing of a file that is not there or is no JSON, which whoever loads the model tells."""
    try:
        content = json.loads(file.read_bytes()) if file.is_file() else {}
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
