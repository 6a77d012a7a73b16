"""Write the table "planned against measured" of recipes/memory.md: python scripts/write_measured.py

Tiny models on a CPU, in this process: each run is planned, and run with all its tensors counted.
"""

import json
import os
import re
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import yaml

from alignment.cli.compose import composing, resolve, single
from alignment.config.model import ModelConfig
from alignment.distributed.placement import WHOLE
from alignment.models.load import load_language_model, save_model
from alignment.models.tokenizer import load_tokenizer
from alignment.plan.measured import Measured, measure
from alignment.plan.roles import Counts

PAGE = Path(__file__).parents[1] / "recipes" / "memory.md"
HEAD = "| run | without checkpointing | with it |"
SHAPE = "model.init={model_type: llama, hidden_size: 64, intermediate_size: 192, num_hidden_layers: 6, "
SHAPE += "num_attention_heads: 4, num_key_value_heads: 2, max_position_embeddings: 512}"
WIDE = SHAPE.replace("hidden_size: 64, intermediate_size: 192", "hidden_size: 128, intermediate_size: 512")
COMMON = [SHAPE, "batch.size=8", "train.eval_every=0", "train.warmup_steps=0", "checkpoint.every=0"]
COMMON += ["log.progress=false", "distributed.device=cpu", "batch.max_tokens=512"]  # four rows, two pairs
ROWS = ["data=native", "data.eval.path=null", "data.max_length=128", "data.max_prompt_length=64", "train.max_steps=2"]
PAIRS = [*ROWS, "batch.size=4", "data.train.path=pairs.jsonl"]
DRAWN = ["data.train.limit=32", "data.eval.limit=4", "data.max_prompt_length=16", "gold=null", "log.samples=0"]
DRAWN += ["generation.max_new_tokens=32", "train.max_steps=1", "ppo.epochs=2", "batch.size=16"]
DRAWN += ["batch.max_tokens=576"]  # which twelve replies fill, or four groups of four
LORA = "model.lora.rank=4"
RUNS = {
    "SFT": ["tiny_sft", *ROWS, "data.train.path=rows.jsonl"],
    "reward model": ["tiny_reward", *PAIRS],
    "DPO": ["tiny_dpo", *PAIRS],
    "ORPO": ["tiny_orpo", *PAIRS],
    "PPO, scored by a function": ["tiny_ppo", *DRAWN],
    "PPO, four models": ["tiny_ppo", *DRAWN, "reward.path=reward/model", "reward.function=null"],
    "GRPO": ["tiny_grpo", *DRAWN, "num_samples=4"],
}
WITH_LORA = {f"{name}, LoRA": [*words, LORA] for name, words in RUNS.items() if "four" not in name}
ONE_BACKBONE = {"PPO, LoRA on one backbone": [*RUNS["PPO, scored by a function"], LORA, "roles.share=lora"]}
NF4, INT8 = (["model.path=base", LORA, f"model.quantization={kind}"] for kind in ("nf4", "int8"))
QUANTIZED = {
    "SFT, QLoRA (nf4)": [*RUNS["SFT"], *NF4],
    "reward model, QLoRA": [*RUNS["reward model"], *NF4],
    "DPO, QLoRA": [*RUNS["DPO"], *NF4],
    "DPO, LoRA on int8": [*RUNS["DPO"], *INT8],
    "PPO, QLoRA on one backbone": [*ONE_BACKBONE["PPO, LoRA on one backbone"], *NF4],
    "GRPO, QLoRA": [*RUNS["GRPO"], *NF4],
}


def measured(words: list[str], folder: str, counts: Counts) -> Measured:
    recipe, *own = words
    common = COMMON[1:] if "model.path=base" in own else COMMON
    with composing([], recipe), redirect_stdout(StringIO()):
        return measure(resolve(single(recipe, [*common, *own, f"output_dir={folder}"])), counts)


def cell(found: Measured) -> str:
    return f"{found.plan.total / 1e6:.1f} planned, {found.alive / 1e6:.1f} alive: {found.ratio:.2f}"


def table() -> str:
    counts, lines = Counts(), [HEAD, "|---|---|---|"]
    measured(RUNS["reward model"], "reward", counts)
    save_base()
    for name, words in {**RUNS, **WITH_LORA, **ONE_BACKBONE, **QUANTIZED}.items():
        both = [[*words, f"model.gradient_checkpointing={value}"] for value in ("false", "true")]
        cells = [cell(measured(each, f"run{len(lines)}_{number}", counts)) for number, each in enumerate(both)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    return "\n".join(lines)


def save_base() -> None:
    """A model of random weights to pack, wide enough for blocks of 64."""
    config = ModelConfig(init=yaml.safe_load(WIDE.removeprefix("model.init=")))
    tokenizer = load_tokenizer(config)
    torch.manual_seed(0)
    save_model(load_language_model(config, tokenizer, WHOLE), tokenizer, Path("base"))


def main() -> None:
    with TemporaryDirectory() as folder:
        os.chdir(folder)
        text = " ".join(["the cow says moo"] * 200)
        pairs = [{"prompt": str(i), "chosen": text, "rejected": f"no {text}"} for i in range(32)]
        rows = [{"prompt": each["prompt"], "completion": each["chosen"]} for each in pairs]
        for name, each in {"pairs": pairs, "rows": rows}.items():
            Path(f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in each))
        lines = table()
    page = PAGE.read_text()
    before = re.search(rf"^{re.escape(HEAD)}\n(\|.*\n)+", page, re.MULTILINE)
    assert before is not None
    PAGE.write_text(page.replace(before[0], f"{lines}\n"))


if __name__ == "__main__":
    main()
