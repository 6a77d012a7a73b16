"""The plan of a run against the tensors that are alive in it, counted as the run makes and drops them.

The rows are as long as their limits admit, as a plan takes them to be. A plan refuses runs and promises that they fit:
it may be a tenth above what is counted, and below it by no more than what rounding of rows and metrics come to.
"""

import json
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from alignment.cli.compose import composing, resolve, single
from alignment.config.model import ModelConfig
from alignment.config.run import RunConfig
from alignment.distributed.placement import WHOLE
from alignment.models.load import load_language_model, save_model
from alignment.plan.measured import Measured, measure
from alignment.plan.roles import Counts
from alignment.tasks.run import execute

INIT = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 6}
INIT |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512}
COMMON = [
    f"model.init={{{', '.join(f'{key}: {value}' for key, value in INIT.items())}}}",
    *("batch.size=8", "train.eval_every=0", "train.warmup_steps=0", "checkpoint.every=0"),
    *("log.progress=false", "distributed.device=cpu"),
]
LONG = " ".join(["the cow says moo"] * 200)
ROWS = ["data=native", "data.eval.path=null", "data.max_length=128", "data.max_prompt_length=64", "train.max_steps=2"]
IN_ONE, IN_TWO = "batch.max_tokens=1024", "batch.max_tokens=512"  # passes of a step of eight rows as they are
BY_FOUR = "batch.max_tokens=576"  # four groups of four replies, which fill it
PAIRS = [*ROWS, "batch.size=4", "data.train.path=pairs.jsonl"]
DRAWN = ["data.train.limit=32", "data.eval.limit=4", "data.max_prompt_length=16", "gold=null", "log.samples=0"]
DRAWN += ["generation.max_new_tokens=32", "train.max_steps=1", "ppo.epochs=2", "batch.size=16", IN_TWO]
LORA = ["model.lora.rank=4"]
LOMO = ["train.optimizer=lomo", "train.max_grad_norm=inf"]
KEPT, MADE_AGAIN = "model.gradient_checkpointing=false", "model.gradient_checkpointing=true"
COUNTS = Counts()  # of all tests: what two of them plan is counted once


def composed(recipe: str, words: list[str], folder: Path) -> RunConfig:
    drawn = not any(word.startswith("model.path=") for word in words)
    return resolve(single(recipe, [*COMMON[not drawn :], *words, f"output_dir={folder}"]))


def both(recipe: str, words: list[str], folder: Path) -> Measured:
    with composing([], recipe):
        return measure(composed(recipe, words, folder), COUNTS)


def require_alike(found: Measured) -> None:
    assert 0.97 < found.ratio < 1.1, (found.ratio, found.plan.phases)


