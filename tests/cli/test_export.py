"""A checkpoint in Hugging Face form is the model that the run itself leaves; what cannot be exported is told."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from alignment.models.load import save_model
from alignment.tasks import export

SMALL = ["model.init.hidden_size=32", "model.init.intermediate_size=48", "data.train.limit=16", "data.eval.limit=4"]
SAVED = [*SMALL, "batch.size=4", "train.max_steps=2", "checkpoint.every=1", "output_dir=out"]


def same_weights(one: Path, other: Path) -> bool:
    first, second = (load_file(folder / "model.safetensors") for folder in (one, other))
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("task", ["dpo", "reward", "ppo"])
def test_the_last_step_is_the_model_of_the_run(task: str, alignment: Callable[..., Any], tmp_path: Path) -> None:
    more = ["generation.max_new_tokens=4"] if task == "ppo" else []
    assert alignment("run", f"tiny_{task}", *SAVED, *more).code == 0
    ended = alignment("export", "out")
    assert ended.code == 0 and ended.err == []
    out, model = tmp_path / "out" / "exported" / "step-00000002", tmp_path / "out" / "model"
    assert f"the model after step 2 is in {out.relative_to(tmp_path)}" in ended.out
    assert same_weights(out, model) and names(out) == names(model) - {"reward_statistics.json"}
    assert ("without reward_statistics.json, which reward.normalize needs" in ended.out) == (task == "reward")
    auto = AutoModelForSequenceClassification if task == "reward" else AutoModelForCausalLM
    auto.from_pretrained(out)

    assert alignment("export", "out", "--step", "1", "--out", "first").code == 0
    assert not same_weights(tmp_path / "first", model)
    again = alignment("export", "out")
    assert (again.code, len(again.err)) == (2, 1)
    assert "--out must be a folder that is not there yet, got 'out/exported/step-00000002'" in again.err[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_adapter_is_merged(
    dtype: torch.dtype, alignment: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Into a base that is held in what its folder has it in; what is saved is what the run, in float32, has saved."""
    held = []

    def seen(model: Any, *rest: Any) -> None:
        held.append({weight.dtype for name, weight in model.named_parameters() if "proj.base_layer" in name})
        save_model(model, *rest)

    alignment("run", "tiny_sft", *SMALL, "batch.size=4", "train.max_steps=1", "output_dir=base")
    AutoModelForCausalLM.from_pretrained("base/model", dtype=dtype).save_pretrained("base/model")
    lora = ["model=pretrained_lora", "model.path=base/model", *SAVED[2:], "reference.cache=false"]
    assert alignment("run", "tiny_dpo", *lora).code == 0
    monkeypatch.setattr(export, "save_model", seen)
    assert alignment("export", "out").code == 0
    assert held == [{dtype}]
    exported = tmp_path / "out" / "exported" / "step-00000002"
    assert same_weights(exported, tmp_path / "out" / "model")
    assert not same_weights(exported, tmp_path / "base" / "model")
    shutil.rmtree(tmp_path / "base")
    ended = alignment("export", "out", "--out", "other")
    assert ended.err == ["alignment: export: model.path: no such file or folder, got 'base/model'"]


def test_what_cannot_be_exported_is_one_line(alignment: Callable[..., Any], tmp_path: Path) -> None:
    assert alignment("run", "tiny_sft", *SAVED).code == 0

    def told(*words: str) -> str:
        ended = alignment("export", *words)
        assert (ended.code, len(ended.err)) == (2, 1), ended.err
        return ended.err[0]

    assert told("nowhere") == "alignment: export: a run's folder holds config.yaml, got 'nowhere'"
    assert "export needs one run" in told()
    assert "export needs one run" in told("out", "other")
    line = "--step must be of a checkpoint in 'out/checkpoints' (step-00000001, step-00000002), got 7"
    assert line in told("out", "--step", "7")
    newest = tmp_path / "out" / "checkpoints" / "step-00000002" / "rank-00000.pt"
    newest.write_bytes(newest.read_bytes()[:-1])
    assert "step-00000002: rank-00000.pt is cut short" in told("out", "--step", "2")
    ended = alignment("export", "out")
    assert ended.code == 0 and "step-00000002 is skipped" in ended.out and "after step 1 is in" in ended.out
    shutil.rmtree(tmp_path / "out" / "checkpoints")
    assert "export: RUN must have a checkpoint, got none in 'out/checkpoints': checkpoint.every_minutes" in told("out")


def test_an_evaluation_has_no_checkpoints(alignment: Callable[..., Any], tmp_path: Path) -> None:
    config = "defaults:\n  - task: evaluate\n  - _self_\n\nreward: none/of/ours\npairs: {eval: {path: none}}\n"
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.yaml").write_text(config)
    ended = alignment("export", "out")
    line = (
        "alignment: export: RUN must be one that trains, got 'out', that of an evaluation, which leaves no model: its"
    )
    assert ended.code == 2 and len(ended.err) == 1 and ended.err[0].startswith(line)


def test_an_adapter_on_a_random_model_is_refused(alignment: Callable[..., Any]) -> None:
    assert alignment("run", "tiny_sft", *SAVED, "model.lora.rank=2").code == 0
    ended = alignment("export", "out")
    assert ended.code == 2 and ended.err[0].endswith("so they must come from model.path, got null")


def test_a_run_of_an_earlier_version_goes_on_and_is_exported(alignment: Callable[..., Any], tmp_path: Path) -> None:
    """What its files say of adapters, of which it has none, was the default then."""
    words = ["run", "tiny_sft", *SAVED, "train.schedule=constant"]
    assert alignment(*words).code == 0
    for name, now, then in (
        ("config.yaml", "alpha: 8", "alpha: 16"),
        ("config.yaml", "rslora: true", "rslora: false"),
        ("started.json", '"model.lora.alpha": 8', '"model.lora.alpha": 16'),
        ("started.json", '"model.lora.rslora": true', '"model.lora.rslora": false'),
    ):
        file = tmp_path / "out" / name
        assert file.read_text().count(now) == 1
        file.write_text(file.read_text().replace(now, then))
    for asked in (["export", "out"], ["run", "out/config.yaml", "train.max_steps=3"], [*words, "train.max_steps=4"]):
        ended = alignment(*asked)
        assert (ended.code, ended.err) == (0, [])
    assert len((tmp_path / "out" / "metrics.jsonl").read_text().splitlines()) == 4
