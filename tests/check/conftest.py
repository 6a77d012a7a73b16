"""A tiny pretrained model, a few rows, and the verdicts on a run with them."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from alignment.check.run import check
from alignment.check.verdict import Verdict
from alignment.config.data import DataConfig, TrainSource
from alignment.config.distributed import Device, DistributedConfig
from alignment.config.model import ModelConfig
from alignment.config.run import RunConfig
from alignment.config.train import TrainConfig
from alignment.distributed.placement import WHOLE
from alignment.models.load import load_language_model, save_model

ANIMALS = ("cow", "dog", "cat", "owl", "pig", "hen", "bee", "fox", "ant", "bat")


def dialogue(animal: str, *replies: str) -> list[dict[str, str]]:
    """Questions about an animal, each with its reply."""
    turns = []
    for number, reply in enumerate(replies, start=1):
        turns += [{"role": "user", "content": f"Question {number} about the {animal}?"}]
        turns += [{"role": "assistant", "content": reply}]
    return turns


def pair(animal: str) -> dict[str, Any]:
    prompt = dialogue(animal, "It has legs.", "")[:-1]
    return {"prompt": prompt, "chosen": f"The {animal} can run and eat.", "rejected": f"No {animal} here, sorry."}


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The path of `pairs`, `prompts` and `demonstrations`, ten rows each."""
    folder = tmp_path_factory.mktemp("data")
    pairs = [pair(animal) for animal in ANIMALS]
    rows = {
        "pairs": pairs,
        "prompts": [{"prompt": row["prompt"]} for row in pairs],
        "demonstrations": [{"prompt": row["prompt"], "completion": row["chosen"]} for row in pairs],
    }
    for name, content in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    return {name: str(folder / f"{name}.jsonl") for name in rows}


@pytest.fixture(scope="session")
def pretrained(
    tiny_init: dict[str, object], tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory
) -> str:
    """The folder of a language model."""
    folder = tmp_path_factory.mktemp("pretrained")
    torch.manual_seed(0)
    save_model(load_language_model(ModelConfig(init=tiny_init), tokenizer, WHOLE), tokenizer, folder)
    return str(folder)


Check = Callable[..., Iterator[Verdict]]


@pytest.fixture
def checked(pretrained: str, files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Check]:
    """`checked(DPOConfig, "pairs", loss=...)`: the verdicts as they come, in an empty folder that must stay empty."""
    monkeypatch.chdir(tmp_path)

    def call(kind: type[RunConfig], rows: str, **settings: Any) -> Iterator[Verdict]:
        given: dict[str, Any] = {
            "output_dir": "run",
            "distributed": DistributedConfig(device=Device.cpu),
            "model": ModelConfig(path=pretrained),
            "data": DataConfig(train=TrainSource(files[rows])),
            "train": TrainConfig(max_steps=20, learning_rate=1e-3),
        }
        return check(kind(**{**given, **settings}))

    yield call
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def verdict(checked: Check) -> Callable[..., Verdict]:
    """`verdict("learning rate", SFTConfig, "demonstrations")`: one of them; those behind it are not asked for."""

    def call(name: str, kind: type[RunConfig], rows: str, **settings: Any) -> Verdict:
        return next(each for each in checked(kind, rows, **settings) if each.name == name)

    return call


@pytest.fixture
def upto(checked: Check) -> Callable[..., list[Verdict]]:
    """`upto("learning rate", SFTConfig, "demonstrations")`: all of them, that one the last."""

    def call(name: str, kind: type[RunConfig], rows: str, **settings: Any) -> list[Verdict]:
        found: list[Verdict] = []
        for each in checked(kind, rows, **settings):
            found.append(each)
            if each.name == name:
                return found
        raise AssertionError(f"no verdict {name!r} among {[each.name for each in found]}")

    return call
