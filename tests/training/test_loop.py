"""A whole run on the toy task: twice the same, and the same when it was interrupted."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from alignment import preempt
from alignment.config.batch import BatchConfig, Layout
from alignment.config.checkpoint import CheckpointConfig
from alignment.config.data import DataConfig, EvalSource, ExampleKind, Format, TrainSource
from alignment.config.distributed import Device, DistributedConfig
from alignment.config.log import LogConfig
from alignment.config.model import LoraConfig, ModelConfig
from alignment.config.supervised import SFTConfig
from alignment.config.train import TrainConfig
from alignment.data.batches import Batches, Packer
from alignment.data.load import load_split
from alignment.distributed.engine import TorchEngine
from alignment.distributed.placement import WHOLE
from alignment.models.load import load_language_model
from alignment.training import supervised
from alignment.training.generators import seed_everything
from alignment.training.loop import fit
from alignment.training.objectives import SFT
from alignment.training.optim import build_optimizer
from alignment.training.reference import reference_logprobs
from alignment.training.supervised import Supervised

STEPS = 7


def config(tiny_init: dict[str, Any], folder: Path, *, log_every: int = 1, seed: int = 0) -> SFTConfig:
    """With dropout in the adapter, so that the global generator is part of the state."""
    return SFTConfig(
        output_dir=str(folder),
        seed=seed,
        model=ModelConfig(init=tiny_init, lora=LoraConfig(rank=4, dropout=0.2)),
        data=DataConfig(format=Format.toy, train=TrainSource(limit=20), eval=EvalSource(limit=5), max_prompt_length=64),
        batch=BatchConfig(size=6, max_tokens=300, layout=Layout.shared),
        train=TrainConfig(max_steps=STEPS, learning_rate=0.01, warmup_steps=2, weight_decay=0.1, eval_every=3),
        checkpoint=CheckpointConfig(every=2),
        log=LogConfig(every=log_every, progress=False),
        distributed=DistributedConfig(device=Device.cpu),
    )


def train(config: SFTConfig, tokenizer: PreTrainedTokenizerBase, folder: Path) -> dict[str, torch.Tensor]:
    """One process's run from start to end; returns its weights."""
    seed_everything(config.seed)
    splits = [load_split(name, config.data, tokenizer, ExampleKind.demonstrations) for name in ("train", "eval")]
    batches = [Batches(split.examples, Packer(config.batch, 0), config.seed) for split in splits if split is not None]
    model = load_language_model(config.model, tokenizer, WHOLE)
    optimizer, scheduler = build_optimizer(model, config.train, num_steps=STEPS, learning_rate=0.01)
    engine = TorchEngine(model, optimizer, scheduler, config=config.distributed, max_grad_norm=1.0)
    objective = SFT(config.loss)
    folder.mkdir(exist_ok=True)
    method = Supervised(engine, objective, objective, train=batches[0], held_out=batches[1], save=lambda folder: None)
    fit(method, config, folder)
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def rows(folder: Path) -> list[dict[str, float]]:
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if not name.startswith("time/")} for row in found]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("log_every", [1, 3])
@pytest.mark.parametrize("interrupted_after", [1, 3, 5])
def test_resumed_is_uninterrupted_bit_for_bit(
    tiny_init: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    log_every: int,
    interrupted_after: int,
) -> None:
    """Killed between two checkpoints: the rows after the last one are written again, and everything is as if never."""
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    weights = train(config(tiny_init, whole, log_every=log_every), tokenizer, whole)
    train_step, taken = supervised.train_step, []

    def killed(*arguments: Any) -> Any:
        if len(taken) == interrupted_after:
            raise KeyboardInterrupt
        taken.append(1)
        return train_step(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(supervised, "train_step", killed)
        with pytest.raises(KeyboardInterrupt):
            train(config(tiny_init, torn, log_every=log_every), tokenizer, torn)
    resumed = train(config(tiny_init, torn, log_every=log_every), tokenizer, torn)
    assert rows(torn) == rows(whole)
    assert same(resumed, weights)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("stopped_in", [1, 4, 5, 7])
def test_a_run_that_is_asked_to_stop_finishes_its_step_and_goes_on(
    tiny_init: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
    stopped_in: int,
) -> None:
    """No checkpoint and, most often, no row was due: what the steps measured since the last row is saved with them."""
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    configs = [config(tiny_init, folder, log_every=3) for folder in (whole, torn)]
    for each in configs:
        each.checkpoint.every = 0
    weights = train(configs[0], tokenizer, whole)
    before, taken, train_step = signal.getsignal(number), [], supervised.train_step

    def asked(*arguments: Any) -> Any:
        taken.append(1)
        if len(taken) == stopped_in:
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), signal.SIGTERM)  # whoever asks again changes nothing
        return train_step(*arguments)

    with monkeypatch.context() as patch, preempt.listening(), preempt.one_run():
        patch.setattr(supervised, "train_step", asked)
        with pytest.raises(
            preempt.Preempted, match=f"^stopped by {number.name} after step {stopped_in}, which is saved$"
        ):
            train(configs[1], tokenizer, torn)
    assert signal.getsignal(number) is before and not preempt.requested()
    assert len(taken) == stopped_in
    resumed = train(configs[1], tokenizer, torn)
    assert rows(torn) == rows(whole)
    assert same(resumed, weights)


