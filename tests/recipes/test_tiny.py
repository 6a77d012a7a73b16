"""Each tiny recipe through the installed command, for a few steps: those that train as the stages of one pipeline, in
whose process is imported once what each of them would."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignment.config.metrics import metric

SMALL = ["data.train.limit=96", "data.eval.limit=16", "log.progress=false"]
COMMAND = str(Path(sys.executable).with_name("alignment"))
STEPS = ["train.max_steps=3", "train.eval_every=2"]
PAIRS, REPLYING = ("reward", "dpo", "orpo", "simpo", "cpo"), ("ppo", "grpo", "rloo", "reinforce_pp", "online_dpo")
PREFERENCE = {"rewards/chosen", "rewards/rejected", "rewards/margin", "rewards/accuracy", "loss", "lr", "grad_norm"}


def run(*words: str) -> str:
    ran = subprocess.run([COMMAND, "run", *words], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def rows(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def settings(*words: str) -> dict[str, Any]:
    """As a recipe has what a command line says."""
    return {key: yaml.safe_load(value) for key, _, value in (word.partition("=") for word in words)}


TRAINING = (*PAIRS, *REPLYING, "sft", "kto", "reward_regression", "reward_process")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    short = {task: ["generation.max_new_tokens=12"] for task in REPLYING[1:]}
    stages = [
        {"name": task, "recipe": f"tiny_{task}", "set": settings(*SMALL, *STEPS, *short.get(task, []))}
        for task in TRAINING
    ]
    recipe = {"defaults": [{"task": "pipeline"}, "_self_"], "stages": stages}
    (folder / "all.yaml").write_text(f"# All that train\n{yaml.safe_dump(recipe)}")
    run(str(folder / "all.yaml"), f"output_dir={folder / 'all'}", "log.progress=false")
    return folder / "all"


@pytest.mark.parametrize("task", TRAINING)
def test_training_recipe(task: str, folder: Path) -> None:
    logged = rows(folder / task)
    assert [row["step"] for row in logged] == [1, 2, 3]
    assert all("lr" in row and ("loss" in row or row.get("pairs") == 0) for row in logged)  # a random model has no pair
    assert [any(name.startswith("eval/") for name in row) for row in logged] == [False, True, True]
    assert [name for row in logged for name in row if metric(name) is None] == []
    if task in PAIRS:
        assert logged[0].keys() >= PREFERENCE
    assert (folder / task / "config.yaml").is_file()
    assert (folder / task / "model" / "model.safetensors").is_file()


def test_rejection_then_evaluate(tmp_path):
    run("tiny_sft", *SMALL, "train.max_steps=40", "data.train.limit=1000", f"output_dir={tmp_path / 'sft'}")
    model = f"model.path={tmp_path / 'sft' / 'model'}"
    run("tiny_rejection", model, "data.train.limit=16", "num_samples=4", f"output_dir={tmp_path / 'picked'}")
    picked = [json.loads(line) for line in (tmp_path / "picked" / "selected.jsonl").read_text().splitlines()]
    assert all(row["prompt"] and row["completion"] for row in picked)
    assert [name for row in rows(tmp_path / "picked") for name in row if metric(name) is None] == []

    runs = f"runs={{first: {tmp_path / 'sft'}, second: {tmp_path / 'sft' / 'model'}}}"
    run("tiny_evaluate", runs, "baseline=first", "data.eval.limit=16", f"output_dir={tmp_path / 'compared'}")
    first, second = json.loads((tmp_path / "compared" / "summary.json").read_text())["methods"]
    assert first["gold"] == second["gold"]
    assert (tmp_path / "compared" / "report.html").is_file()
