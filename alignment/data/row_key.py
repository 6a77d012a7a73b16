"""Everything that shapes the rows of a source in tokens."""

from dataclasses import asdict
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from alignment.config.data import DataConfig, ExampleKind, Format
from alignment.config.errors import UserError
from alignment.config.sources import SourceConfig
from alignment.data.carried import Carried
from alignment.data.read import files_of
from alignment.runs.contents import digest

LARGE = 2**20  # bytes of all files: what is smaller is read in a second or two
LIBRARIES = ("preference-alignment", "transformers", "tokenizers", "jinja2", "datasets", "pyarrow", "numpy", "trl")


def key_of(
    source: SourceConfig,
    config: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    need: ExampleKind,
    carried: Carried,
) -> list[Any] | None:
    """None where the rows are few, and where what shapes them cannot be told: a tokenizer may have code of its own."""
    is_known = tokenizer.is_fast and type(tokenizer).__module__.startswith("transformers.")
    if config.format is Format.toy or not is_known:
        return None
    contents = contents_of(source)
    if contents is None:
        return None
    settings = asdict(config) | {"train": None, "eval": None}
    return [contents, source.limit, settings, need.value, repr(carried), _of(tokenizer), *map(version, LIBRARIES)]


def contents_of(source: SourceConfig) -> list[tuple[str, str, str]] | None:
    """What the files of a source hold now, by the names that it has for them; None where all of them are small, and
    where they cannot be read."""
    try:
        files = [(path, file) for path in source.paths() for file in files_of(path)]
        if sum(map(_size, {file for _, file in files})) < LARGE:
            return None
        return [(path, str(file), digest(file)) for path, file in files]
    except (UserError, OSError):  # told where it is read
        return None


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*")) if path.is_dir() else path.stat().st_size


def _of(tokenizer: PreTrainedTokenizerBase) -> list[Any]:
    """All of a tokenizer that a text's tokens depend on. A template that writes the day is another every day."""
    template = str(tokenizer.chat_template)
    return [
        type(tokenizer).__qualname__,
        tokenizer.backend_tokenizer.to_str(),
        template,
        {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        tokenizer.split_special_tokens,
        str(date.today()) if "strftime_now" in template else "",
    ]
