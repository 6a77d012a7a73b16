"""`model.fp8` through the command: it learns, goes on bit for bit and leaves a plain model, on a CPU that stands in for
a GPU with such products; and it is refused where it cannot act."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from alignment.config import packages
from alignment.models import fp8
from alignment.runs.rows import read_rows

COMMON = ["model.init.intermediate_size=96", "data.train.limit=16", "data.eval.limit=4", "batch.size=8"]
COMMON += ["train.warmup_steps=0", "train.schedule=constant", "log.progress=false", "train.learning_rate=0.003"]
COMMON += ["checkpoint.every=1", "distributed.precision=bfloat16"]
PPO = ["generation.max_new_tokens=6", "ppo.epochs=1", "ppo.mini_batches=1", "critic.learning_rate=0.003"]
STEPS = 4
OFTEN = [("dpo", "rowwise_with_gw_hp")]
SELDOM = [
    *((task, how) for task in ("sft", "reward", "orpo", "grpo") for how in ("tensorwise", "rowwise")),
    ("dpo", "tensorwise"),
    ("ppo", "rowwise"),
    ("ppo", "rowwise_with_gw_hp"),
]


def words(task: str, how: str, out: str, steps: int = STEPS) -> list[str]:
    more = PPO if task == "ppo" else ["generation.max_new_tokens=6"] if task == "grpo" else []
    return ["run", f"tiny_{task}", *COMMON, *more, f"model.fp8={how}", f"train.max_steps={steps}", f"output_dir={out}"]


@pytest.mark.usefixtures("fp8_on_cpu")
@pytest.mark.parametrize(("task", "how"), [*OFTEN, *(pytest.param(*each, marks=pytest.mark.slow) for each in SELDOM)])
def test_it_learns_and_goes_on_bit_for_bit(task: str, how: str, alignment: Callable[..., Any], tmp_path: Path) -> None:
    ended = alignment(*words(task, how, "whole"))
    assert (ended.code, ended.err) == (0, [])
    rows = list(read_rows(tmp_path / "whole" / "metrics.jsonl"))
    if task in ("ppo", "grpo"):
        assert rows[0]["kl"] == pytest.approx(0, abs=1e-5)
    else:
        assert rows[-1]["loss"] < rows[0]["loss"]
    whole = load_file(tmp_path / "whole" / "model" / "model.safetensors")
    for steps in (STEPS // 2, STEPS):
        ended = alignment(*words(task, how, "cut", steps))
        assert (ended.code, ended.err) == (0, [])
    assert "going on from" in ended.out
    cut = load_file(tmp_path / "cut" / "model" / "model.safetensors")
    assert whole.keys() == cut.keys() and all(torch.equal(whole[key], cut[key]) for key in whole)
    auto: Any = AutoModelForSequenceClassification if task == "reward" else AutoModelForCausalLM
    loaded = auto.from_pretrained(tmp_path / "whole" / "model").state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in whole.items())


@pytest.mark.usefixtures("fp8_on_cpu")
def test_dpo_learns_as_in_bfloat16(alignment: Callable[..., Any], tmp_path: Path) -> None:
    """In the packed layout; the first loss is ln 2 in both, where policy and reference are one."""
    losses = []
    for how in ("none", "rowwise_with_gw_hp"):
        assert alignment(*words("dpo", how, how, 3)).code == 0
        losses.append([row["loss"] for row in read_rows(tmp_path / how / "metrics.jsonl") if "loss" in row])
    assert losses[1] == pytest.approx(losses[0], abs=0.02) and losses[1][1:] != losses[0][1:]
    assert losses[1][0] == pytest.approx(math.log(2), abs=1e-3)


@pytest.mark.slow
@pytest.mark.usefixtures("fp8_on_cpu")
def test_a_run_goes_on_in_other_products_where_that_is_accepted(alignment: Callable[..., Any]) -> None:
    assert alignment(*words("sft", "rowwise", "out", 1)).code == 0
    asked = words("sft", "none", "out", 2)
    ended = alignment(*asked)
    assert ended.code == 2 and "model.fp8" in ended.err[0] and "resume.accept" in ended.err[0]
    assert alignment(*asked, "resume.accept=[model.fp8]").code == 0


@pytest.mark.usefixtures("fp8_on_cpu")
def test_a_checkpoint_is_exported_where_there_is_no_torchao(
    alignment: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert alignment(*words("sft", "rowwise", "out", 1)).code == 0
    monkeypatch.setattr(fp8, "is_installed", lambda package: False)
    ended = alignment("export", "out", "--out", "exported")
    assert (ended.code, ended.err) == (0, [])
    own, exported = (load_file(tmp_path / name / "model.safetensors") for name in ("out/model", "exported"))
    assert own.keys() == exported.keys() and all(torch.equal(own[key], exported[key]) for key in own)


@pytest.mark.usefixtures("torchao")
@pytest.mark.parametrize(
    ("recipe", "asked", "line"),
    [
        (
            "tiny_dpo",
            "",
            "model.fp8 must be none but on a GPU of compute capability 8.9 or higher (H100, L40S, RTX 4090), got "
            "'rowwise' on a CPU",
        ),
        (
            "tiny_dpo",
            "distributed.precision=float32",
            "distributed.precision must be auto or bfloat16 with model.fp8=rowwise, whose products add up to numbers "
            "in it, got 'float32'",
        ),
        (
            "tiny_dpo",
            "distributed.precision=float16",
            "distributed.precision must be auto or bfloat16 with model.fp8=rowwise, whose products add up to numbers "
            "in it, got 'float16'",
        ),
        (
            "tiny_dpo",
            "distributed=zero3",
            "distributed.zero must be null, 0, 1 or 2 with model.fp8=rowwise, whose layers would keep the weights that "
            "ZeRO 3 gathers, got 3",
        ),
        (
            "tiny_dpo",
            "model.lora.rank=2",
            "model.fp8 must be none with an adapter (model.lora.rank, model.adapter), of whose base its layers would "
            "make gradients too, got 'rowwise'",
        ),
        (
            "tiny_dpo",
            "model.path=small model.quantization=nf4",
            "model.fp8 must be none with model.quantization=nf4, whose packed layers have products of their own, got "
            "'rowwise'",
        ),
        ("tiny_rejection", "", "model.fp8 must be none for rejection, which trains nothing, got 'rowwise'"),
    ],
)
def test_what_cannot_act_is_refused_and_leaves_nothing(
    recipe: str, asked: str, line: str, alignment: Callable[..., Any], families: Path, tmp_path: Path
) -> None:
    (tmp_path / "small").symlink_to(families / "small")
    ended = alignment("run", recipe, "model.fp8=rowwise", "output_dir=out", *asked.split())
    assert (ended.code, ended.err) == (2, [f"alignment: {recipe}: {line}"])
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("fp8_on_cpu")
@pytest.mark.parametrize(
    ("asked", "line"),
    [
        (
            ["model.init.intermediate_size=40"],
            "model.fp8 must be none for a model with linear layers whose sizes are no multiples of 16, got 'rowwise' "
            "for LlamaForCausalLM with layers.0.mlp.gate_proj of 128 to 40",
        ),
        (
            ["model.init={model_type:mixtral,hidden_size:32,num_local_experts:2}"],
            "model.fp8 must be none for a mixture of experts, whose experts are no linear layers, got 'rowwise' for "
            "MixtralForCausalLM",
        ),
    ],
)
def test_models_without_such_layers_are_refused_before_they_are_made(
    asked: list[str], line: str, alignment: Callable[..., Any], tmp_path: Path
) -> None:
    how = ["model.fp8=rowwise", "distributed.precision=bfloat16", "output_dir=out"]
    ended = alignment("run", "tiny_dpo", *how, *asked)
    assert (ended.code, ended.err) == (2, [f"alignment: tiny_dpo: {line}"])
    assert not (tmp_path / "out").exists()


def test_the_extra_is_named_where_it_is_not_installed(
    alignment: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packages, "is_installed", lambda package: package != "torchao")
    ended = alignment("run", "tiny_dpo", "model.fp8=rowwise", "output_dir=out")
    way = "pip install 'preference-alignment[fp8]'"
    line = f"model.fp8=rowwise needs the package torchao, which is not installed: {way}"
    assert (ended.code, ended.err) == (2, [f"alignment: tiny_dpo: {line}"])
