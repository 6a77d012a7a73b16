"""Rows held out by their prompts, sources read one behind another, and prompts that both splits have."""

import json
from pathlib import Path
from typing import Any

import pytest

from alignment.config.data import BadRow, DataConfig, EvalSource, ExampleKind, Format, TrainSource
from alignment.config.errors import ConfigError
from alignment.config.sources import MixedSource, NamedSource
from alignment.data.held_out import hold_out, num_prompts, num_shared_prompts
from alignment.data.load import load_split
from alignment.data.loaded import Loaded


def pair(prompt: str, number: int = 0) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": f"yes {number}", "rejected": "no"}


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def load(tokenizer, tmp_path):
    def call(rows: list[dict[str, Any]], need: ExampleKind = ExampleKind.pairs) -> Loaded:
        return load_split("train", DataConfig(train=TrainSource(write(tmp_path / "r.jsonl", rows))), tokenizer, need)

    return call


def prompts(loaded: Loaded) -> set[str]:
    return {record.prompt[-1]["content"] for record in loaded.records}


def test_all_rows_of_a_prompt_are_on_one_side_and_rows_elsewhere_move_none(load) -> None:
    rows = [pair(f"question {n}", copy) for n in range(400) for copy in range(n % 3 + 1)]
    train, held_out = hold_out(load(rows), 0.2, seed=3)
    assert not prompts(train) & prompts(held_out) and len(train.records) + len(held_out.records) == len(rows)
    assert 50 < len(prompts(held_out)) < 110 and num_prompts(held_out) == len(prompts(held_out))
    assert all(
        record.source == example.source for record, example in zip(held_out.records, held_out.examples, strict=True)
    )
    _, again = hold_out(load([pair("new"), *rows[::-1], pair("newer")]), 0.2, seed=3)
    assert prompts(again) - {"new", "newer"} == prompts(held_out)
    _, other = hold_out(load(rows), 0.2, seed=4)
    assert prompts(other) != prompts(held_out)
    _, more = hold_out(load(rows), 0.3, seed=3)
    assert prompts(more) > prompts(held_out)


@pytest.mark.parametrize("fraction", [1e-9, 1 - 1e-9])
def test_one_prompt_at_least_is_on_each_side(load, fraction) -> None:
    train, held_out = hold_out(load([pair(f"q{n}", copy) for n in range(3) for copy in range(2)]), fraction, seed=0)
    assert {len(train.records), len(held_out.records)} == {2, 4}


def test_one_prompt_alone_cannot_be_split(load) -> None:
    with pytest.raises(ConfigError, match=r"^data.eval.fraction must be null for data of one prompt, of all 2 rows$"):
        hold_out(load([pair("q", 1), pair("q", 2)]), 0.5, seed=0)


def test_both_replies_of_a_pair_stay_together(load) -> None:
    train, held_out = hold_out(load([pair(f"q{n}") for n in range(50)], ExampleKind.labeled), 0.3, seed=0)
    assert not prompts(train) & prompts(held_out)
    assert [example.labels for example in held_out.examples] == [(True,), (False,)] * len(prompts(held_out))


def test_texts_without_a_prompt_count_by_themselves(tokenizer, tmp_path) -> None:
    path = write(tmp_path / "t.jsonl", [{"text": f"text {n % 40}"} for n in range(80)])
    config = DataConfig(format=Format.text, train=TrainSource(path))
    train, held_out = hold_out(load_split("train", config, tokenizer, ExampleKind.demonstrations), 0.3, seed=0)
    assert 0 < num_prompts(held_out) < 40 and num_prompts(train) + num_prompts(held_out) == 40
    assert num_shared_prompts(train, held_out) == (0, num_prompts(held_out))


def mixed(tmp_path: Path, **sources: list[dict[str, Any]]) -> dict[str, MixedSource]:
    return {name: MixedSource(path=write(tmp_path / f"{name}.jsonl", rows)) for name, rows in sources.items()}


def test_sources_stand_one_behind_another_by_name_each_in_its_format(tokenizer, tmp_path) -> None:
    mix = mixed(tmp_path, b=[pair("b0"), pair("b1"), {"prompt": "bad"}], a=[pair("a0"), pair("a1"), pair("a2")])
    mix["c"] = MixedSource(
        path=write(tmp_path / "c.jsonl", [{"instruction": "c0", "chosen": "x", "rejected": "y"}]), format=Format.alpaca
    )
    mix["a"].limit = 2
    config = DataConfig(train=TrainSource(mix=mix), on_bad_row=BadRow.skip)
    loaded = load_split("train", config, tokenizer, ExampleKind.pairs)
    assert [record.prompt[-1]["content"] for record in loaded.records] == ["a0", "a1", "b0", "b1", "c0"]
    assert loaded.sources == {"a": 2, "b": 2, "c": 1}
    assert loaded.summary("train").startswith("train: 5 rows (a 2, b 2, c 1), 1 bad rows skipped (first: ")
    held_out = DataConfig(eval=EvalSource(sets={"x": mix["c"], "s": NamedSource(mix["a"].path)}))
    assert load_split("eval", held_out, tokenizer, ExampleKind.pairs).sources == {"s": 3, "x": 1}


def test_a_source_without_a_good_row_is_named(tokenizer, tmp_path) -> None:
    config = DataConfig(train=TrainSource(mix=mixed(tmp_path, a=[pair("q")], b=[{"prompt": "q"}])))
    config.on_bad_row = BadRow.skip
    with pytest.raises(ConfigError, match=r"^data.train.mix.b.path must have at least one good row, got "):
        load_split("train", config, tokenizer, ExampleKind.pairs)


def test_rows_held_out_of_a_mix_keep_their_sources_and_each_source_has_rows_left(tokenizer, tmp_path) -> None:
    mix = mixed(tmp_path, a=[pair(f"a{n}") for n in range(60)], b=[pair(f"b{n}") for n in range(30)])
    loaded = load_split("train", DataConfig(train=TrainSource(mix=mix)), tokenizer, ExampleKind.pairs)
    train, held_out = hold_out(loaded, 0.3, seed=0)
    for split in (train, held_out):
        first = [record.prompt[-1]["content"][0] for record in split.records]
        assert first == ["a"] * split.sources["a"] + ["b"] * split.sources["b"]
    one = mixed(tmp_path, a=[pair(f"a{n}") for n in range(60)], b=[pair("b")])
    loaded = load_split("train", DataConfig(train=TrainSource(mix=one)), tokenizer, ExampleKind.pairs)
    with pytest.raises(ConfigError, match=r"^data.eval.fraction must leave rows of each source, .*mix.b it takes all"):
        hold_out(loaded, 0.99, seed=0)


def test_prompts_that_both_splits_have_are_counted_once(load) -> None:
    train = load([pair("a", 1), pair("a", 2), pair("b"), pair("c")])
    assert num_shared_prompts(train, load([pair("a", 3), pair("b"), pair("b", 4), pair("d")])) == (2, 3)
