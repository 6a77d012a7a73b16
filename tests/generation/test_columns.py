"""Functions that score replies ask for the other columns of the prompts' rows by name."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from alignment.config.data import DataConfig, ExampleKind
from alignment.config.errors import ConfigError
from alignment.config.sources import TrainSource
from alignment.data.carried import Asked, Carried
from alignment.data.load import load_split
from alignment.generation.function import FunctionScorer, asked_by, asked_columns
from alignment.generation.samples import Samples


def plain(prompts: Any, replies: Any) -> list[float]:
    return [0.0] * len(replies)


def correct(prompts: Any, replies: Any, answer: Any, unit: Any = "m") -> list[float]:
    return [
        float(f"{right}{unit if isinstance(unit, str) else unit[0]}" == reply)
        for right, reply in zip(answer, replies, strict=True)
    ]


def everything(prompts: Any, completions: Any, *, answer: Any, **columns: Any) -> list[float]:
    assert len(columns) == 1 and columns["source"] == ["a", "a", None, None]
    answer[0]["n"] += 1  # what it changes is its own, for each reply
    return [float(each["n"]) for each in answer]


def test_what_a_function_asks_for() -> None:
    assert asked_columns(plain) == Asked(taken=("prompts", "replies"))
    assert asked_columns(correct) == Asked(("answer",), ("unit",), taken=("prompts", "replies"))
    assert asked_columns(everything) == Asked(("answer",), others=True, taken=("prompts", "completions"))
    assert asked_columns(max) == Asked()
    assert asked_by({"gold": "alignment.toy.gold", "reward.function": None}) == Carried({})


def with_columns(samples: Samples, *columns: dict[str, Any]) -> Samples:
    records = [replace(record, columns=each) for record, each in zip(samples.records, columns, strict=True)]
    return Samples(records, samples.examples, samples.replies)


def test_columns_stand_beside_the_replies(samples_of: Callable[..., Samples]) -> None:
    samples = with_columns(samples_of([["7m", "8m"], ["8m", "9m"]]), {"answer": "7"}, {"answer": "9"})
    assert FunctionScorer(correct).score(samples).tolist() == [[1, 0], [0, 1]]
    for _ in range(2):
        rows = [{"answer": {"n": 1}, "source": "a"}, {"answer": {"n": 2}, "source": None}]
        samples = with_columns(samples_of([["a", "b"], ["c", "d"]]), *rows)
        assert FunctionScorer(everything).score(samples).tolist() == [[2, 1], [2, 2]]
        assert rows[0]["answer"] == {"n": 1}


def test_rows_keep_only_what_is_asked_for(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    rows = [{"question": "a", "answer": "7", "note": "x"}, {"question": "b", "note": "y"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = DataConfig(train=TrainSource(str(tmp_path / "rows.jsonl")), columns={"prompt": "question"})

    def kept(**asked: Any) -> list[dict[str, Any]]:
        carried = Carried({"reward.function=f": Asked(**asked)})
        loaded = load_split("train", data, tokenizer, ExampleKind.prompts, carried=carried)
        assert loaded is not None
        return [record.columns for record in loaded.records]

    assert kept() == [{}, {}]
    assert kept(required=("answer",)) == [{"answer": "7"}, {"answer": None}]
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write(json.dumps({"question": "c", "answer": None}) + "\n")
    assert kept(required=("answer",))[1:] == [{"answer": None}] * 2, "one that lacks it, and one that has null"
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert kept(optional=("unit",)) == [{}, {}]
    assert kept(others=True, taken=("prompt",))[1] == {"question": "b", "answer": None, "note": "y"}
    rule = (
        r"reward\.function=f asks for the column 'anser', which no row of data\.train has; they have question, answer, "
    )
    with pytest.raises(ConfigError, match=rf"^{rule}note, prompt \(did you mean 'answer'\?\)"):
        kept(required=("anser",))
