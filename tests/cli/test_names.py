"""The names of runs carry what was asked."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignment.cli.names import short_name

NAMES = {
    "Qwen/Qwen2.5-0.5B-Instruct@5f2c": "Qwen2.5-0.5B-Instruct",
    "models/SmolLM2-135M/": "SmolLM2-135M",
    "runs/sft/model": "sft",
    "runs/sft/best": "sft",
    "runs/tiny_sft/2026-01-31_23-59-59_tiny/model": "tiny_sft",
    "runs/tiny_sft/2026-01-31_23-59-59/model": "tiny_sft",
    "runs/tiny_sft/2026-01-31_23-59-59_sweep/3/model": "tiny_sft-3",
    "model": "model",
    "/": "",
}
WORDS = {
    "tiny_dpo": "_tiny",
    "tiny_dpo model.path=runs/sft/model": "_sft",
    "tiny_dpo model.init.hidden_size=64": "_tiny",
    "tiny_evaluate runs={sft:a,dpo:b} baseline=sft": "_sft-dpo",
    "dpo": "",  # whose model is not named yet
    'dpo model.path="odd/a b;$c/é"': "_é",
    'dpo model.path="odd/a b;$c"': "_a-b-c",
}


@pytest.mark.parametrize("path", NAMES)
def test_a_model_s_short_name(path: str) -> None:
    assert short_name(path) == NAMES[path]


@pytest.mark.parametrize("words", WORDS)
def test_a_run_is_named_by_recipe_time_and_model(words: str, alignment: Callable[..., Any]) -> None:
    recipe, *overrides = words.replace('"odd/a b', '"odd/a\0b').split(" ")
    ended = alignment("run", recipe, *(word.replace("\0", " ") for word in overrides), "--cfg", "job", "--resolve")
    folder = yaml.safe_load(ended.out)["output_dir"]
    assert folder.startswith(f"runs/{recipe}/20")
    assert folder.removeprefix(f"runs/{recipe}/")[len("2026-01-31_23-59-59") :] == WORDS[words]


def test_the_jobs_of_a_sweep_over_models_are_in_one_folder(
    alignment: Callable[..., Any], tmp_path: Path, own: Callable[[str, str], str]
) -> None:
    mine = own("mine", "defaults: [{task: sft}, {model: tiny}, {data: toy}, _self_]\ntrain: {max_steps: 1}\n")
    small = ["data.train.limit=4", "data.eval.limit=2", "batch.size=2", "log.progress=false"]
    ended = alignment("run", mine, "-m", "model.init.num_hidden_layers=1,2", *small)
    assert ended.code == 0, ended.err
    (folder,) = (tmp_path / "runs" / "mine").iterdir()
    assert folder.name.endswith("_sweep")
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == ["0", "1"]
