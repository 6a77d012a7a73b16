import json
from dataclasses import replace

import pytest

from alignment.config.data import BadRow, DataConfig, EvalSource, ExampleKind, Format, Template, TrainSource
from alignment.config.errors import ConfigError
from alignment.config.margin import MarginConfig, MarginScale
from alignment.data.load import load_split
from alignment.data.records import GradeError

GOOD = '{"prompt": "a", "chosen": "b c", "rejected": "d", "rating": "better"}\n'


def config(path, margin: MarginScale = MarginScale.none) -> DataConfig:
    return DataConfig(train=TrainSource(str(path)), on_bad_row=BadRow.skip, margin=MarginConfig(scale=margin))


def test_bad_rows_are_skipped_counted_and_said(tokenizer, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(GOOD + '{"prompt": "a", "chosen": "b"}\n' + GOOD)
    loaded = load_split("train", config(path), tokenizer, ExampleKind.pairs)
    assert (len(loaded.examples), len(loaded.skipped)) == (2, 1)
    assert f"1 bad rows skipped (first: {path}:2: " in loaded.summary("train")


def test_a_missing_margin_is_never_skipped(tokenizer, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(GOOD + '{"prompt": "a", "chosen": "b c", "rejected": "d"}\n')
    with pytest.raises(GradeError, match=r"rows.jsonl:2: "):
        load_split("train", config(path, MarginScale.large), tokenizer, ExampleKind.pairs)


def test_a_file_without_a_good_row_is_refused(tokenizer, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a"}\n')
    with pytest.raises(ConfigError, match=r"^data.train.path must have at least one good row"):
        load_split("train", config(path), tokenizer, ExampleKind.pairs)


@pytest.mark.parametrize("need", [ExampleKind.prompts, ExampleKind.pairs])
def test_plain_texts_are_demonstrations_alone(tokenizer, tmp_path, need):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "once upon a time"}\n')
    texts = DataConfig(format=Format.text, train=TrainSource(str(path)))
    assert len(load_split("train", texts, tokenizer, ExampleKind.demonstrations).examples) == 1
    with pytest.raises(ConfigError, match=rf"^data.format=text has texts alone, .* needs {need.value}$"):
        load_split("train", texts, tokenizer, need)


def test_more_held_out_prompts_than_the_toy_task_has_is_a_config_error(tokenizer):
    toy = DataConfig(format=Format.toy, eval=EvalSource(limit=1_000_000), max_length=99, max_prompt_length=50)
    with pytest.raises(ConfigError, match=r"^data.eval.limit: .* got 1000000$"):
        load_split("eval", toy, tokenizer, ExampleKind.prompts)


def test_a_rating_that_is_given_twice_is_a_bad_row_and_one_of_two_columns_is_the_named_one(tokenizer, tmp_path):
    """A key twice: skipped, counted and said. A column of another name beside the usual one: the named one is read,
    and where it is missing the usual one does not step in."""
    path = tmp_path / "rows.jsonl"
    twice = GOOD.replace('"rating"', '"rating": "unsure", "rating"')
    path.write_text(GOOD + twice)
    loaded = load_split("train", config(path, MarginScale.large), tokenizer, ExampleKind.pairs)
    assert [example.margin for example in loaded.examples] == [2.0]
    assert f"1 bad rows skipped (first: {path}:2: field `rating` is given twice)" in loaded.summary("train")
    named = config(path, MarginScale.large)
    named.margin.column = "grade"
    path.write_text(GOOD.replace('"rating"', '"grade": "slightly better", "rating"'))
    assert [e.margin for e in load_split("train", named, tokenizer, ExampleKind.pairs).examples] == [1.0]
    path.write_text(GOOD)
    with pytest.raises(GradeError, match=r"rows.jsonl:1: a margin was asked for, but field `grade` is missing"):
        load_split("train", named, tokenizer, ExampleKind.pairs)


@pytest.mark.parametrize(
    ("text", "mark"),
    [
        ("<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n", "<|im_start|>"),
        ("<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nq<|eot_id|>", "<|begin_of_text|>"),
        ("<bos><start_of_turn>user\nq<end_of_turn>\n", "<bos>"),
        ("<start_of_turn>user\nq", "<start_of_turn>"),
        ("<s>[INST] q [/INST]", "<s>[INST]"),
        ("<|user|>\nq", "<|user|>"),
        ("\n\nHuman: q\n\nAssistant:", "Human:"),
        ("Human: q\n\nAssistant:", "Human:"),
        ("what does <|im_start|> mean?", None),
        ("in [INST] q [/INST]", None),
        ("Human: a word that means us", None),
        ("<s>struck out</s> q", None),
    ],
)
def test_prompts_in_another_family_s_layout_are_counted_and_said(family, tmp_path, text, mark):
    """In plain text, which no token tells from a text's own; a tokenizer's own marks are refused."""
    tokenizer = family("zephyr")
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": "hi", "completion": "a"}, *[{"prompt": text, "completion": "a"}] * 2]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = DataConfig(train=TrainSource(path=str(path)))
    if "<s>" in text:  # which zephyr's tokenizer has
        tokenizer = family("qwen")
    said = load_split("train", settings, tokenizer, ExampleKind.demonstrations).summary("train")
    told = f"train: 3 rows, 2 prompts begin as another template has them (first: {path}:2, {mark!r}) and are laid out"
    assert said.startswith(told) if mark else said == "train: 3 rows"
    plain = replace(settings, template=Template.none)
    assert load_split("train", plain, tokenizer, ExampleKind.demonstrations).summary("train") == "train: 3 rows"


@pytest.mark.parametrize(("name", "said"), [("llama3", 1), ("qwen", 0)])
def test_calls_that_the_template_leaves_out_of_a_prompt_are_counted_and_said(family, tmp_path, name, said):
    call = {"type": "function", "function": {"name": "weather", "arguments": {}}}
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    turns.append({"role": "user", "content": "so?"})
    rows = [{"prompt": turns, "completion": "a"}, {"prompt": "q", "completion": "a"}]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = load_split("train", DataConfig(train=TrainSource(path=str(path))), family(name), ExampleKind.demonstrations)
    told = ", 1 dialogues without their `tool_calls`, which the chat template leaves out" if said else ""
    assert rows.summary("train") == f"train: 2 rows{told}"


def test_weights_of_prompts_are_said_not_to_be_read(tokenizer, tmp_path):
    path = tmp_path / "rows.jsonl"
    weights = [{}, {"weight": 1.0}, {"weight": 0.5}, {"weight": 2}]
    path.write_text("".join(json.dumps({"prompt": "q", "completion": "a", **weight}) + "\n" for weight in weights))
    settings = DataConfig(train=TrainSource(path=str(path)))
    rows = load_split("train", settings, tokenizer, ExampleKind.prompts)
    said = "train: 4 rows, 2 prompts with a `weight`, which is not read: prompts count alike"
    assert rows.summary("train") == said
    assert load_split("train", settings, tokenizer, ExampleKind.demonstrations).summary("train") == "train: 4 rows"
