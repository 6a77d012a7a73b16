"""Typical mistakes from Python: one public exception of one line, with the way out, and nothing is left behind."""

import traceback
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, DatasetDict

import alignment
from alignment.config import DPOConfig

PAIR = {"prompt": "What is a cow?", "chosen": "An animal.", "rejected": "A stone."}
KEYS = 'as {"loss.beta": 0.2, "distributed": "zero2"}'
MISTAKES: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "a recipe's name": ({"recipe": "dop"}, ("no recipe 'dop' (did you mean 'dpo'?)", "`alignment recipes`")),
    "a recipe's file": ({"recipe": "broken.yaml"}, ("broken.yaml:2: not YAML",)),
    "a recipe without a task": ({"recipe": "plain.yaml"}, ("defaults must name its task, one of sft,", "got none")),
    "a class": ({"recipe": DPOConfig}, ("a config as DPOConfig(...)", "got the class DPOConfig")),
    "a dict as a recipe": ({"recipe": {"task": "dpo"}}, ("a recipe's name, the path of a .yaml", "got a dict")),
    "a key in a dict": ({"train": {"epoch": 1}}, ("no such key 'train.epoch' (did you mean 'train.epochs'?)",)),
    "a key with its dots": (
        {"overrides": {"train.epoch": 1}},
        ("no such key 'train.epoch' (did you mean 'train.epochs'?)",),
    ),
    "a key without its group": ({"learning_rate": 1e-5}, ("(did you mean 'train.learning_rate'?)",)),
    "an argument": ({"modle": "x"}, ("no such key 'modle' (did you mean 'model'?)",)),
    "a preset": (
        {"distributed": "zero4"},
        ("distributed must be one of cpu, gpu,", "got 'zero4' (did you mean 'zero3'?)"),
    ),
    "a preset of keys": ({"loss": "simpo"}, ("loss holds keys of its own, got 'simpo'; they are beta,",)),
    "words as overrides": ({"overrides": ["loss.beta=0.1"]}, (f"overrides must be a dict, {KEYS}, got a list",)),
    "a text as overrides": ({"overrides": "loss.beta=0.1"}, (f"overrides must be a dict, {KEYS}, got a str",)),
    "a word as a key": ({"overrides": {"loss.beta=0.1": None}}, ("keys of the config with", "got 'loss.beta=0.1'")),
    "a number as a key": ({"overrides": {3: 1}}, ("overrides must have keys of the config with", "got 3")),
    "a text for a number": ({"train": {"max_steps": "many"}}, ("train.max_steps must be a whole number, got 'many'",)),
    "a deep text": ({"model": {"lora": {"rank": "eight"}}}, ("model.lora.rank must be a whole number, got 'eight'",)),
    "a list for a number": ({"loss": {"beta": [0.1]}}, ("loss.beta must be a number, got '[0.1]'",)),
    "a tensor for a number": (
        {"loss": {"beta": torch.tensor(0.1)}},
        ("loss.beta must be a text, a number", "a Tensor"),
    ),
    "a number for a group": ({"train": 3}, ("train holds keys of its own, got 3; they are max_steps,",)),
    "a value out of range": ({"loss": {"beta": float("nan")}}, ("loss.beta must be > 0 and finite, got nan",)),
    "no rows": ({"data": []}, ("data must have at least one row, got none",)),
    "no held-out rows": ({"data": [PAIR], "eval_data": []}, ("eval_data must have at least one row, got none",)),
    "tuples": ({"data": [("a", "b", "c")]}, ("data: row 1 must be a dict, got a tuple",)),
    "one row": ({"data": PAIR}, ("got a dict of prompt, chosen, rejected; one row is data=[row]",)),
    "columns": ({"data": {"prompt": ["a"]}}, ("columns are data=datasets.Dataset.from_dict(columns)",)),
    "a number as data": ({"data": 3}, ("data must be a path, or rows", "got an int")),
    "all splits": (
        {"data": DatasetDict(train=Dataset.from_list([PAIR]), test=Dataset.from_list([PAIR]))},
        ("data must be one split of a DatasetDict, as data=dataset['train']; it has train, test",),
    ),
    "rows for a key": ({"data": {"train": {"path": [PAIR]}}}, ("data.train.path cannot hold rows", "data=rows")),
    "held-out rows for a key": ({"overrides": {"data.eval": [PAIR]}}, ("data.eval cannot hold rows", "eval_data=rows")),
    "keys as held-out rows": ({"eval_data": {"limit": 3}}, ("got a dict; keys of held-out rows are data={'eval': {",)),
    "a row that JSON has not": (
        {"data": [{**PAIR, "prompt": {"a"}}]},
        ("data: row 1 must hold what JSON has", "a set"),
    ),
    "a row that lacks a reply": (
        {"data": [PAIR, {"prompt": "a", "chosen": "b"}]},
        ("data: row 2: field `rejected` is missing: a pair needs", "the row has `prompt`, `chosen`"),
    ),
    "a held-out row that lacks one": (
        {"data": [PAIR], "eval_data": [{"prompt": "a", "chosen": "b"}]},
        ("eval_data: row 1: field `rejected` is missing",),
    ),
    "a row of numbers": ({"data": [{**PAIR, "prompt": 1}]}, ("data: row 1: field `prompt` must be text or",)),
    "a file that is not there": (
        {"data": "gone.jsonl"},
        ("data.train.path: no such file or folder, got 'gone.jsonl'",),
    ),
    "a model that is not there": ({"model": "./gone"}, ("model.path: no such file or folder, got './gone'",)),
    "a folder without a model": ({"model": "empty"}, ("model.path: no config.json in 'empty'",)),
    "a loaded model": ({"model": torch.nn.Linear(1, 1)}, ("model must be a folder,", "got a Linear; save_pretrained")),
    "a file as output_dir": ({"output_dir": "plain.yaml"}, ("output_dir must be a folder", "'plain.yaml' is a file")),
    "another run's output_dir": (
        {"output_dir": "other", "data": [PAIR]},
        ("output_dir holds a run of another config", "another output_dir keeps both"),
    ),
    "rows for a pipeline": ({"recipe": "tiny_pipeline", "data": [PAIR]}, ("stages.NAME.set.data.train.path': FILE",)),
    "a stage": ({"recipe": "tiny_pipeline", "overrides": {"stages.dop.set.seed": 1}}, ("'dop' (did you mean 'dpo'?)",)),
    "a sweep": ({"loss": {"beta": "0.1,0.2"}}, ("loss.beta must be a number, got '0.1,0.2'",)),
    "a cluster": ({"cluster": "slurm"}, ("cluster must be local", "`alignment submit` queues it")),
}
SMALL = {"hidden_size": 32, "intermediate_size": 48}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mistaken_calls")
    (folder / "empty").mkdir()
    (folder / "broken.yaml").write_text("loss: [\n")
    (folder / "plain.yaml").write_text("seed: 1\n")
    train = {"max_steps": 1, "eval_every": 0, "warmup_steps": 0}
    settings: dict[str, Any] = {"model": {"init": SMALL}, "train": train, "log": {"progress": False}}
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        alignment.run("tiny_dpo", data=[PAIR] * 4, output_dir="other", batch={"size": 4}, **settings)
    return folder


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_with_the_way_out(mistake: str, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, parts = MISTAKES[mistake]
    monkeypatch.chdir(files)
    before = set(files.rglob("*"))
    with pytest.raises(alignment.UserError) as raised:
        alignment.run(**{"recipe": "tiny_dpo", **asked})
    line, shown = str(raised.value), "".join(traceback.format_exception(raised.value))
    assert "\n" not in line and [part for part in parts if part not in line] == [], line
    assert shown.count("Traceback") == 1, shown
    assert set(files.rglob("*")) == before