@pytest.fixture(autouse=True)
def _rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pairs = [{"prompt": str(i), "chosen": LONG, "rejected": f"no {LONG}"} for i in range(32)]
    rows = [{"prompt": each["prompt"], "completion": each["chosen"]} for each in pairs]
    for name, each in {"pairs": pairs, "rows": rows}.items():
        Path(f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in each))


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ("tiny_sft", [*ROWS, "data.train.path=rows.jsonl", IN_ONE, MADE_AGAIN]),
        ("tiny_sft", [*ROWS, "data.train.path=rows.jsonl", IN_TWO, KEPT]),
        ("tiny_reward", [*PAIRS, IN_TWO, KEPT]),
        ("tiny_reward", [*PAIRS, IN_TWO, MADE_AGAIN]),
        ("tiny_dpo", [*PAIRS, IN_TWO, KEPT]),
        ("tiny_dpo", [*PAIRS, IN_TWO, MADE_AGAIN]),
        ("tiny_dpo", [*PAIRS, IN_ONE, KEPT, *LORA]),
        ("tiny_orpo", [*PAIRS, IN_ONE, MADE_AGAIN]),
        ("tiny_ppo", [*DRAWN, MADE_AGAIN]),
        ("tiny_sft", [*ROWS, "data.train.path=rows.jsonl", IN_ONE, MADE_AGAIN, *LOMO]),
        pytest.param("tiny_dpo", [*PAIRS, IN_ONE, KEPT, *LOMO], marks=pytest.mark.slow),
        pytest.param("tiny_ppo", [*DRAWN, "batch.max_tokens=1536", MADE_AGAIN, *LOMO], marks=pytest.mark.slow),
        pytest.param("tiny_sft", [*ROWS, "data.train.path=rows.jsonl", IN_TWO, KEPT, *LORA], marks=pytest.mark.slow),
        pytest.param("tiny_reward", [*PAIRS, IN_ONE, MADE_AGAIN, *LORA], marks=pytest.mark.slow),
        pytest.param("tiny_orpo", [*PAIRS, IN_TWO, KEPT], marks=pytest.mark.slow),
        pytest.param("tiny_ppo", [*DRAWN, KEPT], marks=pytest.mark.slow),
        pytest.param("tiny_ppo", [*DRAWN, *LORA, KEPT], marks=pytest.mark.slow),
        pytest.param("tiny_ppo", [*DRAWN, *LORA, MADE_AGAIN], marks=pytest.mark.slow),
        pytest.param("tiny_ppo", [*DRAWN, *LORA, "roles.share=lora", MADE_AGAIN], marks=pytest.mark.slow),
        pytest.param("tiny_ppo", [*DRAWN, *LORA, "roles.share=lora", KEPT], marks=pytest.mark.slow),
        pytest.param("tiny_grpo", [*DRAWN, "num_samples=4", IN_ONE, KEPT], marks=pytest.mark.slow),
        pytest.param("tiny_grpo", [*DRAWN, "num_samples=4", IN_ONE, MADE_AGAIN], marks=pytest.mark.slow),
        pytest.param("tiny_grpo", [*DRAWN, "num_samples=4", BY_FOUR, KEPT], marks=pytest.mark.slow),
        pytest.param("tiny_grpo", [*DRAWN, "num_samples=4", BY_FOUR, MADE_AGAIN, *LORA], marks=pytest.mark.slow),
    ],
)
def test_a_plan_is_what_is_alive(recipe: str, words: list[str], tmp_path: Path) -> None:
    require_alike(both(recipe, words, tmp_path / "run"))


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ("tiny_dpo", [*PAIRS, IN_ONE, KEPT, "model.quantization=nf4"]),
        pytest.param("tiny_dpo", [*PAIRS, IN_TWO, MADE_AGAIN, "model.quantization=nf4"], marks=pytest.mark.slow),
        ("tiny_dpo", [*PAIRS, IN_TWO, MADE_AGAIN, "model.quantization=int8"]),
        pytest.param("tiny_dpo", [*PAIRS, IN_TWO, KEPT, "model.quantization=int8"], marks=pytest.mark.slow),
        pytest.param("tiny_dpo", [*PAIRS, IN_ONE, KEPT, "model.quantization=int8"], marks=pytest.mark.slow),
        pytest.param("tiny_reward", [*PAIRS, IN_TWO, KEPT, "model.quantization=nf4"], marks=pytest.mark.slow),
        pytest.param("tiny_grpo", [*DRAWN, "num_samples=4", KEPT, "model.quantization=nf4"], marks=pytest.mark.slow),
        pytest.param("tiny_ppo", [*DRAWN, KEPT, "roles.share=lora", "model.quantization=nf4"], marks=pytest.mark.slow),
    ],
)
def test_a_base_that_is_packed(
    recipe: str, words: list[str], tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    torch.manual_seed(0)
    wide = {**INIT, "hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4}
    save_model(load_language_model(ModelConfig(init=wide), tokenizer, WHOLE), tokenizer, tmp_path / "base")
    require_alike(both(recipe, [*words, *LORA, f"model.path={tmp_path / 'base'}"], tmp_path / "run"))


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [KEPT, MADE_AGAIN])
def test_four_models(checkpointing: str, tmp_path: Path) -> None:
    with composing([], "tiny_reward"):
        execute(composed("tiny_reward", [*PAIRS, IN_TWO], tmp_path / "reward"))
    words = [*DRAWN, f"reward.path={tmp_path / 'reward' / 'model'}", "reward.function=null", checkpointing]
    found = both("tiny_ppo", words, tmp_path / "run")
    assert [each.role.key for each in found.plan.roles] == ["model.init", "reference", "critic", "reward.path"]
    require_alike(found)
