"""Which files of a repository a run reads: of many that hold the same weights, those that transformers takes."""

import re
from collections.abc import Iterable

SAFETENSORS = re.compile(r"(adapter_)?model(\.safetensors)?(-\d+-of-\d+)?\.safetensors(\.index\.json)?")
PICKLED = re.compile(r"(adapter_model|pytorch_model)(-\d+-of-\d+)?\.bin(\.index\.json)?")
SMALL = (".json", ".jinja", ".txt", ".model", ".py", ".tiktoken", ".vocab", ".bpe", ".spm")  # config, tokenizer, code
TOP = re.compile(r"(additional_chat_templates/)?[^/]+")  # of all folders, and so that no name leads out of its own
NOT_READ = ("trainer_state.json",)


def tokenizer_files(files: Iterable[str]) -> list[str]:
    """Everything but weights: configs, the tokenizer, its templates, and code that comes with it."""
    return [file for file in _top(files) if file.endswith(SMALL) and not file.endswith(".index.json")]


def model_files(files: Iterable[str]) -> list[str]:
    """The same with the weights: safetensors where there are any, else pickled ones. Other forms of them (GGUF, ONNX,
    other precisions, a folder `original`) are left where they are."""
    top = _top(files)
    safe = [file for file in top if SAFETENSORS.fullmatch(file)]
    pickled = [file for file in top if PICKLED.fullmatch(file)]
    is_whole = any(file.endswith(".safetensors") for file in safe)
    return [*tokenizer_files(top), *(safe if is_whole else pickled)]


def _top(files: Iterable[str]) -> list[str]:
    return sorted(file for file in files if TOP.fullmatch(file) and file not in NOT_READ)
