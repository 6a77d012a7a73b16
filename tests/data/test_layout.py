"""Rows of other people's: their columns under our names, their layout told from what they hold, known data sets."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from alignment.config.data import BadRow, DataConfig, ExampleKind, Template, require_read
from alignment.config.errors import ConfigError, UserError
from alignment.config.margin import MarginConfig, MarginScale
from alignment.config.sources import Format, MixedSource, TrainSource
from alignment.data.detect import format_of
from alignment.data.load import load_split
from alignment.data.loaded import Loaded
from alignment.data.records import DataError, GradeError

Load = Callable[..., Loaded]
HH = "\n\nHuman: hi\n\nAssistant: "


@pytest.fixture
def load(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> Load:
    def loaded(rows: list[dict[str, Any]], need: str, **given: Any) -> Loaded:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        config = DataConfig(train=TrainSource(str(path)), **given)
        found = load_split("train", config, tokenizer, ExampleKind(need))
        assert found is not None
        return found

    return loaded


def said(loaded: Loaded) -> list[tuple[list[str], list[str]]]:
    """The texts of each prompt and of its replies."""
    return [
        (
            [turn["content"] for turn in record.prompt],
            [turn["content"] for turns in record.completions for turn in turns],
        )
        for record in loaded.records
    ]


PAIR = {"question": "q", "better": "a", "worse": "b", "grade": 3, "answer": {"text": "c", "all": ["d", "e"]}}


def test_columns_have_our_names(load: Load) -> None:
    columns = {"prompt": "question", "chosen": "better", "rejected": "worse"}
    assert said(load([PAIR], "pairs", columns=columns)) == [(["q"], ["a", "b"])]
    swapped = {"prompt": "q", "chosen": "a", "rejected": "b"}
    assert said(load([swapped], "pairs", columns={"chosen": "rejected", "rejected": "chosen"})) == [(["q"], ["b", "a"])]
    nested = {"prompt": "question", "completion": "answer.all.1"}
    assert said(load([PAIR], "demonstrations", columns=nested)) == [(["q"], ["e"])]
    inner = {"prompt": "question", "completion": "answer.text"}
    assert said(load([PAIR], "demonstrations", columns=inner)) == [(["q"], ["c"])]
    numbers = {"1": "q", "2": "a"}
    assert said(load([numbers], "demonstrations", columns={"prompt": "1", "completion": "2"})) == [(["q"], ["a"])]


def test_columns_are_of_grades_too(load: Load) -> None:
    columns = {"prompt": "question", "chosen": "better", "rejected": "worse"}
    given = MarginConfig(scale=MarginScale.given)
    assert load([PAIR], "pairs", columns={**columns, "margin": "grade"}, margin=given).examples[0].margin == 3
    own = MarginConfig(scale=MarginScale.given, column="grade")
    assert load([PAIR], "pairs", columns=columns, margin=own).examples[0].margin == 3
    rated = {"prompt": "q", "completion": "a", "help": 2.0, "truth": 1.0}
    assert load([rated], "scored", columns={"score": "help"}).examples[0].labels == (2.0,)
    scores = {"h": 1.0, "truth": 0.5}
    assert load([rated], "scored", columns={"h": "help"}, scores=scores).examples[0].labels == (2.5,)
    with pytest.raises(ConfigError, match=r"data\.columns\.margin and data\.margin's column must not both say"):
        DataConfig(columns={"margin": "m"}, margin=own)


def test_a_column_of_ours_that_another_field_takes_is_no_longer_there(load: Load) -> None:
    row = {"prompt": "no", "instruction": "q", "output": "a", "completion": "b", "chosen": "c"}
    loaded = load([row], "demonstrations", columns={"prompt": "instruction", "completion": "output"})
    assert said(loaded) == [(["q"], ["a"])]


def test_a_column_that_is_not_there_is_named_with_the_nearest(load: Load, tmp_path: Path) -> None:
    rule = "data.columns.chosen: no column 'beter' in the one row read of "
    rule += f"{tmp_path}/rows.jsonl, which has question, better, worse, grade, "
    with pytest.raises(ConfigError, match=re.escape(rule) + r"answer \(did you mean 'better'\?\)$"):
        load([PAIR], "pairs", columns={"prompt": "question", "chosen": "beter", "rejected": "worse"})
    sparse = [{"q": "x", "c": "y"}, {"q": "z", "c": "y", "s": "be kind"}]
    assert [len(prompt) for prompt, _ in said(load(sparse, "demonstrations", columns={
        "prompt": "q", "completion": "c", "system": "s"}))] == [1, 2]  # fmt: skip


def test_a_field_that_nothing_reads_is_refused() -> None:
    data = DataConfig(train=TrainSource("a"), columns={"chosn": "b"})
    with pytest.raises(ConfigError, match=r"^data\.columns\.chosn: no task of rows .* \(did you mean 'chosen'\?\)$"):
        require_read(data, ExampleKind.pairs)
    require_read(data, ExampleKind.prompts)
    named = DataConfig(train=TrainSource("a"), columns={"h": "b"}, scores={"h": 1.0})
    require_read(named, ExampleKind.scored)
    with pytest.raises(ConfigError, match="must name a column of the file"):
        DataConfig(columns={"chosen": ""})


U, A = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
B = {"role": "assistant", "content": "b"}
LAYOUTS: list[tuple[Format | None, dict[str, Any]]] = [
    (Format.hh, {"chosen": HH + "a", "rejected": HH + "b"}),
    (Format.hh, {"prompt": "q", "chosen": HH + "a", "rejected": HH + "b"}),
    (Format.native, {"prompt": HH, "chosen": "a", "rejected": "b"}),
    (Format.native, {"chosen": [U, A], "rejected": [U, B]}),
    (Format.native, {"prompt": "q", "chosen": [U, A], "rejected": [U, B], "messages": [U, A]}),
    (Format.native, {"prompt": "q", "completions": ["a"], "labels": [True]}),
    (Format.native, {"prompt": "q", "answer": "7"}),
    (Format.messages, {"prompt": "q", "messages": [U, A]}),
    (Format.messages, {"messages": [U], "chosen": A, "rejected": B}),
    (Format.messages, {"messages": [U, A], "label": True, "text": "all of it"}),
    (Format.sharegpt, {"conversations": [{"from": "human", "value": "q"}], "chosen": {"from": "gpt", "value": "a"}}),
    (Format.alpaca, {"instruction": "q", "input": "", "output": "a", "text": "all of it"}),
    (Format.alpaca, {"instruction": "q", "chosen": "a", "rejected": "b"}),
    (Format.alpaca, {"instruction": "q", "input": ""}),
    (Format.text, {"text": "a cow"}),
    (Format.helpsteer, {"prompt": "q", "response": "a", "helpfulness": 4}),
    (Format.helpsteer, {"prompt": "q", "response_1": "a", "response_2": "b", "preference_strength": -2}),
    (Format.helpsteer, {"context": [U], "response1": "a", "response2": "b", "overall_preference": 1}),
    (Format.oasst, {"message_id": "1", "parent_id": None, "role": "prompter", "text": "q"}),
    (Format.oasst, {"prompt": {"text": "q", "role": "prompter", "replies": []}, "tree_state": "ready_for_export"}),
    (None, {"question": "q", "answer": "a"}),
    (None, {"instruction": "q", "response": "a"}),
    (None, {"prompt": None, "text": 3}),
    (None, {"chosen": "a", "rejected": "b"}),
]


@pytest.mark.parametrize(("format", "row"), LAYOUTS)
def test_a_layout_is_told_by_fields_and_what_they_hold(format: Format | None, row: dict[str, Any]) -> None:
    assert format_of(row) is format


def test_what_rows_are_read_as_is_said(load: Load, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load([{"chosen": HH + "a", "rejected": HH + "b"}], "pairs")
    line = "data.train.path: read as hh (chosen and rejected are dialogues of Human: and Assistant:)"
    assert line in capsys.readouterr().out
    assert said(load([{"messages": [U, A]}], "demonstrations")) == [(["q"], ["a"])]
    assert "data.train.path: read as messages" in capsys.readouterr().out
    load([{"prompt": "q", "chosen": "a", "rejected": "b", "note": 1}], "pairs")
    assert "data.train.path: read as native (prompt, chosen, rejected)\n" in capsys.readouterr().out
    load([{"messages": [U, A]}], "demonstrations", format=Format.messages)
    assert "read as" not in capsys.readouterr().out


def test_each_file_has_a_layout_of_its_own(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    for name, row in (("a", {"messages": [U, A]}), ("b", {"prompt": "q", "completion": "c"})):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row))
    source = TrainSource([str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")])
    loaded = load_split("train", DataConfig(train=source), tokenizer, ExampleKind.demonstrations)
    assert loaded is not None and said(loaded) == [(["q"], ["a"]), (["q"], ["c"])]


def test_rows_of_no_known_layout_name_their_fields_and_the_ways_out(load: Load, tmp_path: Path) -> None:
    what = f"{tmp_path}/rows.jsonl:1: the layout of a row of question, answer is not known: "
    what += "data.columns.prompt=question data.columns.completion=answer says which columns are meant (demonstrations "
    what += "take prompt + completion), or data.format=NAME which layout the rows have: native (prompt, completion, "
    with pytest.raises(UserError, match=f"^{re.escape(what)}"):
        load([{"question": "q", "answer": "a"}], "demonstrations")
    with pytest.raises(
        UserError, match=r"^data\.train\.path: the rows are of several layouts, native \(.*:1\), hh \(.*:2"
    ):
        load([{"prompt": "q", "completion": "a"}, {"chosen": HH + "a"}], "demonstrations")
    skipped = load([{"odd": 1}, {"prompt": "q", "completion": "a"}], "demonstrations", on_bad_row=BadRow.skip)
    assert len(skipped.skipped) == 1 and len(skipped.examples) == 1


def test_an_odd_row_has_the_way_out_and_the_first_of_another_layout_has_not(load: Load) -> None:
    good, lacks = {"prompt": "q", "chosen": "a", "rejected": "b"}, {"prompt": "q", "chosen": "a"}
    way = "data.on_bad_row=skip leaves such rows out"
    with pytest.raises(DataError, match=f"rows.jsonl:2: .*`rejected`.*; {way}$"):
        load([good, lacks], "pairs", format=Format.native)
    with pytest.raises(DataError, match=f"rows.jsonl:1: .* the same .*; {way}$"):
        load([{**good, "rejected": "a"}], "pairs")
    with pytest.raises(DataError, match=r"rows\.jsonl:1: .*`rejected`") as first:
        load([lacks], "pairs", format=Format.native)
    assert way not in str(first.value)


@pytest.mark.parametrize(
    ("format", "need", "row", "way"),
    [
        ("native", "demonstrations", {"messages": [U, A]}, "such rows are read by data.format=messages (messages of "),
        ("native", "pairs", {"chosen": HH + "a", "rejected": HH + "b"}, "such rows are read by data.format=hh ("),
        ("hh", "pairs", {"prompt": "q", "chosen": "a", "rejected": "b"}, "rows are read by data.format=native ("),
        ("alpaca", "demonstrations", {"text": "a"}, "; such rows are read by data.format=text (text alone)"),
        ("native", "demonstrations", {"prompt": "q", "response": "a"}, "; data.columns.completion=response may name "),
        ("auto", "pairs", {"prompt": "q", "better": "a", "worse": "b"}, "columns.chosen=better data.columns.rejected"),
    ],
)  # fmt: skip
def test_a_layout_that_does_not_fit_names_the_one_that_does(
    load: Load, format: str, need: str, row: dict[str, Any], way: str
) -> None:
    with pytest.raises(DataError, match=re.escape(way)):
        load([row], need, format=Format(format))


def test_texts_that_are_laid_out_already_are_of_layouts_without_turns(load: Load) -> None:
    with pytest.raises(ConfigError, match=r"^data\.template=none goes with rows of prompts .* layout messages in "):
        load([{"messages": [U, A]}], "demonstrations", template=Template.none)
    plain = load([{"prompt": "q", "completion": "a"}], "demonstrations", template=Template.none)
    assert said(plain) == [(["q"], ["a"])]


def test_ultrafeedback(load: Load) -> None:
    row = {"prompt": "q", "prompt_id": "1", "chosen": [U, A], "rejected": [U, B], "messages": [U, A]}
    row |= {"score_chosen": 8.5, "score_rejected": 7.0}
    columns = {"chosen_score": "score_chosen", "rejected_score": "score_rejected"}
    pairs = load([row], "pairs", columns=columns, margin=MarginConfig(scale=MarginScale.score))
    assert said(pairs) == [(["q"], ["a", "b"])] and pairs.examples[0].margin == 1.5
    assert said(load([row], "demonstrations", columns=columns)) == [(["q"], ["a"])]


def test_helpsteer_s_ratings(load: Load) -> None:
    row = {"prompt": "q", "response": "a", "helpfulness": 3, "correctness": 4, "verbosity": 1}
    assert load([row], "scored").examples[0].labels == (3.0,)
    assert load([row], "scored", scores={"correctness": 0.5, "verbosity": -1.0}).examples[0].labels == (1.0,)
    turns = "first\n<extra_id_1>Assistant\nreply\n<extra_id_1>User\nsecond"
    (prompt, replies), = said(load([{**row, "prompt": turns}], "demonstrations"))  # fmt: skip
    assert (prompt, replies) == (["first", "reply", "second"], ["a"])
    assert [turn["role"] for turn in load([{**row, "prompt": turns}], "prompts").records[0].prompt] == [
        "user",
        "assistant",
        "user",
    ]


def test_helpsteer_s_preferences(load: Load) -> None:
    """The sign says which of the two is better, the size by how much."""
    row = {"prompt": "q", "response_1": "one", "response_2": "two"}
    rows = [{**row, "preference_strength": strength} for strength in (-3, 2, 0)]
    given: dict[str, Any] = {"margin": MarginConfig(scale=MarginScale.given), "on_bad_row": BadRow.skip}
    pairs = load(rows, "pairs", **given)
    assert [replies for _, replies in said(pairs)] == [["one", "two"], ["two", "one"]]
    assert [example.margin for example in pairs.examples] == [3.0, 2.0]
    assert "preference_strength is 0: of the two responses none is better" in str(pairs.skipped[0])
    third = {"context": [U], "response1": "one", "response2": "two", "overall_preference": 1}
    assert said(load([third], "pairs")) == [(["q"], ["two", "one"])]
    assert said(load(rows, "prompts")) == [(["q"], [])] * 3
    for value, error in ((None, GradeError), ("much", GradeError), (4, DataError)):
        with pytest.raises(error, match="preference_strength"):
            load([{**row, "preference_strength": value}], "pairs", format=Format.helpsteer)


def message(name: str, parent: str | None, role: str, rank: int | None = None, **more: Any) -> dict[str, Any]:
    return {
        "message_id": name,
        "parent_id": parent,
        "message_tree_id": "r",
        "role": role,
        "text": name,
        "rank": rank,
    } | more


FLAT = [
    message("r", None, "prompter", lang="en"),
    message("r2", "r", "assistant", 1),
    message("r1", "r", "assistant", 0),
    message("r1q", "r1", "prompter"),
    message("r1qa", "r1q", "assistant"),
    message("r3", "r", "assistant", 2),
    message("gone", "r", "assistant", 3, deleted=True),
]


def tree() -> dict[str, Any]:
    nodes = {row["message_id"]: {**row, "replies": []} for row in FLAT}
    for row in FLAT[1:]:
        nodes[row["parent_id"]]["replies"].append(nodes[row["message_id"]])
    return {"message_tree_id": "r", "tree_state": "ready_for_export", "prompt": nodes["r"]}


@pytest.mark.parametrize("rows", [FLAT, [tree()]], ids=["messages", "trees"])
def test_openassistant_s_trees(load: Load, rows: list[dict[str, Any]]) -> None:
    assert said(load(rows, "demonstrations")) == [(["r"], ["r1"]), (["r", "r1", "r1q"], ["r1qa"])]
    assert said(load(rows, "pairs")) == [(["r"], ["r1", "r2"]), (["r"], ["r1", "r3"])]
    assert said(load(rows, "prompts")) == [(["r"], []), (["r", "r1", "r1q"], [])]
    assert load(rows, "pairs").skipped == []
    labeled = load(rows, "labeled")
    assert said(labeled) == [(["r"], ["r1"]), (["r"], ["r2"]), (["r"], ["r3"])]
    assert [example.labels for example in labeled.examples] == [(True,), (False,), (False,)]


def test_a_broken_tree_is_named(load: Load) -> None:
    for broken in (
        message("x", "gone", "assistant"),
        message("x", "r", "narrator"),
        message("x", "r", "assistant", text=1),
    ):
        with pytest.raises(DataError, match=r"rows\.jsonl:[12]( \(1\))?: "):
            load([FLAT[0], broken], "demonstrations")
    second = [message("a", None, "prompter", message_tree_id="s"), message("b", "a", "assistant", message_tree_id="s")]
    loaded = load([FLAT[0], message("x", "gone", "assistant"), *second], "demonstrations", on_bad_row=BadRow.skip)
    assert said(loaded) == [(["a"], ["b"])] and len(loaded.skipped) == 1


def test_dialogues_without_a_system_turn_are_given_one(load: Load) -> None:
    own = {"messages": [{"role": "system", "content": "mine"}, U, A]}
    loaded = load([{"messages": [U, A]}, own], "demonstrations", system="be kind")
    assert said(loaded) == [(["be kind", "q"], ["a"]), (["mine", "q"], ["a"])]
    assert loaded.summary("train") == "train: 2 rows, 1 rows begin with data.system"
    pairs = load([{"prompt": "q", "chosen": "a", "rejected": "b"}], "pairs", system="be kind")
    assert said(pairs) == [(["be kind", "q"], ["a", "b"])]
    assert [turn["role"] for turn in load([{"prompt": "q"}], "prompts", system="x").records[0].prompt] == [
        "system",
        "user",
    ]
    with pytest.raises(ConfigError, match=r"data\.system goes with dialogues, and these rows are texts, got 'x'"):
        load([{"text": "a"}], "demonstrations", system="x")
    for wrong in ({"template": Template.none}, {"format": Format.text}):
        with pytest.raises(ConfigError, match=r"data\.system goes with dialogues that a template lays out"):
            DataConfig(system="x", **wrong)
    with pytest.raises(ConfigError, match="not blank"):
        DataConfig(system=" ")


def test_what_lacks_is_asked_for_in_the_task_s_own_words(load: Load) -> None:
    """Of a row with a prompt and one reply a task of pairs wants the two replies, and no completion."""
    row = {"query": "q", "response": "a", "bad": "b", "id": 1}
    pairs = "of query, response, bad, id is not known: data.columns.prompt=query data.columns.chosen=COLUMN "
    pairs += "data.columns.rejected=bad says which columns are meant (pairs take prompt + chosen + rejected)"
    with pytest.raises(UserError, match=re.escape(pairs)):
        load([row], "pairs")
    labels = "data.columns.prompt=query "
    with pytest.raises(
        UserError, match=re.escape(labels + "data.columns.completion=response data.columns.label=COLUM")
    ):
        load([row], "labeled")
    with pytest.raises(
        UserError, match=re.escape("data.columns.prompt=COLUMN says which columns are meant (prompts take prompt)")
    ):
        load([{"foo": "q"}], "prompts")
    half = {"prompt": "q", "chosen": "a", "response": "b", "rating": 3}
    with pytest.raises(DataError, match=r"; data\.columns\.rejected=COLUMN says which column is meant, of response$"):
        load([half], "pairs")
    known = (
        r"; of pairs are read prompt, chosen, rejected, rating, margin, chosen_score, rejected_score, system, tools, "
    )
    with pytest.raises(ConfigError, match=known):
        require_read(DataConfig(columns={"zzz": "b"}), ExampleKind.pairs)


def test_a_column_may_begin_in_any_row_that_is_read(load: Load) -> None:
    row = {"question": "q", "answer": "a"}
    rows = [row] * 70 + [{**row, "w": 2.0}]
    columns = {"prompt": "question", "completion": "answer", "weight": "w"}
    assert [example.weight for example in load(rows, "demonstrations", columns=columns).examples][-2:] == [1.0, 2.0]
    rule = r"^data\.columns\.weight: no column 'w' in any of the 70 rows read of .*, which have question, answer$"
    with pytest.raises(ConfigError, match=rule):
        load(rows[:70], "demonstrations", columns=columns)
    with pytest.raises(ConfigError, match=r"^data\.columns\.prompt: no column 'qeustion' in any of the 71 rows"):
        load(rows, "demonstrations", columns={**columns, "prompt": "qeustion"})  # not: the layout is not known


def test_of_rows_beyond_the_limit_no_column_is_known(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    rows = [{"prompt": "q", "completion": "a", **({"w": 2.0} if number else {})} for number in range(2)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for limit in (1, 2):
        source = TrainSource(str(tmp_path / "rows.jsonl"), limit=limit)
        config = DataConfig(train=source, columns={"weight": "w"}, format=Format.native)
        if limit == 2:
            assert load_split("train", config, tokenizer, ExampleKind.demonstrations) is not None
            continue
        with pytest.raises(ConfigError, match=r"data\.columns\.weight: no column 'w' in the one row read of "):
            load_split("train", config, tokenizer, ExampleKind.demonstrations)


def test_columns_of_a_source_are_named_by_its_own_key(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "q", "completion": "a"}))
    one = MixedSource(str(tmp_path / "rows.jsonl"), columns={"weight": "w"})
    config = DataConfig(train=TrainSource(mix={"a": one}))
    with pytest.raises(ConfigError, match=r"^data\.train\.mix\.a\.columns\.weight: no column 'w'"):
        load_split("train", config, tokenizer, ExampleKind.demonstrations)
    (tmp_path / "rows.jsonl").write_text(json.dumps({"question": "q", "answer": "a"}))
    config = DataConfig(train=TrainSource(mix={"a": MixedSource(str(tmp_path / "rows.jsonl"))}))
    with pytest.raises(UserError, match=r"data\.train\.mix\.a\.columns\.prompt=question .*mix\.a\.format=NAME which"):
        load_split("train", config, tokenizer, ExampleKind.demonstrations)


def test_max_length_alone_says_what_to_set() -> None:
    rule = r"must be below data\.max_length=30, .*, got 64: set data\.max_prompt_length=15 beside it, or "
    with pytest.raises(ConfigError, match=rule + r"data\.max_length=128$"):
        DataConfig(max_length=30, max_prompt_length=64)
    with pytest.raises(ConfigError, match=r"^data\.max_length must be >= 2, .*, got 1$"):
        DataConfig(max_length=1, max_prompt_length=1)
