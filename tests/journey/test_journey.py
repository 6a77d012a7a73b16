"""A new user's way, from an empty folder to a model on the hub: each command that README shows, one after the other."""

import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Ended
from tests.hub.stand_in import StandIn

ANIMALS = ("cow", "dog", "cat", "duck", "pig", "owl", "bee", "hen")
SAYS = ("moo", "woof", "meow", "quack", "oink", "hoo", "buzz", "cluck")
FEW = ["batch.size=8", "train.epochs=null", "train.max_steps=6", "train.learning_rate=1e-3", "train.warmup_ratio=0"]
LENGTHS = ["data.max_length=96", "data.max_prompt_length=48"]


def pairs(path: Path) -> None:
    """A table as a user has it: other names for the columns, a rating beside the pairs."""
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["question", "better", "worse", "rating"])
        for number, (animal, says) in enumerate(zip(ANIMALS * 2, SAYS * 2, strict=True)):
            ask = f"What does a {animal} say{', please' * (number >= len(ANIMALS))}?"
            table.writerow([ask, f"It says {says}.", "I do not know.", "better" if number % 2 else "slightly better"])


@pytest.fixture
def me(hub: StandIn, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """A hub with a pretrained model, `tiny/base`, where this user may write as `me`."""
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    hub.tokens |= {"hf_mine"}
    hub.writers["hf_mine"] = ["me"]
    hub.commit("tiny/base", {file.name: file.read_bytes() for file in model_folder.iterdir() if file.is_file()})
    return hub


def test_from_an_empty_folder_to_a_model_on_the_hub(
    me: StandIn, alignment: Callable[..., Ended], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs(tmp_path / "pairs.csv")
    columns = ["data.columns.prompt=question", "data.columns.chosen=better", "data.columns.rejected=worse"]
    rows = ["data.train.path=pairs.csv", *columns, *LENGTHS]

    def done(*words: str) -> str:
        ended = alignment(*words)
        assert (ended.code, ended.err) == (0, []), f"{words}: {ended.err}"
        return ended.out

    asked = alignment("data", "inspect", "pairs.csv")  # which tells how its columns are named
    assert asked.code == 2 and all(column in asked.err[0] for column in columns)
    said = done("data", "inspect", "pairs.csv", "model.path=tiny/base", *columns, *LENGTHS)
    assert "16" in said and "better" in said and "\u27e6" in said

    said = done("check", "dpo", "model.path=tiny/base", *rows, *FEW)
    assert ", 0 FAIL; " in said

    sft = ["model.path=tiny/base", *rows, *FEW, "data.eval.fraction=0.25", "output_dir=runs/sft"]
    said = done("run", "sft", *sft)
    assert "eval at step 6" in said and "model: runs/sft/model" in said
    assert re.search(r"path: tiny/base@[0-9a-f]{40}", (tmp_path / "runs" / "sft" / "config.yaml").read_text())
    assert "nothing to do" in done("run", "sft", *sft)

    margins = ["data.margin.scale=small", "data.eval.fraction=0.25"]
    said = done("run", "reward", "model.path=runs/sft/model", *rows, *FEW, *margins, "output_dir=runs/reward")
    assert "rewards/accuracy" in said and "model: runs/reward/model" in said
    assert re.search(r"margins of 12 pairs \(data.margin.scale=small\): 0.333 \(slightly better, \dx\), 0.667 \(", said)

    adapters = ["model=pretrained_lora", "model.path=runs/sft/model", "model.lora.rank=2", "data.eval.fraction=0.25"]
    said = done("run", "dpo", *adapters, *rows, *FEW, "output_dir=runs/dpo")
    assert "reference: runs/sft/model as the run began" in said and "adapter alone: runs/dpo/model/adapter" in said
    assert (tmp_path / "runs" / "dpo" / "model" / "adapter" / "adapter_config.json").is_file()
    longer = [*adapters, *rows, *FEW, "train.max_steps=8", "output_dir=runs/dpo"]
    assert "goes on to train.max_steps=8" in done("run", "dpo", *longer)

    drawn = ["generation.max_new_tokens=8", columns[0], *LENGTHS]
    said = done("evaluate", "runs/sft", "runs/dpo", "--data", "pairs.csv", "--reward", "runs/reward", *drawn)
    assert "dpo" in said and "report.html" in said
    assert "WARNING: runs/sft, runs/dpo, runs/reward/model learned from pairs.csv" in said.replace("\n", " ")
    (evaluated,) = (tmp_path / "runs" / "evaluate").iterdir()
    scores = [json.loads(line) for line in (evaluated / "scores.jsonl").read_text().splitlines()]
    assert len(scores) == 2 * 2 * len(ANIMALS)  # of two models, a row for each prompt

    said = done("compare", "runs/sft", "runs/dpo")
    assert "train.max_steps" in said and "loss" in said
    said = done("status", "runs")
    assert said.count("finished") >= 3

    monkeypatch.setattr("sys.stdin", io.StringIO("What does a cow say?\nAnd a dog?\n"))
    talked = alignment("chat", "runs/dpo", "--max-new-tokens", "4")
    assert talked.code == 0 and len(talked.out.splitlines()) >= 2
    assert talked.err == ["(cut after 4 tokens)"] * 2

    said = done("push", "runs/dpo", "first-steps")
    assert f"pushed runs/dpo/model, whole and as an adapter, to me/first-steps: {me.url}/me/first-steps" in said
    repo = me.repos["models", "me/first-steps"]
    assert b"Direct preference optimisation" in repo.commits[repo.refs["main"]]["README.md"]
    assert "first-steps" in done("evaluate", "me/first-steps", "--data", "pairs.csv", *drawn, "output_dir=runs/hub")
