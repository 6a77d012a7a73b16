"""A million short pairs, as preference sets grow to: read by two processes, mapped, and every number of them known."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from alignment.config.data import DataConfig, ExampleKind, Format, TrainSource
from alignment.data import load
from alignment.data.held_out import hold_out, num_prompts
from alignment.data.load import load_split
from alignment.data.numbers import NUMBERS, numbers
from alignment.data.row_reader import RowReader
from alignment.data.tokenize import Limits, Truncation, encode

ROWS, LOOKED_AT = 1_000_000, 200
WORDS = ["hello", "there", "how", "are", "you", "fine", "the", "a", "of", "user", "assistant", "system"]


@pytest.fixture
def pairs_file(tmp_path: Path) -> Path:
    draw, file = random.Random(0), tmp_path / "pairs.jsonl"

    def text() -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(5, 20)))

    with file.open("w") as opened:
        for row in range(ROWS):
            pair = {"prompt": f"{row // 2} {text()}", "chosen": f"{text()} yes", "rejected": f"{text()} no"}
            opened.write(json.dumps(pair) + "\n")
    return file


@pytest.mark.slow
def test_a_million_pairs_are_read_once_and_mapped(
    chatml: PreTrainedTokenizerBase, pairs_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(load, "cores", lambda: 2)
    data = DataConfig(train=TrainSource(str(pairs_file)), format=Format.native)
    first = load_split("train", data, chatml, ExampleKind.pairs)
    monkeypatch.setattr(RowReader, "__call__", lambda *_: pytest.fail("read again"))
    again = load_split("train", data, chatml, ExampleKind.pairs)
    assert first is not None and again is not None and len(again.examples) == ROWS
    limits = Limits(data.max_length, data.max_prompt_length)
    some = np.random.default_rng(0).integers(0, ROWS, LOOKED_AT).tolist()
    for row in some:
        record, example = again.records[row], again.examples[row]
        alone = encode(record, chatml, limits, Truncation())
        assert record.source.line == row + 1 and example.prompt_ids.tolist() == alone.prompt_ids.tolist()
        for ids, other in zip(example.completion_ids, alone.completion_ids, strict=True):
            assert ids.tolist() == other.tolist()
    for name, (of, dtype) in NUMBERS.items():
        found = numbers(again.examples, name)
        assert found.dtype == dtype
        np.testing.assert_array_equal(found[some], [of(again.examples[row]) for row in some])
    train, out = hold_out(again, 0.1, seed=3)
    assert num_prompts(train) + num_prompts(out) == num_prompts(again)
    assert abs(len(out.examples) / ROWS - 0.1) < 0.02
