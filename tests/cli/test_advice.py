"""What is said of a recipe's values where they are not for the user's model."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerBase

from alignment.cli import advice

RECIPES = Path(__file__).parents[2] / "recipes"
QUESTIONS = ["What does a cow say?", "What is two plus two?", "Name a colour.", "Who are you?"]
DATA = ["model.path=FOLDER", "data.train.path=rows.jsonl", "train.max_steps=1", "train.epochs=null", "batch.size=4"]


@pytest.fixture
def ran(
    tmp_path: Path,
    tokenizer: PreTrainedTokenizerBase,
    tiny_init: dict[str, object],
    alignment: Callable[..., Any],
) -> Callable[..., str]:
    """`ran("sft", ...)`: what a run says beside a pretrained model in `FOLDER` and demonstrations in `rows.jsonl`."""
    torch.manual_seed(0)
    init = {**tiny_init, "vocab_size": len(tokenizer), "max_position_embeddings": 4096}
    init |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = AutoConfig.for_model(init.pop("model_type"), **init)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "FOLDER")
    tokenizer.save_pretrained(tmp_path / "FOLDER")
    rows = [{"prompt": q, "completion": "Moo."} for q in QUESTIONS]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    folders: list[str] = []

    def run(*words: str) -> str:
        folders.append(f"output_dir=out-{len(folders)}")  # named by the second, two would be one
        return alignment("run", *words, folders[-1]).out

    return run


def test_a_toys_values_and_a_rate_for_all_weights_are_told(
    ran: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    calm = ["batch.size=4", "train.warmup_steps=0", "train.warmup_ratio=0"]  # its one step learns, of rows that it has
    said = ran("tiny_sft", "model=pretrained", "data=native", *DATA)
    line = "WARNING: tiny_sft's values (train.learning_rate=0.003, its lengths) are for toy models; for yours take the"
    assert f"{line} recipe sft\n" in said
    assert "WARNING" not in ran("tiny_sft", "model.path=FOLDER", "data.train.limit=8", DATA[2], *calm)
    monkeypatch.setattr(advice, "TOY_BYTES", 1000)  # so that this one is no toy, whose data may be a toy's
    assert line in ran("tiny_sft", "model.path=FOLDER", "data.train.limit=8", "seed=1", DATA[2])
    lora = ["sft", "model=pretrained_lora", *DATA]
    assert "adapters take about train.learning_rate=0.0002\n" in ran(*lora)
    assert "WARNING" not in ran(*lora, *calm, "train.learning_rate=2e-4")
    lion = ["sft", "model=pretrained", *DATA, *calm, "train.optimizer=lion"]
    line = (
        "WARNING: sft's learning rate 2e-05 is for AdamW; lion takes a third to a tenth of it: train.learning_rate=RATE"
    )
    assert f"{line}\n" in ran(*lion)
    assert "WARNING" not in ran(*lion, "train.learning_rate=5e-6")


def test_a_rate_for_adamw_is_told_whosever_the_recipe_is(ran: Callable[..., str], tmp_path: Path) -> None:
    """A toy's is for AdamW too, and so is the one that a recipe of the user's own leaves as it is."""
    toy = ["tiny_sft", "data.train.limit=8", "batch.size=4", "train.max_steps=1"]
    toy += ["train.warmup_ratio=0", "train.warmup_steps=0"]
    line = "WARNING: tiny_sft's learning rate 0.003 is for AdamW; sgd takes one of its own"
    assert line in ran(*toy, "train.optimizer=sgd")
    assert "is for AdamW" not in ran(*toy, "train.optimizer=sgd", "train.learning_rate=0.1")
    for name, rate in {"bare.yaml": "", "rated.yaml": ", learning_rate: 3.0e-6"}.items():
        (tmp_path / name).write_text(OWN.replace("RATE", rate))
    calm = [*DATA, "train.warmup_ratio=0"]
    assert "bare's learning rate 1e-05 is for AdamW; lion takes a third" in ran("bare.yaml", *calm)
    assert "is for AdamW" not in ran("rated.yaml", *calm)


OWN = """# Demonstrations by lion
defaults:
  - task: sft
  - model: pretrained
  - data: native
  - _self_

train: {optimizer: lionRATE}
"""
PIPELINE = """# Two stages with adapters
defaults:
  - task: pipeline
  - _self_

