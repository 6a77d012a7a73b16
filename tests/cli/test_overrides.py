"""Overrides as people type them: any path is a value, a list stays a list and a sweep a sweep."""

import json
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from alignment.cli.compose import chosen, composing, current_hydra, resolve
from alignment.cli.overrides import quoted, readable
from alignment.cli.texts import holds_texts
from alignment.cli.typed import with_one_length
from alignment.config.supervised import RewardConfig
from alignment.config.tasks import TASKS

TEXTS = ["données-数据.jsonl", "o'neil.jsonl", "'tis", "100%#1.jsonl", "a (1).jsonl", "data(1)", "(x).jsonl", "x;y&z!"]
TEXTS += ["runs/lr=1e-3/model", "é,b", "a=b,c", 'say "no"', "<a>", "^`a", "back\\slash'", "плюс+минус", "x{y}", "a[0]"]
AS_THEY_ARE = [
    "1e-3",
    "null",
    "true",
    "plain/path.jsonl",
    "a b",
    "[1,2]",
    "{a: b}",
    "C:\\new",
    "${seed}",
    "",
    "'q'",
    '"q"',
]


def value_of(word: str) -> Any:
    with composing([]):
        tree = current_hydra().compose_config("tiny_sft", [word], run_mode=None)
    return OmegaConf.to_container(tree.model.init)["probe"]


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_with_any_signs_is_taken_as_it_is(text: str) -> None:
    assert value_of(readable(f"+model.init.probe={text}", is_sweep=False)) == text


@pytest.mark.parametrize("text", AS_THEY_ARE)
def test_what_the_grammar_reads_is_left_alone(text: str) -> None:
    assert readable(f"key={text}", is_sweep=False) == f"key={text}"


def test_lists_and_mappings_may_hold_such_texts() -> None:
    assert value_of(readable("+model.init.probe=[a b,é/o'x,3]", is_sweep=False)) == ["a b", "é/o'x", 3]
    mapping = "+model.init.probe={un: données/a=1, b:c'd, n: 2}"
    assert value_of(readable(mapping, is_sweep=False)) == {"un": "données/a=1", "b": "c'd", "n": 2}


def test_a_sweep_is_cut_at_its_commas() -> None:
    assert readable("key=1,2", is_sweep=True) == "key=1,2"
    assert readable("key=é/a,b,runs/lr=1", is_sweep=True) == 'key="é/a",b,"runs/lr=1"'
    assert readable("key=choice(é,b)", is_sweep=True) == "key=choice(é,b)"


def test_a_file_whose_name_looks_like_a_list_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a,b.jsonl", "[x].jsonl"):
        (tmp_path / name).write_text("")
        assert readable(f"key={name}", is_sweep=False) == f'key="{name}"' == readable(f"key={name}", is_sweep=True)


def test_a_file_whose_name_begins_with_a_blank_is_that_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert value_of(readable("+model.init.probe= a.jsonl", is_sweep=False)) == "a.jsonl"
    (tmp_path / " a.jsonl").write_text("")
    assert value_of(readable("+model.init.probe= a.jsonl", is_sweep=False)) == " a.jsonl"


def test_a_long_text_is_no_path() -> None:
    """Of which a file system takes 255 bytes a name."""
    text = "You are helpful, honest and short; " * 20
    for typed in (text, f" {text}", text.strip()):
        assert value_of(readable(f"+model.init.probe={typed}", is_sweep=False)).strip() == text.strip()


def test_the_quoted_form_is_what_a_shell_takes() -> None:
    assert quoted("key=[1'") == "'key=\"[1'\"'\"'\"'"


def test_the_recipe_may_lie_in_a_folder_with_any_name(alignment: Callable[..., Any], tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "lr=1e-3, (é) o'x"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("# Mine\ndefaults: [tiny_sft, _self_]\nseed: 5\n")
    recipe = "runs/lr=1e-3, (é) o'x/config.yaml"
    ended = alignment("run", recipe, "--cfg", "job")
    assert ended.code == 0 and yaml.safe_load(ended.out)["seed"] == 5
    ended = alignment("run", recipe.replace("config", "confg"))
    assert ended.code == 2 and "no recipe file " in ended.err[0] and "mean 'config.yaml'" in ended.err[0]


def test_a_recipe_without_a_task_is_told_so_whatever_is_asked(
    alignment: Callable[..., Any], own: Callable[..., str]
) -> None:
    for word in ("output_dir=out", "data.train.path=x", "sead=1"):
        ended = alignment("run", own("mine", "# Mine\nseed: 1\n"), word)
        assert ended.code == 2 and "mine: a recipe's defaults must name its task" in ended.err[0]


def test_home_begins_a_path(alignment: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "mine"))
    words = ["run", "tiny_sft", "data=native", "data.train.path=~/é.jsonl", "batch.size=1", "train.max_steps=1"]
    ended = alignment(*words)
    assert ended.code == 2 and f"no such file or folder, got '{tmp_path}/mine/é.jsonl' (a ~ that begins" in ended.err[0]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "é.jsonl").write_text(json.dumps({"prompt": "a", "completion": "b"}) + "\n")
    assert alignment(*words, "output_dir=~/out").code == 0
    assert (tmp_path / "mine" / "out" / "finished.json").exists()


NUMBERS = ["1e3", "007", "1_000", "1.50", ".5", "+5", "-0", "true", "No", "nan", "inf", "1e-3"]


