"""`alignment data inspect`: what is in a file, without anything being written."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Command = Callable[..., Any]

KIND = "pairs, for reward, dpo and other methods of pairs; sft learns from chosen alone"


def write(path: Path, rows: list[Any]) -> None:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))


def test_a_file_of_pairs(alignment: Command, families: Path, tmp_path: Path) -> None:
    pair = {"prompt": "hello", "chosen": "fine, fine.", "rejected": "no", "rating": "better"}
    rows = [pair, pair, {**pair, "chosen": "fine"}, {**pair, "prompt": "how are you?", "rating": "unsure"}]
    bad = [{**pair, "chosen": "same", "rejected": "same"}, {**pair, "chosen": " "}, {**pair, "chosen": ""}]
    write(tmp_path / "pairs.jsonl", [*rows, *bad, "{"])
    write(tmp_path / "held.jsonl", [{**pair, "prompt": "how are you?"}, {**pair, "prompt": "the user"}])
    ended = alignment("data", "inspect", "pairs.jsonl", "--eval", "held.jsonl")
    assert (ended.code, ended.err) == (0, [])
    lines = ended.out.splitlines()
    for line in (
        f"train: 8 rows, 1 of them no rows that can be read: {KIND}",
        '  rating    text  "better"',
        "rating: better (6x), unsure (1x)",
        "duplicate rows: 1 (14.3%)",
        "duplicate prompts: 2 of 4 (50.0%)",
        "characters of prompts: median 5, 95% up to 12, most 12",
        "characters of rejected: median 2, 95% up to 2, most 2",
        "rows that cannot be learned from: 4 (data.on_bad_row=skip leaves them out)",
        "  2, the first pairs.jsonl:6: chosen: the reply is empty",
        "  1, the first pairs.jsonl:5: chosen and rejected are the same reply",
        "prompts of eval that train has too: 1 of 2 (50.0%), the first held.jsonl:1",
        "chosen -> \u27e6fine, fine.</s>\u27e7",
    ):
        assert line in lines, line
    assert "tokens of" not in ended.out and sum("marked: what carries loss" in line for line in lines) == 3
    assert {path.name for path in tmp_path.iterdir()} == {"pairs.jsonl", "held.jsonl"}


def test_tokens_are_a_model_s_against_its_limits(alignment: Command, families: Path, tmp_path: Path) -> None:
    rows = [{"prompt": "hello " * n, "completion": "fine " * n} for n in (1, 2, 30)]
    write(tmp_path / "rows.jsonl", rows)
    model = f"model.path={families / 'qwen'}"
    ended = alignment("data", "inspect", "rows.jsonl", model, "data.max_length=64", "data.max_prompt_length=40")
    assert (ended.code, ended.err) == (0, [])
    assert "train: 3 rows: demonstrations, for sft" in ended.out
    assert "1 (33.3%) lose their beginning to data.max_prompt_length=40" in ended.out
    assert "1 (33.3%) lose their end to data.max_length=64" in ended.out
    assert "-> \u27e6fine <|im_end|>\u27e7" in ended.out


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"prompt": "hello"}, "prompts, for ppo, grpo, rejection and the replies of evaluate"),
        ({"prompt": "hello", "completion": "a", "label": True}, "replies that are desirable or not, for kto"),
        ({"prompt": "hello", "completion": "a", "score": 2}, "replies with a score, for reward_regression"),
        ({"prompt": "hello", "completions": ["a"], "labels": [True]}, "replies in steps, for reward_process"),
        ({"instruction": "hello", "output": "a"}, "demonstrations, for sft"),
        ({"text": "hello"}, "demonstrations, for sft"),
    ],
)
def test_each_kind_of_rows_is_known(row: dict[str, Any], kind: str, alignment: Command, tmp_path: Path) -> None:
    write(tmp_path / "rows.jsonl", [row, row])
    ended = alignment("data", "inspect", "rows.jsonl")
    assert (ended.code, ended.err) == (0, [])
    assert f"train: 2 rows: {kind}" in ended.out.splitlines()
    assert ("marked: what carries loss" in ended.out) is not kind.startswith("prompts")


PAIRS = [{"question": f"hello {n}", "better": "fine", "worse": "no", "note": n} for n in range(8)]
OURS = ("data.columns.prompt=question", "data.columns.chosen=better", "data.columns.rejected=worse")


def test_columns_stand_once_and_those_that_are_not_read_are_named(alignment: Command, tmp_path: Path) -> None:
    write(tmp_path / "pairs.jsonl", PAIRS)
    lines = alignment("data", "inspect", "pairs.jsonl", *OURS).out.splitlines()
    begins = lines.index(f"train: 8 rows: {KIND}") + 1
    assert [line.split()[0] for line in lines[begins : begins + 4]] == ["question", "better", "worse", "note"]
    assert lines[begins + 4] == "read under our names: question as prompt, better as chosen, worse as rejected"
    assert lines[begins + 5].startswith("columns that training does not read: note (data.columns.FIELD=COLUMN")


def test_a_rating_under_our_name_is_made_a_margin_by_the_scale(alignment: Command, tmp_path: Path) -> None:
    write(tmp_path / "pairs.jsonl", PAIRS)
    lines = alignment("data", "inspect", "pairs.jsonl", *OURS, "data.columns.rating=note").out.splitlines()
    scales = "reward models and DPO learn with ratings as margins by data.margin.scale=small ('better' is 0.667, "
    scales += "'slightly better' 0.333) or large (2 and 1), with numbers in margin by data.margin.scale=given, and "
    scales += "with scores in chosen_score and rejected_score by data.margin.scale=score"
    assert f"columns that training does not read: note ({scales})" in lines


def test_columns_of_no_known_layout_are_shown_and_what_each_kind_takes(alignment: Command, tmp_path: Path) -> None:
    write(tmp_path / "odd.jsonl", [{"foo": "a", "bar": 1}])
    ended = alignment("data", "inspect", "odd.jsonl")
    assert ended.code == 2 and '  foo  text  "a"' in ended.out.splitlines()
    assert "(prompts take prompt, demonstrations take prompt + completion, pairs take " in ended.err[-1]
    assert "data.columns.FIELD=COLUMN says which columns are meant" in ended.err[-1]


def test_what_is_mostly_cut_is_a_warning_with_limits_that_keep_it(
    alignment: Command, families: Path, tmp_path: Path
) -> None:
    write(tmp_path / "rows.jsonl", [{"prompt": "hello " * 30, "completion": "fine " * 30}] * 3)
    model = f"model.path={families / 'qwen'}"
    ended = alignment("data", "inspect", "rows.jsonl", model, "data.max_length=64", "data.max_prompt_length=40")
    (line,) = [line for line in ended.out.splitlines() if line.startswith("WARNING")]
    assert "WARNING: 3 of 3 prompts lose their beginning and 3 of 3 completions their end: data.max_prompt" in line
    ways = line.partition(": data.")[2].removesuffix(" keeps them whole").split()
    whole = alignment("data", "inspect", "rows.jsonl", model, f"data.{ways[0]}", ways[1])
    assert whole.code == 0 and "WARNING" not in whole.out and "0 (0.0%) lose their end" in whole.out
    write(tmp_path / "bad.jsonl", [{"prompt": "hello", "completion": reply} for reply in ("a", " ", " ")])
    told = alignment("data", "inspect", "bad.jsonl").out
    assert "WARNING: 2 of 3 rows break a rule, most of them this one: completion: the reply is empty; with" in told


def test_what_is_held_out_and_each_named_set_are_told(alignment: Command, tmp_path: Path) -> None:
    write(tmp_path / "pairs.jsonl", PAIRS)
    lines = alignment("data", "inspect", "pairs.jsonl", *OURS, "data.eval.fraction=0.3").out.splitlines()
    (line,) = [line for line in lines if line.startswith("eval: ")]
    held, left = int(line.split()[1]), int(line.partition("seed=0; ")[2].split()[0])
    assert "held out of the training rows by data.eval.fraction=0.3" in line and 0 < held < 8 and held + left == 8
    assert f"prompts of eval that train has too: 0 of {held} (0.0%)" in lines
    write(tmp_path / "other.jsonl", [{"prompt": "other", "chosen": "fine", "rejected": "no"}])
    sets = "data.eval.sets={a: {path: pairs.jsonl, columns: {prompt: question, chosen: better, rejected: worse}}"
    lines = alignment("data", "inspect", "other.jsonl", f"{sets}, b: {{path: other.jsonl}}}}").out.splitlines()
    assert f"eval.sets.a: 8 rows: {KIND}" in lines
    assert "prompts of eval.sets.a that train has too: 0 of 8 (0.0%)" in lines
    assert "prompts of eval.sets.b that train has too: 1 of 1 (100.0%), the first other.jsonl:1" in lines


def test_sources_of_a_mix_are_each_told(alignment: Command, tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [{"prompt": "a", "completion": "fine"}])
    write(tmp_path / "b.jsonl", [{"prompt": "b", "completion": "fine"}] * 2)
    ended = alignment("data", "inspect", "data.train.mix={a: {path: a.jsonl}, b: {path: b.jsonl}}", "--eval", "a.jsonl")
    assert ended.code == 0 and "train.mix.b: 2 rows: demonstrations, for sft" in ended.out
    assert "prompts of eval that train has too: 1 of 1 (100.0%), the first a.jsonl:1" in ended.out


@pytest.mark.parametrize(
    ("words", "told"),
    {
        "": "data needs its one part and a file: alignment data inspect FILE",
        "inspect": "data inspect needs one file of rows: alignment data inspect FILE",
        "inspct rows.jsonl": "data: no such verb 'inspct' (did you mean 'inspect'?)",
        "inspect gone.jsonl": "data inspect: data.train.path: no such file or folder, got 'gone.jsonl'",
        "inspect bad.jsonl": "data inspect: data.train.path must have at least one good row, got 'bad.jsonl' (first: ",
        "inspect bad.jsonl data.max_lenght=3": "data inspect: no such key 'data.max_lenght'",
        "inspect bad.jsonl model.path=gone": "data inspect: model.path: no such file or folder, got 'gone'",
    }.items(),
)
def test_mistakes_are_one_line(words: str, told: str, alignment: Command, tmp_path: Path) -> None:
    write(tmp_path / "bad.jsonl", [{"prompt": "hello", "chosen": "same", "rejected": "same"}])
    ended = alignment("data", *words.split())
    (line,) = ended.err
    assert ended.code == 2 and line.startswith(f"alignment: {told}")
