"""Recipes of real models for a machine: each fits by its plan, and runs with a tiny model of the same architecture."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerBase

from alignment.cli.plan import SHAPES, composed
from alignment.plan.estimate import plan_of, planned
from alignment.plan.hardware import named
from alignment.plan.page import gb
from alignment.plan.roles import Counts

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "recipes" / "memory.md"
COMMAND = str(Path(sys.executable).with_name("alignment"))
CARDS = {"24gb": "1x24GB", "8x80gb": "8x80GB"}
METHODS = ("sft", "reward", "dpo", "ppo", "grpo")
FAMILY = {
    "llama-2-7b": "llama2",
    "llama-3-8b": "llama3",
    "mistral-7b": "mistral",
    "qwen2.5-7b": "qwen",
    "qwen3-8b": "qwen3",
    "gemma-2-9b": "gemma",
    "gemma-3-1b": "gemma",
    "smollm2-1.7b": "qwen",
}  # and its tokenizer's layout
FAST = (("llama-3-8b", "dpo", "24gb"), ("llama-3-8b", "dpo", "8x80gb"), ("llama-2-7b", "ppo", "24gb"))
ALL = [(model, method, card) for model in FAMILY for method in METHODS for card in CARDS]
SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "head_dim": 16, "initializer_range": 0.1}


@pytest.mark.parametrize(
    ("model", "method", "card"), [pytest.param(*each, marks=() if each in FAST else pytest.mark.slow) for each in ALL]
)
def test_it_fits_and_takes_what_the_page_says(model: str, method: str, card: str) -> None:
    hardware = named(CARDS[card])
    plan = plan_of(planned(composed(f"{method}_{card}", [f"model={model}"], [], None)), hardware, Counts())
    assert plan.fits and plan.hardware.processes == hardware.processes
    shown = re.search(rf"^\| {card} \|.*\n(?:\|.*\n)*?\| {re.escape(model)} \|(.*)\|$", PAGE.read_text(), re.MULTILINE)
    assert shown is not None, "python scripts/write_plans.py"
    assert shown[1].split("|")[METHODS.index(method)].strip() == gb(plan.total), "python scripts/write_plans.py"


def test_the_page_has_each_model_and_each_method() -> None:
    for card in CARDS:
        table = re.search(rf"^\| {card} \|(.*)\|\n\|-.*\n((?:\|.*\n)+)", PAGE.read_text(), re.MULTILINE)
        assert table is not None and tuple(map(str.strip, table[1].split("|"))) == METHODS
        assert {line.split("|")[1].strip() for line in table[2].splitlines()} == set(FAMILY)


def test_every_preset_of_a_model_has_its_shape() -> None:
    real = {path.stem for path in (ROOT / "conf" / "model").glob("*.yaml")} - {"tiny", "pretrained", "pretrained_lora"}
    assert real == set(FAMILY) and all((SHAPES / name / "config.json").is_file() for name in real)


def stand_in(folder: Path, model: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """A tiny model that has all of the real one's config but its sizes."""
    shape = json.loads((SHAPES / model / "config.json").read_text())
    heads = 4, max(1, 4 * shape["num_key_value_heads"] // shape["num_attention_heads"])
    shape |= {key: value for key, value in SMALL.items() if key != "head_dim" or "head_dim" in shape}
    shape |= {"num_attention_heads": heads[0], "num_key_value_heads": heads[1], "vocab_size": len(tokenizer)}
    shape |= {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    shape |= {"sliding_window": 16} if shape.get("sliding_window") else {}
    torch.manual_seed(0)
    config = AutoConfig.for_model(shape.pop("model_type"), **shape)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.mark.parametrize(
    ("model", "card"),
    [
        pytest.param(model, card, marks=() if (model, card) == ("llama-3-8b", "24gb") else pytest.mark.slow)
        for model in FAMILY
        for card in CARDS
    ],
)
def test_three_steps(model: str, card: str, family: Callable[[str], PreTrainedTokenizerBase], tmp_path: Path) -> None:
    """Each method, the 8 GPUs' on two processes under their stage; PPO and GRPO with the reward model made before."""
    stand_in(tmp_path / "model", model, family(FAMILY[model]))
    pairs = [{"prompt": f"What is {n}?", "chosen": f"It is {n}.", "rejected": "No."} for n in range(8)]
    rows = {"reward": pairs, "dpo": pairs, "ppo": [{"prompt": row["prompt"]} for row in pairs]}
    rows |= {"sft": [{"prompt": row["prompt"], "completion": row["chosen"]} for row in pairs], "grpo": rows["ppo"]}
    for method in METHODS:
        (tmp_path / f"{method}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[method]))
        words = [f"model={model}", f"model.path={tmp_path}/model", f"data.train.path={tmp_path}/{method}.jsonl"]
        words += ["batch.size=4", "train.max_steps=3", "log.progress=false", f"output_dir={tmp_path}/{method}_run"]
        words += ["train.warmup_ratio=0", "batch.max_tokens=512", "data.max_length=256", "data.max_prompt_length=128"]
        words += ["launch.processes=2", "distributed.device=cpu"] if card == "8x80gb" else []
        if method in ("ppo", "grpo"):
            words += [f"reward.path={tmp_path}/reward_run", "generation.max_new_tokens=8", "num_samples=2"]
            words += ["ppo.mini_batches=1"]
        ran = subprocess.run([COMMAND, "run", f"{method}_{card}", *words], capture_output=True, text=True, check=False)
        assert ran.returncode == 0, f"{method}: {ran.stderr[-2000:]}"
        logged = (tmp_path / f"{method}_run" / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in logged] == [1, 2, 3]