@pytest.mark.parametrize("text", NUMBERS)
def test_a_name_that_looks_like_a_number_keeps_its_letters(text: str) -> None:
    words = [f"{key}={text}" for key in ("output_dir", "model.path", "data.train.path", "log.project", "seed")]
    *texts, seed = [readable(word, is_sweep=False) for word in words]
    assert seed == f"seed={text}"
    with composing([]):
        tree = current_hydra().compose_config("tiny_sft", texts, run_mode=None)
        other = f"{{a: {text}, b: x}}"
        runs = [readable(word, is_sweep=False) for word in (f"runs={other}", f"baseline={text}", f"+curves.c={text}")]
        evaluate = current_hydra().compose_config("tiny_evaluate", runs, run_mode=None)
    assert [tree.output_dir, tree.model.path, tree.data.train.path, tree.log.project] == [text] * 4
    assert (evaluate.runs, evaluate.baseline, evaluate.curves.c) == ({"a": text, "b": "x"}, text, text)
    one = readable(f"model.path={text}", is_sweep=False)
    assert readable(f"model.path={text},x", is_sweep=True) == f"{one},x"


def test_what_is_no_text_or_nothing_stays_what_it_is() -> None:
    for word in ("model.path=null", "model.path=choice(1,2)", "train.learning_rate=1e3", "model.init.n=007", "runs={}"):
        assert readable(word, is_sweep=False) == word
    assert readable("reward.models={a: {path: x, weight: 2}}", is_sweep=False).endswith("{path: x, weight: 2}}")
    assert readable("model.lora.targets=[1e3,q]", is_sweep=False) == 'model.lora.targets=["1e3", q]'


def test_no_key_is_a_text_in_one_task_and_a_number_in_another() -> None:
    kinds: dict[str, set[bool]] = {}
    for root in TASKS.values():
        for key, kind in leaves(root, ""):
            kinds.setdefault(key, set()).add(kind in ("str", "str | None"))
    assert {key for key, found in kinds.items() if len(found) > 1} == set()
    assert all(holds_texts(key) == (True in found) for key, found in kinds.items())


def test_files_of_rows_are_a_pattern_or_a_list(alignment: Callable[..., Any], tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl", "007"):
        (tmp_path / "rows").mkdir(exist_ok=True)
        (tmp_path / "rows" / name).write_text(json.dumps({"prompt": name, "completion": "b"}) + "\n")
    words = ["run", "tiny_sft", "data=native", "batch.size=1", "train.max_steps=1", "train.warmup_steps=0"]
    asked = (("rows/*.jsonl", 2), ("rows", 2), ("[rows/a.jsonl,rows/*.jsonl]", 3), ("rows/[a].jsonl", 1))
    for number, (path, count) in enumerate(asked):
        ended = alignment(*words, f"data.train.path={path}", f"output_dir=out{number}")
        assert ended.code == 0 and f"train: {count} rows" in ended.out, ended
    ended = alignment(*words, "data.train.path=rows/*.csv")
    assert (ended.code, ended.err) == (2, ["alignment: tiny_sft: data.train.path: no file matches, got 'rows/*.csv'"])
    ended = alignment(*words, "data.train.path=[rows/a.jsonl,gone.jsonl]")
    assert ended.err == ["alignment: tiny_sft: data.train.path.1: no such file or folder, got 'gone.jsonl'"]
    ended = alignment(*words, "data.train.path=[]")
    assert ended.err == [
        "alignment: tiny_sft: data.train.path must be a file, a folder, a pattern, or a list of them, got []"
    ]
    with composing([]):
        tree = current_hydra().compose_config("tiny_sft", [readable("data.train.path=[007,b]", is_sweep=False)], None)
    assert tree.data.train.path == ["007", "b"]


def leaves(kind: Any, prefix: str) -> Iterator[tuple[str, str]]:
    """Keys that hold one value, and the name of its type as it is written."""
    for field in fields(kind):
        if is_dataclass(field.type):
            yield from leaves(field.type, f"{prefix}{field.name}.")
        elif "dict" not in str(field.type) and "list" not in str(field.type):
            is_type = isinstance(field.type, type) and field.type is not Any
            kind = "str" if "data" in field.metadata else field.type.__name__ if is_type else str(field.type)
            yield f"{prefix}{field.name}", kind


@pytest.mark.parametrize("custom", ["{1: 0, 2: 1}", "{1:0,2:1}"])
def test_ratings_that_are_numbers_are_keys(custom: str) -> None:
    words = ["data=native", "data.train.path=a", "data.margin.scale=custom", f"data.margin.custom={custom}"]
    words += ["data.columns={prompt:question,chosen:2}", "data.eval.limit=null"]
    with composing([]):
        config = resolve(current_hydra().compose_config("tiny_reward", chosen("tiny_reward", [
            readable(word, is_sweep=False) for word in words]), run_mode=None))  # fmt: skip
    assert isinstance(config, RewardConfig) and config.data.margin.custom == {"1": 0, "2": 1}
    assert config.data.columns == {"prompt": "question", "chosen": "2"}


def test_a_length_in_steps_takes_the_place_of_one_in_passes_and_the_other_way_round() -> None:
    assert with_one_length(["seed=1", "train.max_steps=3"]) == ["seed=1", "train.max_steps=3", "train.epochs=null"]
    assert with_one_length(["train.epochs=1,2"]) == ["train.epochs=1,2", "train.max_steps=null"]
    for words in (["train.max_steps=null"], ["train.max_steps=3", "train.epochs=null"], ["seed=1"]):
        assert with_one_length(words) == words
    both = ["train.max_steps=3", "train.epochs=1"]
    assert with_one_length(both) == both  # which is refused
