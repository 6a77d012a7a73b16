"""Plans of runs that the tables of recipes/memory.md have none of, in which something else is the most: the update of a
large weight, few tokens beside large weights, what is made of weights to save them, texts beside replies."""

import json
from pathlib import Path

import pytest
from measured_runs import FULL, GRPO, LORA, PPO, checkpointing, measured, write_inputs

from alignment.cli.plan import composed
from alignment.plan.estimate import plan_of, planned
from alignment.plan.hardware import named
from alignment.plan.host import host_of
from alignment.plan.roles import Counts

COUNTS = Counts()


def shape(**own: object) -> str:
    sizes = {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 6, "num_attention_heads": 4}
    made = {"model_type": "llama", **sizes, "num_key_value_heads": 2, "max_position_embeddings": 512} | own
    return f"model.init={json.dumps(made).replace(chr(34), '')}"


SFT, DPO, REWARD = ([*FULL[name], "data.template=none"] for name in ("SFT", "DPO", "reward model"))
ROW = "batch.size=1"
SHORT = ["data.max_length=16", "data.max_prompt_length=8", "batch.size=4", "batch.max_tokens=16"]
LARGE = shape(vocab_size=16000, hidden_size=256, num_hidden_layers=1, tie_word_embeddings=False)
FLAT = shape(hidden_size=512, intermediate_size=256, num_hidden_layers=1)
BASE = ["model.path=base", LORA, ROW]
BOTH = "model.lora.modules_to_save=[embed_tokens,lm_head]"
TEXTS = ["ptx.weight=0.1", "ptx.size=4", "ptx.data.max_length=130", "ptx.data.max_prompt_length=16"]
TEXTS += ["ptx.data.format=native", "ptx.data.train.path=rows.jsonl", "ptx.data.train.limit=32"]
TEXTS.append("ptx.data.template=none")
REPLIES = ["data.train.limit=8", "data.eval.limit=2", "batch.size=8", "num_samples=2", "generation.max_new_tokens=60"]
ON_HEAD = [LORA, "model.lora.targets=[q_proj,lm_head]"]
MOE = {"moe_intermediate_size": 256, "shared_expert_intermediate_size": 64, "num_experts": 8, "num_hidden_layers": 2}
EXPERTS = shape(model_type="qwen2_moe", num_experts_per_tok=2, **MOE)
DORA = [*SFT, *BASE, "model.lora.dora=true"]
RUNS = {
    "adafactor, large embeddings": [*SFT, LARGE, *SHORT, "train.optimizer=adafactor"],
    "adafactor, a reward model": [*REWARD, LARGE, *SHORT, "train.optimizer=adafactor"],
    "adamw_bf16": [*SFT, ROW, "train.optimizer=adamw_bf16"],
    "adamw_bf16, a weight of more than one part": [*SFT, LARGE, ROW, "train.optimizer=adamw_bf16"],
    "muon, wide": [*SFT, FLAT, *SHORT, "train.optimizer=muon"],
    "few tokens, wide": [*SFT, FLAT, ROW],
    "few tokens, wide, by sgd": [*SFT, FLAT, ROW, "train.optimizer=sgd"],
    "few tokens, wide, of several passes": [*SFT, FLAT, "batch.size=2", "batch.max_tokens=128"],
    "few tokens, wide, of pairs": [*DPO, FLAT, ROW, "data.max_length=32", "data.max_prompt_length=16"],
    "trained whole beside LoRA": [*SFT, *BASE, BOTH],
    "trained whole beside QLoRA": [*SFT, *BASE, BOTH, "model.quantization=nf4"],
    "trained whole beside LoRA in bfloat16": [*SFT, *BASE, BOTH, "distributed.precision=bfloat16"],
    "trained whole beside LoRA, left apart": [*SFT, *BASE, BOTH, "model.lora.merge=false"],
    "LoRA in bfloat16, saved in float32": [*SFT, *BASE, "distributed.precision=bfloat16"],
    "QLoRA in bfloat16, saved in float32": [*SFT, *BASE, "distributed.precision=bfloat16", "model.quantization=nf4"],
    "DoRA on 4 bits": [*DORA, "model.quantization=nf4"],
    "DoRA on 8 bits": [*DORA, "model.quantization=int8"],
    "LoRA on a large head": [*SFT, LARGE, ROW, *ON_HEAD],
    "LoRA on the head": [*SFT, *BASE, *ON_HEAD],
    "QLoRA on the head": [*SFT, *BASE, *ON_HEAD, "model.quantization=nf4"],
    "LoRA on the head in bfloat16": [*SFT, *BASE, *ON_HEAD, "distributed.precision=bfloat16"],
    "LoRA on experts": [*SFT, EXPERTS, ROW, LORA, "model.lora.target_parameters=[experts.gate_up_proj]"],
    "a checkpoint in the background": [*SFT, LARGE, *SHORT, "checkpoint.every=1", "checkpoint.background=true"],
    "ranges": [*SFT, LARGE, *SHORT, "log.ranges_every=1"],
    "GRPO with texts": [*GRPO, *REPLIES, *TEXTS, LORA, "batch.max_tokens=512", "train.max_steps=2"],
    "PPO with texts": [*PPO, *TEXTS],
}
OFTEN = ["adamw_bf16", "few tokens, wide, by sgd", "trained whole beside QLoRA", "LoRA in bfloat16, saved in float32"]
OFTEN += ["DoRA on 8 bits", "adafactor, a reward model", "QLoRA on the head", "a checkpoint in the background"]


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in OFTEN else pytest.mark.slow) for name in RUNS])
def test_a_plan_is_what_is_alive(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_inputs({name: RUNS[name]})
    is_on = not name.startswith(("GRPO", "PPO"))  # so that layers are not the most
    found = measured(checkpointing(RUNS[name], is_on=is_on), "run", COUNTS)
    assert 0.97 < found["planned"] / found["alive"] < 1.1, found


def test_what_trains_whole_beside_an_adapter_is_saved_with_the_model_and_with_the_adapter() -> None:
    """Of Llama 3 8B in bfloat16: embeddings and head of 128,256 pieces and 4,096 numbers each."""
    words = ["model.lora.rank=16"]
    plain, both = (
        host_of(plan_of(planned(composed("sft", each, [], "llama-3-8b")), named("1x80GB"), COUNTS))
        for each in (words, [*words, BOTH])
    )
    adapter, tables = 2 * 41_943_040, 2 * 2 * 128_256 * 4_096
    assert plain.model == pytest.approx(2 * 8_030_261_248 + adapter, rel=1e-6)
    assert both.model == pytest.approx(plain.model + tables, rel=1e-6)
    assert both.saving == pytest.approx(2 * 8_030_261_248, rel=1e-6)