stages:
  - name: first
    recipe: sft
    set: {model: pretrained_lora, model.path: FOLDER, SHORT, train.learning_rate: 2.0e-4}
  - name: second
    recipe: dpo
    set: {model: pretrained_lora, model.path: "@first/model", SHORT}
"""
SHORT = "data.train.path: pairs.jsonl, train.max_steps: 1, train.epochs: null, batch.size: 4"


def test_a_stage_that_goes_on_from_another_is_told_its_rate_by_its_own_key(
    ran: Callable[..., str], tmp_path: Path
) -> None:
    pairs = [{"prompt": q, "chosen": "Moo.", "rejected": "No."} for q in QUESTIONS]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    (tmp_path / "two.yaml").write_text(PIPELINE.replace("SHORT", SHORT))
    told = [line for line in ran("two.yaml").splitlines() if "adapters take" in line]
    rate = "dpo's learning rate 5e-07 is for all weights; adapters take about"
    assert told == [f"WARNING: {rate} stages.second.set.train.learning_rate=5e-06"]
    (tmp_path / "two.yaml").write_text(PIPELINE.replace("SHORT", f"{SHORT}, model.lora.alpha: 32"))
    told = [line for line in ran("two.yaml").splitlines() if "sqrt(rank)" in line]
    assert [line.split(": ")[1] for line in told] == [f"stages.{name}.set.model.lora" for name in ("first", "second")]
    assert [line.split()[-1] for line in told] == [f"{line.split(': ')[1]}.rslora=false" for line in told]


def test_a_rate_of_a_recipe_for_a_machine_is_told_where_it_is_not_the_run_s(ran: Callable[..., str]) -> None:
    """Those of 8 GPUs have that of all weights, those of one GPU that of adapters."""
    here = ["launch.processes=1", "distributed.zero=null", "distributed.precision=float32", "model.quantization=none"]
    words = [*DATA, *here, "train.warmup_ratio=0"]
    line = "WARNING: sft_8x80gb's learning rate 2e-05 is for"
    assert "WARNING" not in ran("sft_8x80gb", *words)
    said = ran("sft_8x80gb", *words, "model.lora.rank=2")
    assert f"{line} all weights; adapters take about train.learning_rate=0.0002\n" in said
    assert f"{line} AdamW; lion takes a third" in ran("sft_8x80gb", *words, "train.optimizer=lion")
    line = "WARNING: sft_24gb's learning rate 0.0002 is for"
    assert "WARNING" not in ran("sft_24gb", *words)
    whole = ["model.lora.rank=0", "model.lora.alpha=8"]
    said = ran("sft_24gb", *words, *whole)
    assert f"{line} adapters; for all weights there is that of the recipe sft\n" in said
    assert "WARNING" not in ran("sft_24gb", *words, *whole, "train.learning_rate=2e-5")
    assert f"{line} AdamW; lion takes a third" in ran("sft_24gb", *words, "train.optimizer=lion")


def test_an_alpha_of_runs_that_divide_it_by_the_rank_is_told(ran: Callable[..., str]) -> None:
    """128 by 64 is the usual 2; by the rank's root it is 16."""
    words = ["tiny_sft", "model.path=FOLDER", "train.max_steps=1", "model.lora.rank=64"]
    line = "WARNING: model.lora: adapters' outputs are scaled by alpha / sqrt(rank), 16 here; for peft's and TRL's "
    usual, own = ["model.lora.alpha=128"], ["model.lora.alpha_pattern={q_proj: 128}"]
    for asked in (usual, own):
        assert f"{line}alpha / rank, 2, say model.lora.rslora=false\n" in ran(*words, *asked)
    assert "sqrt(rank)" not in ran(*words[:-1], "model.adapter=out-0/model/adapter")
    for calm in ([*usual, "model.lora.rslora=false"], ["model.lora.alpha=32"], [], ["model.lora.rank=2"]):
        assert "sqrt(rank)" not in ran(*words, *calm)


def test_the_recipes_name_their_sources() -> None:
    full = [file for file in RECIPES.glob("*.yaml") if not file.stem.startswith("tiny_") and file.stem != "evaluate"]
    assert len(full) > 10
    assert [file.stem for file in full if not re.search(r"arXiv:\d{4}\.\d{5}", file.read_text())] == []
