"""Keys that a task does not read: each is refused by name, for it would otherwise be accepted and do nothing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

REJECTION = "tiny_rejection model.path=."
EVALUATE = "tiny_evaluate runs={a:.} baseline=a"
ONLINE = "tiny_online_dpo model.path=."
SHARED = "tiny_ppo model.path=. model.lora.rank=4 roles.share=lora"
NATIVE = "data=native data.train.path=rows.jsonl"
UNREAD = {  # words of `alignment run`: what is said
    "tiny_reward data.learn=last": "data.learn must be 'all' for a task that learns of no demonstrations, got 'last'",
    "tiny_dpo data.scores={a:1}": "data.scores must be {} for a task that learns of no scored replies, got {'a': 1.0}",
    "tiny_sft data.step_separator=x": (
        "data.step_separator must be '\\n' for a task that learns of no replies in steps, got 'x'"
    ),
    f"{REJECTION} data.learn=last": "data.learn must be 'all' for a task that learns of no demonstrations, got 'last'",
    f"{EVALUATE} data.learn=last": "data.learn must be 'all' for a task that learns of no demonstrations, got 'last'",
    f"tiny_dpo {NATIVE} data.eval.limit=3": (
        "data.eval.limit goes with data.eval.path, the held-out rows (null: there are none), got 3"
    ),
    f"{EVALUATE} gold=null reward=. {NATIVE} data.eval.path=rows.jsonl": (
        "data.train.path must be null for evaluate, which reads no such rows, got 'rows.jsonl'"
    ),
    f"{EVALUATE} reward=. pairs.train.path=rows.jsonl": (
        "pairs.train.path must be null for evaluate, which reads no such rows, got 'rows.jsonl'"
    ),
    f"{REJECTION} batch.size=4": "batch.size must be as it is by default for rejection, which has no steps, got 4",
    f"{EVALUATE} batch.size=4": "batch.size must be as it is by default for evaluate, which has no steps, got 4",
    f"{REJECTION} model.lora.rank=4": "model.lora.rank must be 0 for rejection, which trains nothing, got 4",
    "tiny_dpo model.lora.alpha=32": "model.lora.alpha goes with model.lora.rank > 0, got 32",
    "tiny_dpo model.lora.alpha=16 model.lora.rslora=false": "model.lora.alpha goes with model.lora.rank > 0, got 16",
    "tiny_dpo model.lora.rslora=false": "model.lora.rslora goes with model.lora.rank > 0, got False",
    "tiny_dpo model.lora.dropout=0.1": "model.lora.dropout goes with model.lora.rank > 0, got 0.1",
    "tiny_dpo model.lora.targets=[q_proj]": "model.lora.targets goes with model.lora.rank > 0, got ['q_proj']",
    "tiny_dpo model.adapter=. model.lora.init=gaussian": (
        "model.lora.init must be left out beside model.adapter, which has begun already, got 'gaussian'"
    ),
    "tiny_dpo model.path=. model.lora.rank=4 model.lora.init=eva distributed=zero3": (
        "distributed.zero must be null, 0, 1 or 2 with model.lora.init=eva, which reads rows before weights are "
        "shared out, got 3"
    ),
    "tiny_dpo model.path=. model.lora.rank=4 model.lora.merge=false model.lora.merge_every=2": (
        "model.lora.merge must be true but for an adapter of a model.path that is read as it is, without merge_every, "
        "resize_embeddings or model.rope, got False"
    ),
    "tiny_dpo model.path=. model.lora.rank=4 model.lora.target_parameters=[experts.down_proj] distributed=zero3": (
        "distributed.zero must be null, 0, 1 or 2 with model.lora.target_parameters, for peft adds to experts that are "
        "whole, got 3"
    ),
    "tiny_dpo model.path=. model.lora.rank=4 model.lora.target_parameters=[experts.down_proj] model.lora.init=eva": (
        "model.lora.init must be default or gaussian with model.lora.target_parameters: an adapter of experts is a "
        "plain sum, got 'eva'"
    ),
    f"{SHARED} model.lora.target_parameters=[experts.down_proj]": (
        "model.lora.target_parameters must be [] with roles.share=lora, whose adapters are on linear layers, got "
        "['experts.down_proj']"
    ),
    f"{SHARED} model.lora.merge_every=2": (
        "model.lora.merge_every must be 0 with roles.share=lora, whose roles read one base, got 2"
    ),
    "tiny_ppo model.path=. model.lora.rank=4 model.lora.merge_every=2 ppo.ema=0.9": (
        "ppo.ema must be null with model.lora.merge_every, whose adapters begin anew: their mean is of none, got 0.9"
    ),
    "tiny_dpo model.path=. model.lora.rank=4 model.lora.merge_every=2 distributed=zero3 "
    "distributed.offload_optimizer=nvme distributed.nvme_path=.": (
        "distributed.offload_optimizer and offload_param must not be nvme with model.lora.merge_every, after whose "
        "merges weights and states are written, got 'nvme'"
    ),
    "tiny_dpo model.path=. model.lora.rank=4 model.lora.merge_every=2 model.lora.init=pissa": (
        "model.lora.init must be default or gaussian with model.lora.merge_every, each of whose adapters begins as the "
        "first, got 'pissa'"
    ),
    "tiny_dpo model.path=. model.lora.rank=4 model.lora.merge_every=2 model.quantization=nf4": (
        "model.lora.merge_every must be 0 with model.quantization, for nothing is merged into packed weights, got 2"
    ),
    "tiny_dpo model.path=. model.lora.rank=4 model.lora.restart_warmup_steps=2": (
        "model.lora.restart_warmup_steps goes with model.lora.merge_every > 0, got 2"
    ),
    f"{SHARED} model.lora.init=eva": (
        "model.lora.init must be default or gaussian with roles.share=lora, whose adapters are on one base, got 'eva'"
    ),
    f"{SHARED} model.lora.init=pissa": (
        "model.lora.init must be default or gaussian with roles.share=lora, whose adapters are on one base, got 'pissa'"
    ),
    f"{SHARED} model.lora.dora=true": (
        "model.lora.dora must be false with roles.share=lora, whose critic has a plain adapter, got True"
    ),
    f"{SHARED} model.lora.modules_to_save=[norm]": (
        "model.lora.modules_to_save must be [] with roles.share=lora, whose roles share all but adapters, got ['norm']"
    ),
    "tiny_ppo model.path=. ptx.size=8": "ptx.size goes with a ptx.weight above 0, got 8",
    "tiny_ppo model.path=. ptx.data.eval.path=rows.jsonl": (
        "ptx.data.eval.path must be null for ptx, which reads no such rows, got 'rows.jsonl'"
    ),
    "tiny_ppo model.path=. ppo.max_kl=0.1 ppo.epochs=1": (
        "ppo.max_kl ends an iteration's inner steps, of which ppo.epochs and ppo.mini_batches make one, got 0.1"
    ),
    f"{ONLINE} loss.margin_scale=2": "loss.margin_scale must be 1 for online_dpo, whose pairs have no margins, got 2.0",
    f"{ONLINE} loss.margin_scale=0": "loss.margin_scale must be 1 for online_dpo, whose pairs have no margins, got 0.0",
    f"{ONLINE} generation.engine=vllm generation.top_p=0.5 alarm.max_mismatch=0.1": (
        "alarm.max_mismatch needs generation.top_k=0, top_p=1 and min_new_tokens=0: nothing is watched else, got 0.1"
    ),
    f"{ONLINE} alarm.max_kl=9": "alarm.max_kl must be null for online_dpo, which logs no such metric, got 9.0",
    f"{ONLINE} alarm.min_entropy=1": (
        "alarm.min_entropy must be null for online_dpo, which logs no such metric, got 1.0"
    ),
    f"{ONLINE} gold=null alarm.sigmas=3": "alarm.sigmas goes with gold or gold_model, which it watches, got 3.0",
    f"{ONLINE} gold=null alarm.patience=3": "alarm.patience goes with gold or gold_model, which it watches, got 3",
    "tiny_dpo distributed=zero3 distributed.offload_optimizer=nvme distributed.nvme_path=. checkpoint.every=5": (
        "checkpoint.every and checkpoint.every_minutes must be 0 with distributed.offload_optimizer=nvme, which "
        "cannot be saved, got (5, 0.0)"
    ),
}


@pytest.mark.parametrize("words", UNREAD)
def test_a_key_that_nothing_reads_is_refused(words: str, alignment: Callable[..., Any]) -> None:
    ended = alignment("run", *words.split(), "output_dir=out")
    recipe = words.split()[0]
    assert (ended.code, ended.err) == (2, [f"alignment: {recipe}: {UNREAD[words]}"])


def test_evaluations_without_rows_are_said(alignment: Callable[..., Any]) -> None:
    small = ["model.init.hidden_size=32", "model.init.intermediate_size=48", "train.max_steps=1", "batch.size=2"]
    ended = alignment("run", "tiny_sft", *small, "data.eval.limit=null", "train.warmup_steps=0", "output_dir=out")
    line = "WARNING: train.eval_every=100 evaluates nothing, for there are no held-out rows (data.eval)"
    assert ended.code == 0 and line in " ".join(ended.out.split()), ended


FOLDER = "got model.path='.'"
INIT = {
    "tiny_dpo model.path=. model.init.hidden_size=32": "model.init.hidden_size",
    "tiny_reward model.path=. +model.init.anything=null": "model.init.anything",
    "tiny_ppo ++model.init={hidden_size:32} model.path=.": "model.init",
    "tiny_dpo -m model.path=null,. model.init.hidden_size=32,64": "model.init.hidden_size",
}


@pytest.mark.parametrize("words", INIT)
def test_a_size_that_is_typed_beside_a_folder_is_refused(words: str, alignment: Callable[..., Any]) -> None:
    """The sizes of a recipe of toys may be there, whose model the folder's takes the place of."""
    ended = alignment("run", *words.split(), "output_dir=out")
    rule = f"{INIT[words]} goes with model.path=null, a random model (a folder's has its own sizes)"
    said = f"alignment: {words.split()[0]}: {rule}: leave out one of the two, {FOLDER}"
    assert (ended.code, ended.err) == (2, [said])
    bare = alignment("run", words.split()[0], "model.path=.", "output_dir=out")
    assert bare.code == 2 and "model.init" not in bare.err[0]


