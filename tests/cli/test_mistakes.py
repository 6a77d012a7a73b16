"""A hundred typical mistakes and more: one line each, what was typed and the way out, and nothing is left behind."""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from tests.cli.mistaken_files import write_data, write_models
from tests.cli.mistakes import TYPED, VERBS, Mistakes
from tests.cli.mistakes_inside import MODELS, PATHS, ROWS

ALL: Mistakes = {
    f"{part}: {name}": mistake
    for part, mistakes in {"typed": TYPED, "verb": VERBS, "path": PATHS, "rows": ROWS, "model": MODELS}.items()
    for name, mistake in mistakes.items()
}


@pytest.fixture(scope="module")
def files(
    tmp_path_factory: pytest.TempPathFactory,
    tokenizer: PreTrainedTokenizerBase,
    family: Callable[[str], PreTrainedTokenizerBase],
    tiny_init: dict[str, Any],
) -> Path:
    folder = tmp_path_factory.mktemp("mistaken")
    write_data(folder)
    write_models(folder, tokenizer, family("qwen"), tiny_init)
    return folder


@pytest.mark.parametrize("mistake", ALL)
def test_a_mistake_is_one_line_with_the_way_out(
    mistake: str, alignment: Callable[..., Any], files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words, parts = ALL[mistake]
    monkeypatch.chdir(files)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    before = set(files.rglob("*"))
    ended = alignment(*shlex.split(words))
    assert ended.code == 2, ended
    (line,) = ended.err
    assert line.startswith("alignment: ") and "Traceback" not in ended.out
    assert [part for part in parts if part not in line] == [], line
    assert {path for path in files.rglob("*") if "__pycache__" not in path.parts} <= before


def test_there_are_a_hundred() -> None:
    assert len({words for words, _ in ALL.values()}) >= 100
