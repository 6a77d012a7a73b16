"""Runs on a base that is packed as it is read: they learn, go on to the bit, and leave whole weights."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedTokenizerBase

from alignment.cli.compose import composing, resolve, single
from alignment.config.errors import ConfigError
from alignment.config.model import LoraConfig, ModelConfig, Quantization
from alignment.distributed.engine import shape_of
from alignment.distributed.placement import WHOLE
from alignment.models.load import load_language_model, save_model
from alignment.models.tokenizer import load_tokenizer
from alignment.tasks.run import execute

SHORT = ["data.train.limit=8", "data.eval.limit=8", "batch.size=8", "batch.max_tokens=1024", "log.progress=false"]
SHORT += ["train.schedule=constant", "train.warmup_steps=0", "train.learning_rate=3e-3", "distributed.device=cpu"]
SHORT += ["train.eval_every=0", "checkpoint.every=1", "model.lora.rank=4"]
ZERO3 = ["distributed=zero3", "launch.processes=2"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerBase) -> Path:
    init = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    init |= {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.05}
    folder = tmp_path_factory.mktemp("packed") / "base"
    torch.manual_seed(0)
    save_model(load_language_model(ModelConfig(init=init), tokenizer, WHOLE), tokenizer, folder)
    return folder


def run(task: str, base: Path, folder: Path, *words: str) -> list[dict[str, Any]]:
    """The metrics of its steps."""
    with composing([], f"tiny_{task}"):
        execute(resolve(single(f"tiny_{task}", [*SHORT, f"model.path={base}", f"output_dir={folder}", *words])))
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("task", "quantization"),
    [
        ("dpo", "nf4"),
        ("reward", "int8"),
        pytest.param("sft", "int8", marks=pytest.mark.slow),
        pytest.param("orpo", "nf4", marks=pytest.mark.slow),
        pytest.param("reward", "nf4", marks=pytest.mark.slow),
    ],
)
def test_a_run_learns_goes_on_and_leaves_whole_weights(
    task: str, quantization: str, base: Path, tmp_path: Path
) -> None:
    packed = f"model.quantization={quantization}"
    at_once = run(task, base, tmp_path / "once", packed, "train.max_steps=4")
    run(task, base, tmp_path / "twice", packed, "train.max_steps=2")
    assert f"quantization: {quantization}" in (tmp_path / "twice" / "config.yaml").read_text()
    with pytest.raises(ConfigError, match=r"model\.quantization"):
        run(task, base, tmp_path / "twice", "train.max_steps=4")
    run(task, base, tmp_path / "twice", packed, "train.max_steps=4")
    once, twice = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("once", "twice"))
    assert once.keys() == twice.keys() and all(torch.equal(once[name], twice[name]) for name in once)
    assert at_once[-1]["loss"] < at_once[0]["loss"]
    auto: Any = AutoModelForSequenceClassification if task == "reward" else AutoModelForCausalLM
    model = auto.from_pretrained(tmp_path / "once" / "model")
    assert {each.dtype for each in model.parameters()} == {torch.float32}
    assert "quantization_config" not in (tmp_path / "once" / "model" / "config.json").read_text()
    assert (tmp_path / "once" / "model" / "adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("task", ["ppo", "grpo"])
def test_roles_on_a_base_that_is_shared_out_go_on_bit_for_bit(task: str, base: Path, tmp_path: Path) -> None:
    run("reward", base, tmp_path / "reward", "model.quantization=nf4", "train.max_steps=2")
    words = ["model.quantization=nf4", f"reward.path={tmp_path / 'reward'}", "reward.function=null", "gold=null"]
    words += [*ZERO3, "roles.share=lora", "generation.max_new_tokens=8", "ppo.epochs=1", "num_samples=2"]
    once = run(task, base, tmp_path / "once", *words, "train.max_steps=3")
    run(task, base, tmp_path / "twice", *words, "train.max_steps=2")
    twice = run(task, base, tmp_path / "twice", *words, "train.max_steps=3")
    assert once[-1]["grad_norm"] == twice[-1]["grad_norm"] > 0 and once[-1]["reward"] == twice[-1]["reward"] != 0
    files = [tmp_path / name / "model" / "model.safetensors" for name in ("once", "twice")]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ("ppo", []),
        pytest.param("grpo", ["num_samples=2"], marks=pytest.mark.slow),
        pytest.param("ppo", ["distributed=zero2", "launch.processes=2"], marks=pytest.mark.slow),
        pytest.param("ppo", ZERO3, marks=pytest.mark.slow),
        pytest.param("grpo", [*ZERO3, "num_samples=2"], marks=pytest.mark.slow),
    ],
)
def test_four_roles_on_one_packed_base(
    task: str, words: list[str], base: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Actor, critic and reward are adapters on it, and the reference is the base; a run's folder names its adapter."""
    packed = ["model.quantization=nf4", "train.max_steps=2"]
    run("reward", base, tmp_path / "reward", *packed)
    model = load_language_model(
        ModelConfig(path=str(base), quantization=Quantization.nf4, lora=LoraConfig(rank=4)),
        load_tokenizer(ModelConfig(path=str(base))),
        WHOLE,
    )
    weights = sum(shape_of(each).numel() for each in model.parameters())
    adapter, head = sum(each.numel() for each in model.trained().values()), model.hf.config.hidden_size
    roles = [f"reward.path={tmp_path / 'reward'}", "roles.share=lora", "reward.function=null", "gold=null"]
    short = ["generation.max_new_tokens=8", "ppo.epochs=1", "checkpoint.every=0", *words]
    capfd.readouterr()
    first, second = run(task, base, tmp_path / "run", *packed, *roles, *short)
    assert first["kl"] == 0 < second["kl"] and first["reward"] != 0 and first["grad_norm"] > 0
    others = 2 if task == "ppo" else 1
    held = (weights + others * (adapter + head)) / 1e6
    assert f"roles: {held:.2f} million weights" in capfd.readouterr().out
    if task == "ppo":
        assert first["value/loss"] != second["value/loss"]
    left = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    before = AutoModelForCausalLM.from_pretrained(base)
    assert not torch.equal(left.model.layers[0].mlp.up_proj.weight, before.model.layers[0].mlp.up_proj.weight)
    assert torch.equal(left.model.embed_tokens.weight, before.model.embed_tokens.weight)
