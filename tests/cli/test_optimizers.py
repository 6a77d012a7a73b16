"""Each optimizer through the installed command: it learns, goes on where it was interrupted, and is refused where it
cannot act."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from alignment.config import packages
from alignment.runs.rows import read_rows

SMALL = ["model.init.hidden_size=64", "model.init.intermediate_size=96", "data.train.limit=16", "data.eval.limit=4"]
COMMON = [*SMALL, "batch.size=8", "train.warmup_steps=0", "train.schedule=constant", "log.progress=false"]
PPO = ["generation.max_new_tokens=6", "ppo.epochs=1", "ppo.mini_batches=1", "critic.learning_rate=0.003"]
LOMO = "train.optimizer=lomo train.max_grad_norm=inf"
RATES = {"adamw_8bit": 0.003, "adamw_bf16": 0.003, "adafactor": 0.003, "lion": 0.001, "muon": 0.003, "sgd": 0.3}
STEPS = 8
OFTEN = [("adamw_8bit", "dpo"), ("adamw_bf16", "reward"), ("muon", "ppo"), ("adafactor", "reward")]
OFTEN += [("lion", "dpo"), ("sgd", "reward")]
SELDOM = [(name, task) for name in RATES for task in ("dpo", "reward", "ppo") if (name, task) not in OFTEN]


def words(task: str, name: str, out: str, steps: int = STEPS) -> list[str]:
    more = PPO if task == "ppo" else []
    momentum = ["train.momentum=0.9"] if name == "sgd" else []
    asked = [f"train.optimizer={name}", f"train.learning_rate={RATES[name]}", f"train.max_steps={steps}"]
    return ["run", f"tiny_{task}", *COMMON, *more, *momentum, *asked, "checkpoint.every=1", f"output_dir={out}"]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


@pytest.mark.parametrize(("name", "task"), [*OFTEN, *(pytest.param(*pair, marks=pytest.mark.slow) for pair in SELDOM)])
def test_it_learns_and_goes_on_bit_for_bit(name: str, task: str, alignment: Callable[..., Any], tmp_path: Path) -> None:
    ended = alignment(*words(task, name, "whole"))
    assert (ended.code, ended.err) == (0, [])
    if task != "ppo":  # the same sixteen rows four times
        losses = [row["loss"] for row in read_rows(tmp_path / "whole" / "metrics.jsonl")]
        assert sum(losses[-2:]) < 0.8 * sum(losses[:2])
    for steps in (STEPS // 2, STEPS):
        ended = alignment(*words(task, name, "cut", steps))
        assert (ended.code, ended.err) == (0, [])
    assert "going on from" in ended.out
    whole, cut = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert whole.keys() == cut.keys() and all(torch.equal(whole[key], cut[key]) for key in whole)


SLOW = [pytest.param(task, marks=pytest.mark.slow) for task in ("dpo", "reward", "ppo")]


@pytest.mark.parametrize("task", ["sft", *SLOW])
def test_updates_in_the_backward_pass_are_sgd_s_and_go_on_bit_for_bit(
    task: str, alignment: Callable[..., Any], tmp_path: Path
) -> None:
    more = PPO if task == "ppo" else []
    words = ["run", f"tiny_{task}", *COMMON, *more, "train.max_grad_norm=inf", "train.learning_rate=0.1"]
    words += ["train.weight_decay=0.01", "checkpoint.every=1", "batch.max_tokens=null"]
    for name in ("sgd", "lomo"):
        ended = alignment(*words, f"train.optimizer={name}", "train.max_steps=4", f"output_dir={name}")
        assert (ended.code, ended.err) == (0, [])
    assert "tokens in one pass, all of a step of the longest rows; " in ended.out
    for steps in (2, 4):
        ended = alignment(*words, "train.optimizer=lomo", f"train.max_steps={steps}", "output_dir=cut")
        assert (ended.code, ended.err) == (0, [])
    assert "going on from" in ended.out
    sgd, *lomo = (weights(tmp_path / name) for name in ("sgd", "lomo", "cut"))
    assert all(each.keys() == sgd.keys() for each in lomo)
    assert all(torch.equal(each[key], value) for each in lomo for key, value in sgd.items())
    rows = [read_rows(tmp_path / name / "metrics.jsonl") for name in ("sgd", "lomo", "cut")]
    for name in ("loss", "grad_norm", *(["value/loss"] if task == "ppo" else [])):
        assert len({tuple(row[name] for row in each) for each in rows}) == 1 and rows[0][0][name] != 0


def test_ppo_s_roles_and_texts_are_refused_what_they_would_share(alignment: Callable[..., Any]) -> None:
    for asked, line in (
        ("model.lora.rank=2 roles.share=lora", "roles.share must be none with train.optimizer=lomo, which updates"),
        ("ptx.weight=1 ptx.data.format=toy ptx.data.train.limit=8", "ptx.weight must be 0 with train.optimizer=lomo"),
    ):
        ended = alignment("run", "tiny_ppo", *LOMO.split(), *asked.split(), "output_dir=out")
        assert ended.code == 2 and len(ended.err) == 1 and line in ended.err[0]


def test_a_run_does_not_go_on_under_another_optimizer(alignment: Callable[..., Any]) -> None:
    assert alignment(*words("dpo", "muon", "out", 1)).code == 0
    ended = alignment(*words("dpo", "lion", "out", 2), "train.learning_rate=0.003")
    was = 'train.optimizer was "muon" and is "lion"'
    assert ended.code == 2 and was in ended.err[0] and "resume.accept" not in ended.err[0]
    assert "another output_dir keeps both, train.optimizer=muon goes on as before" in ended.err[0]
    ended = alignment(*words("dpo", "muon", "out", 2), "train.head_lr_ratio=2")
    assert ended.code == 2 and "train.head_lr_ratio=1.0 goes on as before" in ended.err[0]
    ended = alignment(*words("dpo", "muon", "out", 2), "train.momentum=0.9", "resume.accept=[train.momentum]")
    assert ended.code == 0 and "train.momentum was 0.95 and is 0.9" in ended.out


@pytest.mark.parametrize(
    ("asked", "line"),
    [
        (
            "train.optimizer=muon distributed=zero1",
            "distributed.zero must be null or 0 with train.optimizer=muon, which needs each matrix whole, got 1",
        ),
        (
            "train.optimizer=muon model.lora.rank=4 train.betas=[0.2,0.3]",
            "train.betas must be null with train.optimizer=muon, whose AdamW has no weight that trains here",
        ),
        (
            "train.optimizer=muon model.lora.rank=4 train.eps=1e-2",
            "train.eps must be null with train.optimizer=muon, whose AdamW has no weight that trains here, got 0.01",
        ),
        (
            "train.optimizer=muon model.path=. model.soft_prompt.tokens=4 train.momentum=0.5",
            "train.momentum must be null with train.optimizer=muon, whose momentum is of no weight that trains here",
        ),
        (
            "train.optimizer=adafactor distributed=zero3",
            "train.optimizer=adafactor, which needs each matrix whole, got 3",
        ),
        (
            "train.optimizer=adamw_8bit distributed=zero1 distributed.offload_optimizer=cpu",
            "distributed.offload_optimizer must be none with train.optimizer=adamw_8bit, whose states are small; "
            "train.optimizer=adamw can be offloaded, got 'cpu'",
        ),
        (
            "train.optimizer=paged_adamw_8bit",
            "train.optimizer=paged_adamw_8bit needs a GPU (distributed.device=cuda), whose memory its states leave for "
            "the machine's; train.optimizer=adamw_8bit is the same without pages, got 'cpu'",
        ),
        (
            "train.optimizer=paged_adamw_8bit distributed=zero2",
            "distributed.zero must be null or 0 with train.optimizer=paged_adamw_8bit, whose pages are of whole "
            "weights (train.optimizer=adamw_8bit can be sharded), got 2",
        ),
        (
            "train.optimizer=lion distributed=zero3 distributed.offload_optimizer=nvme distributed.nvme_path=.",
            "distributed.offload_optimizer=nvme takes train.optimizer=adamw alone, got 'lion'",
        ),
        (
            "train.optimizer=lomo",
            "train.max_grad_norm must be inf with train.optimizer=lomo, whose weights have changed by the time that a "
            "norm is known (train.optimizer=sgd clips), got 1.0",
        ),
        (
            "train.optimizer=lomo distributed=zero1",
            "distributed.zero must be null with train.optimizer=lomo, which updates weights in one process's backward "
            "pass (train.optimizer=sgd can be sharded), got 1",
        ),
        (f"{LOMO} train.on_nonfinite=skip", "train.on_nonfinite must be stop with train.optimizer=lomo, whose weights"),
        (f"{LOMO} distributed.precision=float16", "distributed.precision must be auto, float32 or bfloat16 with train"),
        (f"{LOMO} log.ranges_every=1", "log.ranges_every must be 0 with train.optimizer=lomo, which leaves no "),
        (
            f"{LOMO} batch.size=4 batch.max_tokens=1000",
            "batch.max_tokens must be null or at least 1024, a step of the longest rows, with train.optimizer=lomo, "
            "which takes each step in one pass (a lower batch.size or data.max_length has fewer tokens), got 1000",
        ),
        (
            "train.optimizer=sgd train.betas=[0.9,0.9]",
            "train.betas goes with train.optimizer=adamw, adamw_8bit, paged_adamw_8bit, adamw_bf16, lion, muon: ",
        ),
        (
            "model.lora.rank=2 train.head_lr_ratio=2",
            "train.head_lr_ratio must be 1 with model.lora.rank > 0, under which the head is not trained",
        ),
        ("model.lora.rank=2 train.embedding_lr_ratio=2", "train.embedding_lr_ratio must be 1 with model.lora.rank > 0"),
        ("model.lora.plus=16", "model.lora.plus goes with model.lora.rank > 0, got 16.0"),
        (
            "model.init.tie_word_embeddings=true train.head_lr_ratio=2",
            "train.head_lr_ratio must be 1 for a model whose head is its embeddings (tie_word_embeddings), which are "
            "train.embedding_lr_ratio's, got 2.0",
        ),
    ],
)
def test_what_cannot_act_is_refused_and_leaves_nothing(
    asked: str, line: str, alignment: Callable[..., Any], tmp_path: Path
) -> None:
    ended = alignment("run", "tiny_dpo", "train.max_steps=1", "output_dir=out", *asked.split())
    assert ended.code == 2 and len(ended.err) == 1 and line in ended.err[0]
    assert not (tmp_path / "out").exists()


def test_a_critic_s_head_has_its_own_rate_beside_an_adapter(alignment: Callable[..., Any]) -> None:
    adapters = ["model.lora.rank=2", "model.lora.plus=4", "train.head_lr_ratio=2"]
    ended = alignment("run", "tiny_ppo", *COMMON, *PPO, *adapters, "train.max_steps=1", "output_dir=out")
    assert (ended.code, ended.err) == (0, [])


@pytest.mark.parametrize("name", ["adamw_8bit", "lion"])
def test_the_extra_is_named_where_it_is_not_installed(
    name: str, alignment: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packages, "is_installed", lambda package: package != "bitsandbytes")
    ended = alignment("run", "tiny_dpo", f"train.optimizer={name}", "train.max_steps=1", "output_dir=out")
    way = "pip install 'preference-alignment[quantization]', or take train.optimizer=adamw"
    line = f"train.optimizer={name} needs the package bitsandbytes, which is not installed: {way}"
    assert (ended.code, ended.err) == (2, [f"alignment: tiny_dpo: {line}"])


@pytest.mark.parametrize("name", ["muon", "adamw_8bit"])
def test_a_checkpoint_is_exported_from_the_groups_that_its_optimizer_has(
    name: str, alignment: Callable[..., Any], tmp_path: Path
) -> None:
    assert alignment(*words("dpo", name, "out", 2), "train.embedding_lr_ratio=0.5").code == 0
    assert alignment("export", "out").code == 0
    exported = load_file(tmp_path / "out" / "exported" / "step-00000002" / "model.safetensors")
    assert all(torch.equal(exported[key], value) for key, value in weights(tmp_path / "out").items())