def test_same_seed_is_the_same_run(
    tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    runs = {name: tmp_path / name for name in ("first", "second", "other")}
    weights = {
        name: train(config(tiny_init, folder, seed=int(name == "other")), tokenizer, folder)
        for name, folder in runs.items()
    }
    assert rows(runs["first"]) == rows(runs["second"]) != rows(runs["other"])
    assert same(weights["first"], weights["second"]) and not same(weights["first"], weights["other"])


def test_what_is_logged(tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """A row every `log.every` steps, at each evaluation, and after the last step; none for a checkpoint's sake."""
    train(config(tiny_init, tmp_path, log_every=5), tokenizer, tmp_path)
    found = rows(tmp_path)
    assert [row["step"] for row in found] == [3, 5, 6, 7]
    assert [row["step"] for row in found if "eval/loss" in row] == [3, 6, 7]
    assert all({"loss", "lr", "grad_norm"} <= row.keys() for row in found)


def test_an_evaluation_before_the_first_step_is_step_0_of_the_log_and_changes_nothing_else(
    tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    runs = {"plain": config(tiny_init, tmp_path / "plain"), "start": config(tiny_init, tmp_path / "start")}
    runs["start"].train.eval_on_start = True
    weights = {name: train(each, tokenizer, tmp_path / name) for name, each in runs.items()}
    first, *others = rows(tmp_path / "start")
    measured = {f"eval/{name}" for name in ("loss", "logps/token", "mean_token_accuracy", "perplexity")}
    assert first.keys() == {"step", *measured} and first["step"] == 0 and first["eval/loss"] > 0
    assert others == rows(tmp_path / "plain") and same(weights["start"], weights["plain"])


def test_a_row_is_the_mean_over_its_steps(
    tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    fine, coarse = tmp_path / "fine", tmp_path / "coarse"
    train(config(tiny_init, fine), tokenizer, fine)
    train(config(tiny_init, coarse, log_every=5), tokenizer, coarse)
    steps, row = rows(fine)[:3], rows(coarse)[0]
    assert row["step"] == 3
    losses = [step["loss"] for step in steps]
    assert min(losses) < row["loss"] < max(losses)
    assert row["grad_norm"] == pytest.approx(sum(step["grad_norm"] for step in steps) / 3)


def test_reference_table_holds_the_model_s_sums(
    tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, pairs: list[Any], descent: Any
) -> None:
    """One row an example by its index, NaN where it was not asked for."""
    engine = descent()
    batches = Batches(pairs, Packer(BatchConfig(size=2, max_tokens=60, layout=Layout.shared), 0), 0)
    table = reference_logprobs(engine, batches, [1, 2, 4])
    assert table.isnan().all(1).tolist() == [True, False, False, True, False, True]
    for row in (1, 2, 4):
        for side, completion in enumerate(pairs[row].completion_ids):
            prompt = pairs[row].prompt_ids.tolist()
            ids = torch.tensor([prompt + completion.tolist()])
            logits = engine.model.hf(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            want = logits.gather(-1, ids[0, len(prompt) :, None]).sum().item()
            assert table[row, side].item() == pytest.approx(want, rel=1e-5)