def test_a_stage_s_size_beside_a_folder_is_refused(
    alignment: Callable[..., Any], own: Callable[[str, str], str], tmp_path: Path
) -> None:
    stages = "  - {name: one, recipe: tiny_sft, set: {model.path: '.', model.init.hidden_size: 32}}\n"
    recipe = own("pipe", f"defaults: [{{task: pipeline}}, _self_]\nstages:\n{stages}")
    ended = alignment("run", recipe, "output_dir=out")
    rule = "stage one: model.init.hidden_size goes with model.path=null, a random model (a folder's has its own sizes)"
    assert (ended.code, ended.err) == (2, [f"alignment: pipe: {rule}: leave out one of the two, {FOLDER}"])
    assert not (tmp_path / "out").exists()


BEYOND = {
    "seed=99999999999999999999": "seed must be below 2**63, got 99999999999999999999",
    "batch.size=99999999999999999999": "batch.size must be below 2**31, got 99999999999999999999",
    "train.max_steps=null train.epochs=1e300": "train.epochs must be below 1e+06, got 1e+300",
    "train.learning_rate=inf": "train.learning_rate must be finite, got inf",
    "train.weight_decay=inf": "train.weight_decay must be finite, got inf",
    "train.eps=inf": "train.eps must be finite, got inf",
}


@pytest.mark.parametrize("words", BEYOND)
def test_numbers_that_nothing_can_be_computed_with_are_refused_before_anything_is(
    words: str, alignment: Callable[..., Any], tmp_path: Path
) -> None:
    ended = alignment("run", "tiny_dpo", *words.split(), "output_dir=out")
    assert (ended.code, ended.err) == (2, [f"alignment: tiny_dpo: {BEYOND[words]}"])
    assert not (tmp_path / "out").exists()
