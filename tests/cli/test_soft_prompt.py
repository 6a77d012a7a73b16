"""The command with `model.soft_prompt`: a run that goes on to the same bits, what it leaves, and what is refused."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from alignment.api.result import Run
from tests.cli.conftest import Ended

SHORT = ("train.schedule=constant", "train.warmup_steps=0", "train.learning_rate=1e-2", "train.eval_every=0")
FEW = ("batch.size=4", "log.progress=false", "data.eval.limit=8", "data.train.limit=32", "checkpoint.every=1", *SHORT)
SCORE = "def count(prompts, replies):\n    return [float(sum(map(reply.count, 'aeiou'))) for reply in replies]\n"
REPLIES = ("generation.max_new_tokens=4", "reward.function=vowels_of_reply.count")
SOFT = ("model.path=BASE", "model.soft_prompt.tokens=6")
SLOW = pytest.mark.slow
CASES: dict[str, tuple[str, ...]] = {
    "dpo": ("tiny_dpo", *SOFT),
    "mlp": ("tiny_sft", *SOFT, "model.soft_prompt.encoder=mlp"),
    "reward": ("tiny_reward", *SOFT, "model.soft_prompt.encoder=lstm"),
    "text": ("tiny_sft", *SOFT, "model.soft_prompt.init_text=hello"),
    "quantized": ("tiny_dpo", *SOFT, "model.quantization=nf4"),
    "checkpointing": ("tiny_orpo", *SOFT, "model.gradient_checkpointing=true"),
    "kto": ("tiny_kto", *SOFT),
    "grpo": ("tiny_grpo", *SOFT, *REPLIES),
    "ppo": ("tiny_ppo", *SOFT, *REPLIES),
    "online_dpo": ("tiny_online_dpo", *SOFT, *REPLIES),
}
SHARED = ("distributed.sequence_parallel=2", "distributed.zero=1", "launch.processes=2")
QUICK = ("reward",)


def words_of(case: str, base: Path) -> tuple[str, ...]:
    Path("vowels_of_reply.py").write_text(SCORE)
    return ("run", *(word.replace("BASE", str(base)) for word in CASES[case]), *FEW)


def left(run: str) -> dict[str, torch.Tensor]:
    return load_file(f"{run}/model/adapter_model.safetensors")


@pytest.mark.parametrize("case", [case if case in QUICK else pytest.param(case, marks=SLOW) for case in CASES])
def test_a_run_goes_on_to_the_same_bits(case: str, alignment: Callable[..., Ended], families: Path) -> None:
    words = words_of(case, families / "small")
    for steps in (1, 2):
        ended = alignment(*words, f"train.max_steps={steps}", "output_dir=out")
        assert (ended.code, ended.err) == (0, []), ended.err
    assert alignment(*words, "train.max_steps=2", "output_dir=whole").code == 0
    out, whole = left("out"), left("whole")
    assert out["prompt_embeddings"].shape == (6, 32)
    assert out.keys() == whole.keys() and all(torch.equal(out[name], whole[name]) for name in whole)
    rows = [json.loads(line) for line in Path("out/metrics.jsonl").read_text().splitlines()]
    assert all(row["grad_norm"] > 0 for row in rows if "grad_norm" in row)
    assert not list(Path("out/model").glob("model*.safetensors")) and not Path("out/model/adapter").exists()
    assert alignment("export", "out", "--out", "exported").code == 0
    again = load_file("exported/adapter_model.safetensors")
    assert all(torch.equal(again[name], out[name]) for name in out)


@SLOW
@pytest.mark.parametrize("stage", [0, 1, 2])
@pytest.mark.parametrize("case", ["dpo", "mlp", "ppo"])
def test_two_processes_are_one(case: str, stage: int, alignment: Callable[..., Ended], families: Path) -> None:
    """The same rows in each step, shared out; what is summed in another order differs by what float32 rounds."""
    words = (*words_of(case, families / "small"), "train.max_steps=3")
    for name, more in {"one": (), "two": ("launch.processes=2", f"distributed.zero={stage}")}.items():
        ended = alignment(*words, *more, f"output_dir={name}")
        assert ended.code == 0, ended.err
    one, two = left("one"), left("two")
    moved = (one["prompt_embeddings"] - one["prompt_embeddings"].mean()).norm()
    assert (two["prompt_embeddings"] - one["prompt_embeddings"]).norm() < 1e-5 * moved
    rows = [map(json.loads, Path(f"{name}/metrics.jsonl").read_text().splitlines()) for name in ("one", "two")]
    norms = [[row["grad_norm"] for row in each if "grad_norm" in row] for each in rows]
    assert len(norms[0]) == 3 and norms[1] == pytest.approx(norms[0], rel=1e-4)


def test_what_a_run_leaves_is_read_compared_and_trained_on(alignment: Callable[..., Ended], families: Path) -> None:
    base = str(families / "small")
    words = words_of("dpo", families / "small")
    ended = alignment(*words, "train.max_steps=2", "output_dir=out")
    assert ended.code == 0 and re.search(r"reference: .*small without its soft prompt; what its", ended.out), ended.err
    first = json.loads(Path("out/metrics.jsonl").read_text().splitlines()[0])
    assert abs(first["rewards/margin"]) > 1e-6  # the reference has no soft prompt
    assert "PeftModel.from_pretrained" in Path("out/model/README.md").read_text()
    model, _ = Run(Path("out")).load()
    theirs: Any = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), "out/model")
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=ids).logits, theirs(input_ids=ids).logits)
    few = ("data.eval.limit=4", "num_samples=1", "generation.max_new_tokens=4")
    shown = alignment("run", "tiny_evaluate", f"runs={{before: {base}, after: out}}", "baseline=before", *few)
    assert (shown.code, shown.err) == (0, []), shown.err
    on = ("run", "tiny_dpo", "model.adapter=out", *FEW, "train.max_steps=1", "output_dir=on")
    ended = alignment(*on)
    assert ended.code == 0, ended.err
    row = json.loads(Path("on/metrics.jsonl").read_text())
    assert row["rewards/margin"] == pytest.approx(0, abs=1e-6)  # to the soft prompt as it was
    assert not torch.equal(left("on")["prompt_embeddings"], left("out")["prompt_embeddings"])


@SLOW
@pytest.mark.parametrize("recipe", ["tiny_grpo", "tiny_online_dpo"])
def test_what_draws_its_replies_begins_at_the_soft_prompt_as_it_was(
    recipe: str, alignment: Callable[..., Ended], families: Path
) -> None:
    assert alignment(*words_of("dpo", families / "small"), "train.max_steps=1", "output_dir=out").code == 0
    ended = alignment("run", recipe, "model.adapter=out", *REPLIES, *FEW, "train.max_steps=2", "output_dir=on")
    assert ended.code == 0, ended.err
    rows = [json.loads(line) for line in Path("on/metrics.jsonl").read_text().splitlines()]
    name = "kl" if recipe == "tiny_grpo" else "rewards/margin"
    assert rows[0][name] == pytest.approx(0, abs=1e-6) and rows[1][name] != 0


def test_what_does_not_go_with_it_is_refused(alignment: Callable[..., Ended], families: Path) -> None:
    def said(recipe: str, *words: str, few: tuple[str, ...] = (*FEW, "train.max_steps=1")) -> str:
        ended = alignment("run", recipe, *words, *few, "output_dir=refused")
        assert ended.code == 2 and len(ended.err) == 1 and not Path("refused").exists(), ended
        return ended.err[0]

    soft = tuple(word.replace("BASE", str(families / "small")) for word in SOFT)
    assert "must be 0 with model.lora.rank > 0: one of the two trains" in said("tiny_sft", *soft, "model.lora.rank=4")
    assert "distributed.zero must be null, 0, 1 or 2 with model.soft" in said("tiny_sft", *soft, "distributed.zero=3")
    assert "must be 0 but for a model.path that is read" in said("tiny_sft", SOFT[1])
    assert "train.embedding_lr_ratio must be 1 with model.soft_" in said(
        "tiny_sft", *soft, "train.embedding_lr_ratio=2"
    )
    assert "sequence_parallel must be 1 with model.soft" in said("tiny_sft", *soft, *SHARED)
    assert "must be 0 for rejection, which trains nothing" in said("tiny_rejection", *soft, few=())
    assert "model.soft_prompt goes with model.soft_prompt.tokens > 0" in said(
        "tiny_sft", soft[0], "model.soft_prompt.encoder=mlp"
    )
    assert "init_text goes with model.soft_prompt.encoder=none" in said(
        "tiny_sft", *soft, "model.soft_prompt.encoder=mlp", "model.soft_prompt.init_text=hello"
    )
    assert "must be 0 with generation.engine=vllm" in said("tiny_grpo", *soft, "generation.engine=vllm")
    words = words_of("dpo", families / "small")
    assert alignment(*words, "train.max_steps=1", "output_dir=out").code == 0
    assert "model.path must be a model without a soft prompt, whose weights are read alone; model.adapter=out" in said(
        "tiny_dpo", "model.path=out"
    )
    assert "model.soft_prompt must be left out beside model.adapter, whose own has 6 tokens" in said(
        "tiny_dpo", "model.adapter=out", "model.soft_prompt.tokens=7"
    )
    assert "model.lora.rank must be left out beside model.adapter, a soft prompt" in said(
        "tiny_dpo", "model.adapter=out", "model.lora.rank=4"
    )
    assert "roles.share=lora needs model.lora.rank > 0" in said("tiny_ppo", "model.adapter=out", "roles.share=lora")
