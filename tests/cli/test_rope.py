"""The command with `model.rope`: trained beyond a model's positions, gone on with, and refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from alignment.toy import tokenizer_path
from tests.cli.conftest import Ended

SHORT = ("model.init.max_position_embeddings=64", "model.init.hidden_size=32", "model.init.intermediate_size=48")
FEW = ("batch.size=4", "log.progress=false", "data.eval.limit=8", "data.train.limit=32", "checkpoint.every=1")
STEPS = ("train.schedule=constant", "train.warmup_steps=0", "train.eval_every=0", "output_dir=out")
TOKENIZER = (f"model.tokenizer={tokenizer_path()}",)
YARN = ("model.rope.rope_type=yarn", "model.rope.factor=4")


@pytest.mark.parametrize("more", [(), ("model.lora.rank=2", "model.gradient_checkpointing=true")], ids=["all", "lora"])
def test_a_run_goes_on_with_its_scaling_to_the_same_bits(
    more: tuple[str, ...], alignment: Callable[..., Ended], families: Path
) -> None:
    start = (f"model.path={families / 'small'}", *more) if more else SHORT
    words = ("run", "tiny_dpo", *start, *YARN, *FEW, *STEPS, *more)
    for steps in (1, 2):
        ended = alignment(*words, f"train.max_steps={steps}")
        assert ended.code == 0, ended.err
    ended = alignment(*words, "train.max_steps=2", "output_dir=whole")
    assert ended.code == 0, ended.err
    parts, whole = (load_file(f"{run}/model/model.safetensors") for run in ("out", "whole"))
    assert parts.keys() == whole.keys() and all(torch.equal(parts[name], whole[name]) for name in whole)
    config = json.loads(Path("out/model/config.json").read_text())
    own = 256 if more else 64
    assert config["rope_parameters"] | {"rope_theta": 0} == {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": own,
        "rope_theta": 0,
    }
    assert config["max_position_embeddings"] == 4 * own
    model: Any = AutoModelForCausalLM.from_pretrained("out/model")
    assert model.model.rotary_emb.attention_scaling > 1.1
    ended = alignment(*words, "train.max_steps=3", "model.rope.factor=2")
    assert ended.code == 2 and "model.rope.factor" in ended.err[-1], ended.err


def test_lengths_are_held_against_what_the_scaling_reaches(alignment: Callable[..., Ended]) -> None:
    asked = ("run", "tiny_sft", *SHORT, "model.init.max_position_embeddings=8", *FEW, *STEPS, "train.max_steps=1")
    ended = alignment(*asked)
    assert ended.code == 0 and "reaches beyond the 8 positions" in ended.out.replace("\n", " ")
    ended = alignment(*asked, "model.rope.rope_type=linear", "model.rope.factor=64", "output_dir=scaled")
    said = ended.out.replace("\n", " ")
    assert ended.code == 0 and "reaches beyond" not in said
    assert "model.rope: model.init is made for 512 positions, by linear (factor 64) from 8 on" in said


@pytest.mark.parametrize("verb", ["run", "plan", "check"])
def test_a_model_without_rotary_positions_is_refused(verb: str, alignment: Callable[..., Ended]) -> None:
    hf = AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2", n_embd=32, n_layer=1, n_head=2))
    hf.save_pretrained("gpt2")
    ended = alignment(verb, "tiny_sft", "model=pretrained", "model.path=gpt2", *TOKENIZER, *YARN, "output_dir=out")
    assert ended.code == 2
    assert "model.rope.rope_type must be null for a model without rotary positions" in ended.err[-1]
    assert not Path("out").exists()


def test_a_plan_and_a_check_are_of_the_scaled_model(alignment: Callable[..., Ended]) -> None:
    ended = alignment("plan", "tiny_dpo", *YARN, "--for", "1x24GB")
    assert ended.code == 0 and "made for 16384 positions" in ended.out.replace("\n", " "), ended.err
    ended = alignment("check", "tiny_dpo", *SHORT, *YARN, *FEW)
    assert "the model knows 256 positions" in ended.out.replace("\n", " "), ended.err


def test_an_adapter_goes_on_with_the_scaling_that_it_was_trained_with(
    alignment: Callable[..., Ended], families: Path
) -> None:
    """Its base has none, and its own files have no place for it: the model beside it has."""
    base = f"model.path={families / 'small'}"
    ended = alignment("run", "tiny_sft", base, "model.lora.rank=2", *YARN, *FEW, *STEPS, "train.max_steps=1")
    assert ended.code == 0, ended.err
    words = ("run", "tiny_sft", "model.adapter=out/model/adapter", *FEW, *STEPS, "train.max_steps=1", "output_dir=next")
    ended = alignment(*words)
    assert ended.code == 2
    assert "model.rope must be given beside model.adapter=out/model/adapter" in ended.err[-1], ended.err
    assert "rope_type: yarn" in ended.err[-1] and not Path("next").exists()
    ended = alignment(*words, *YARN)
    assert ended.code == 0, ended.err
    assert json.loads(Path("next/model/config.json").read_text())["max_position_embeddings"] == 1024


def test_a_server_that_is_started_apart_is_told_by_its_user(alignment: Callable[..., Ended]) -> None:
    vllm = ("generation.engine=vllm", "generation.vllm.timeout_s=0", "generation.vllm.port=1", "launch.vllm=0")
    ended = alignment("run", "tiny_grpo", *SHORT, *YARN, *FEW, *vllm, "reward.function=alignment.toy.gold")
    assert ended.code == 2  # for there is none
    told = ended.out.replace("\n", " ")
    assert "WARNING: model.rope: the server of generation.vllm must turn positions as the policy does, by" in told
    assert '"rope_type": "yarn"' in told and '"max_position_embeddings": 256' in told


def test_an_evaluation_reads_a_run_and_its_adapter_by_the_scaling_that_it_was_trained_with(
    alignment: Callable[..., Ended], families: Path
) -> None:
    """Which the adapter's own files, and its base, do not have."""
    base = f"model.path={families / 'small'}"
    ended = alignment("run", "tiny_sft", base, "model.lora.rank=2", *YARN, *FEW, *STEPS, "train.max_steps=1")
    assert ended.code == 0, ended.err
    rows = [{"prompt": "hello", "completion": "fine " * 40}, {"prompt": "the user", "completion": "how are you? " * 9}]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    three = f"runs={{run: out, adapter: out/model/adapter, base: {families / 'small'}}}"
    words = ("evaluate", three, "data.eval.path=rows.jsonl", "num_samples=0")
    ended = alignment("run", *words, "output_dir=compared")
    assert ended.code == 0, ended.err
    told = "model.rope: out/model/adapter was trained with the RoPE scaling in out/model, by which it is read"
    assert ended.out.replace("\n", " ").count(told) == 1
    run, adapter, plain = json.loads(Path("compared/summary.json").read_text())["methods"]
    assert adapter["nll"]["mean"] == pytest.approx(run["nll"]["mean"], rel=1e-5)
    assert plain["nll"]["mean"] != pytest.approx(run["nll"]["mean"], rel=1e-3)
    ended = alignment("check", *words)
    assert ended.code == 0 and ended.out.count("packed == one by one") == 3
    assert ended.out.replace("\n", " ").count("the model knows 1024 positions") == 2
    vllm = ("generation.engine=vllm", "generation.vllm.timeout_s=0", "generation.vllm.port=1")
    for who, is_told in (("out/model/adapter", True), ("out", False)):
        ended = alignment("run", "evaluate", f"runs={{m: {who}}}", "data.eval.path=rows.jsonl", *vllm)
        assert ended.code == 2 and ("the server of generation.vllm must turn positions" in ended.out) is is_told


def test_what_there_is_to_replace_is_said(alignment: Callable[..., Ended], families: Path) -> None:
    start = ("run", "tiny_sft", f"model.path={families / 'small'}", *YARN, *FEW, *STEPS, "train.max_steps=1")
    for words, is_in_vain in (((), False), (("model.rope.replace=true", "output_dir=other"), True)):
        ended = alignment(*start, *words)
        assert ended.code == 0, ended.err
        assert ("model.rope.replace has nothing to replace there" in ended.out.replace("\n", " ")) is is_in_vain


def test_a_check_of_a_model_s_folder_is_of_the_scaled_model(alignment: Callable[..., Ended], families: Path) -> None:
    """And held against transformers, which is told the same."""
    ended = alignment("check", "tiny_sft", f"model.path={families / 'small'}", *YARN, *FEW)
    said = ended.out.replace("\n", " ")
    assert "ok   packed == one by one" in said and "the model knows 1024 positions" in said, ended.err
