"""Runs that are planned and measured, for the tables of recipes/memory.md and for the tests that hold them.

Their rows are as long as their limits admit, as a plan takes them to be: texts that are cut, and replies that do not
end before they are. As one of several processes: python scripts/measured_runs.py OUT WORD ..., which writes what one
process took at the most.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from shutil import rmtree
from typing import Any
from unittest.mock import patch

import torch
import yaml
from real_model import model_folder

from alignment.cli.compose import composing, resolve, single
from alignment.config.model import ModelConfig
from alignment.config.run import RunConfig
from alignment.distributed import collectives
from alignment.distributed.placement import WHOLE
from alignment.generation import generate
from alignment.models.load import load_language_model, save_model
from alignment.models.tokenizer import load_tokenizer
from alignment.plan.measured import measure
from alignment.plan.roles import Counts
from alignment.tasks.run import execute

SHAPE = "model.init={model_type: llama, hidden_size: 64, intermediate_size: 192, num_hidden_layers: 6, "
SHAPE += "num_attention_heads: 4, num_key_value_heads: 2, max_position_embeddings: 512}"
WIDE = SHAPE.replace("hidden_size: 64, intermediate_size: 192", "hidden_size: 128, intermediate_size: 512")
COMMON = ["batch.size=8", "train.eval_every=0", "train.warmup_steps=0", "checkpoint.every=0", "log.progress=false"]
COMMON += ["distributed.device=cpu", "batch.max_tokens=512"]  # four rows, two pairs
ROWS = ["data=native", "data.eval.path=null", "data.max_length=128", "data.max_prompt_length=64", "train.max_steps=2"]
PAIRS = [*ROWS, "batch.size=4", "data.train.path=pairs.jsonl"]
DRAWN = ["data.train.limit=32", "data.eval.limit=4", "data.max_prompt_length=8", "gold=null", "log.samples=0"]
DRAWN += ["generation.max_new_tokens=32", "train.max_steps=1", "ppo.epochs=2"]
PPO = ["tiny_ppo", *DRAWN, "batch.size=16", "batch.max_tokens=576"]  # which eight prompts with two replies fill
GRPO = ["tiny_grpo", *DRAWN, "batch.size=16", "num_samples=4", "batch.max_tokens=544"]  # four with four
NO_TOKEN = 2**20  # in the place of the end, so that no reply has one
LORA = "model.lora.rank=4"
FULL = {
    "SFT": ["tiny_sft", *ROWS, "data.train.path=rows.jsonl"],
    "reward model": ["tiny_reward", *PAIRS],
    "DPO": ["tiny_dpo", *PAIRS],
    "ORPO": ["tiny_orpo", *PAIRS],
    "PPO, scored by a function": PPO,
    "PPO, four models": [*PPO, "reward.path=reward/model", "reward.function=null"],
    "GRPO": GRPO,
}
WITH_LORA = {f"{name}, LoRA": [*words, LORA] for name, words in FULL.items() if "four" not in name}
ONE_BACKBONE = {"PPO, LoRA on one backbone": [*PPO, LORA, "roles.share=lora"]}
NF4, INT8 = (["model.path=base", LORA, f"model.quantization={kind}"] for kind in ("nf4", "int8"))
QUANTIZED = {
    "SFT, QLoRA": [*FULL["SFT"], *NF4],
    "reward model, QLoRA": [*FULL["reward model"], *NF4],
    "DPO, QLoRA": [*FULL["DPO"], *NF4],
    "DPO, LoRA on int8": [*FULL["DPO"], *INT8],
    "ORPO, QLoRA": [*FULL["ORPO"], *NF4],
    "PPO, QLoRA": [*PPO, *NF4],
    "PPO, QLoRA on one backbone": [*ONE_BACKBONE["PPO, LoRA on one backbone"], *NF4],
    "GRPO, QLoRA": [*FULL["GRPO"], *NF4],
}
RUNS = {**FULL, **WITH_LORA, **ONE_BACKBONE, **QUANTIZED}
SHORT = ["data.max_length=64", "data.max_prompt_length=32", "data.template=none", "batch.max_tokens=256"]
OF_CHAT = ["data.max_prompt_length=24", "generation.max_new_tokens=64"]
OF_CHAT += ["batch.max_tokens=608"]  # which four prompts with two replies fill
REAL_NAME = "SmolLM2-135M"
REAL_FOLDER = model_folder()
MODEL = f"model.path={REAL_FOLDER}"
OWN_LIMITS = {"PPO": OF_CHAT, "GRPO": [*OF_CHAT, "batch.max_tokens=560"]}  # two prompts with four
REAL = {
    f"{name}, {REAL_NAME}": [*words, *OWN_LIMITS.get(name.partition(",")[0], SHORT), MODEL]
    for name, words in {
        **{name: words for name, words in FULL.items() if "four" not in name},
        **WITH_LORA,
        **ONE_BACKBONE,
        **{name: [word for word in words if word != "model.path=base"] for name, words in QUANTIZED.items()},
    }.items()
}
"""Of a pretrained model, which scripts/real_model.sh makes."""
STAGES = (0, 1, 2, 3)
KINDS_IN_TWO = ("SFT", "reward model", "DPO", "SFT, LoRA", "GRPO, LoRA", "PPO, LoRA on one backbone", "DPO, QLoRA")
REAL_IN_TWO = {name: words for name, words in REAL.items() if name.removesuffix(f", {REAL_NAME}") in KINDS_IN_TWO}
SIZES = {"SFT": 16, "PPO": 32, "GRPO": 32}  # of which each process has two passes; of pairs 8
IN_TWO = {
    name: [*words, f"batch.size={SIZES.get(name.partition(',')[0], 8)}"]
    for name, words in {**RUNS, **REAL_IN_TWO}.items()
    if "int8" not in name  # which ZeRO 3 refuses
}


def is_here(words: list[str]) -> bool:
    """Whether there is the pretrained model that a run is of, if it is of one."""
    return MODEL not in words or REAL_FOLDER.is_dir()


def checkpointing(words: list[str], *, is_on: bool) -> list[str]:
    return [*words, f"model.gradient_checkpointing={str(is_on).lower()}"]


def write_inputs(runs: dict[str, list[str]]) -> None:
    """In this folder, what these runs read: texts that are longer than all limits, a base to pack, a reward model."""
    text = " ".join(["the cow says moo"] * 200)
    pairs = [{"prompt": str(i), "chosen": text, "rejected": f"no {text}"} for i in range(32)]
    rows = [{"prompt": each["prompt"], "completion": each["chosen"]} for each in pairs]
    for name, each in {"pairs": pairs, "rows": rows}.items():
        Path(f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in each))
    named = {word for words in runs.values() for word in words}
    if "model.path=base" in named:
        _save_base(Path("base"))
    if "reward.path=reward/model" in named:
        with made(FULL["reward model"], "reward") as config:
            execute(config)


def _save_base(folder: Path) -> None:
    """A model of random weights to pack, wide enough for blocks of 64."""
    config = ModelConfig(init=yaml.safe_load(WIDE.removeprefix("model.init=")))
    tokenizer = load_tokenizer(config)
    torch.manual_seed(0)
    save_model(load_language_model(config, tokenizer, WHOLE), tokenizer, folder)


def measured(words: list[str], folder: str, counts: Counts) -> dict[str, float]:
    """{planned, alive}: bytes of one process; of several, those of the one that took most. Beside what `write_inputs`
    has written; the run's folder is gone when it is over, for there is a model in it."""
    with made(words, folder) as config:
        found = measure(config, counts)
    most = float(max(collectives.gathered(found.alive)))
    if collectives.is_main():
        rmtree(folder)
    return {"planned": found.plan.total, "alive": most}


@contextmanager
def made(words: list[str], folder: str) -> Iterator[RunConfig]:
    """The config of a run; inside, no reply ends before its limit, and nothing is said."""
    recipe, *own = words
    drawn = [] if any(word.startswith("model.path=") for word in own) else [SHAPE]
    endless = patch.object(generate, "end_ids", return_value=[NO_TOKEN])
    with composing([], recipe), redirect_stdout(StringIO()), endless:
        yield resolve(single(recipe, [*COMMON, *drawn, *own, f"output_dir={folder}"]))


def main() -> None:
    out, *words = sys.argv[1:]
    found: dict[str, Any] = measured(words, f"{out}_run", Counts())
    if collectives.is_main():
        Path(out).write_text(json.dumps(found))
    collectives.leave()


if __name__ == "__main__":
    main()
