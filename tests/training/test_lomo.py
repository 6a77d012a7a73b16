"""Updates in the backward pass (LOMO, arXiv:2306.09782): SGD's own to the bit, with one gradient at a time."""

import gc
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from alignment.config.batch import Layout
from alignment.config.distributed import Device, DistributedConfig, Precision
from alignment.config.errors import UserError
from alignment.config.model import LoraConfig, ModelConfig
from alignment.config.optimizer import OptimizerName
from alignment.config.train import Schedule, TrainConfig
from alignment.data.pack import Batch, pack
from alignment.data.tokenize import Example
from alignment.distributed.engine import TorchEngine
from alignment.distributed.lomo import LomoEngine
from alignment.distributed.placement import WHOLE
from alignment.losses import CrossEntropyLoss, LossOutput, Mean
from alignment.models.allocations import Allocations
from alignment.models.load import load_language_model
from alignment.training.nonfinite import NonFiniteStep
from alignment.training.objectives import SFT
from alignment.training.optim import build_optimizer
from alignment.training.step import train_step

SFT_OF = SFT(CrossEntropyLoss())
WIDE = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4}
STEPS = 4


def engine_of(
    init: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    name: str,
    *,
    precision: Precision = Precision.float32,
    **settings: Any,
) -> TorchEngine:
    has_own_head = not init.get("tie_word_embeddings") and "lora" not in settings
    torch.manual_seed(0)
    model: Any = load_language_model(ModelConfig(init=init, **settings), tokenizer, WHOLE)
    config = TrainConfig(
        max_steps=STEPS,
        optimizer=OptimizerName(name),
        learning_rate=0.3,
        weight_decay=0.1,
        head_lr_ratio=2.0 if has_own_head else 1.0,
        schedule=Schedule.linear,
        warmup_steps=1,
    )
    optimizer, scheduler = build_optimizer(model, config, num_steps=STEPS, learning_rate=config.learning_rate)
    kind = LomoEngine if name == "lomo" else TorchEngine
    distributed = DistributedConfig(device=Device.cpu, precision=precision)
    return kind(model, optimizer, scheduler, config=distributed, max_grad_norm=math.inf)


def batch_of(rows: list[Example], *taken: int) -> Batch:
    return pack([rows[row] for row in taken], taken, layout=Layout.shared, pad_id=0)


def weights(engine: TorchEngine) -> list[Tensor]:
    return [p.detach().clone() for p in engine.model.parameters()]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", ["untied", "tied", "adapters", "bfloat16"])
def test_steps_are_sgd_s(
    kind: str,
    checkpointing: bool,
    tiny_init: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    demonstrations: list[Example],
) -> None:
    """Of weights that are used once and twice, with a rate of the head's own, a schedule and a decay; so are norms."""
    init = tiny_init | {"tie_word_embeddings": kind == "tied"}
    settings: dict[str, Any] = {"gradient_checkpointing": checkpointing}
    if kind == "adapters":
        settings["lora"] = LoraConfig(rank=4)
    precision = Precision.bfloat16 if kind == "bfloat16" else Precision.float32
    sgd, lomo = (engine_of(init, tokenizer, name, precision=precision, **settings) for name in ("sgd", "lomo"))
    began = weights(lomo)
    for step in range(STEPS):
        batch = batch_of(demonstrations, step, step + 1)
        wanted, found = (train_step(engine, SFT_OF, [batch]).means() for engine in (sgd, lomo))
        assert found == wanted and found["grad_norm"] > 0
        assert all(p.grad is None for p in lomo.model.parameters())
        assert all(map(torch.equal, weights(lomo), weights(sgd)))
        assert lomo.learning_rate() == sgd.learning_rate()
    assert not all(map(torch.equal, weights(lomo), began))


def test_no_gradient_is_there_beside_another(
    tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, demonstrations: list[Example]
) -> None:
    """Counted as a weight's is there, and in bytes: beside what the pass itself keeps the largest, with what is made of
    it, where SGD has all of them."""
    most, seen, row = {}, list[int](), demonstrations[0]
    short = Example(row.prompt_ids[:4], (row.completion_ids[0][:4],), None, row.source, (True,))
    for name in ("sgd", "lomo"):
        torch.manual_seed(0)
        engine = engine_of(tiny_init | WIDE, tokenizer, name)
        trained = list(engine.model.parameters())
        sizes = [p.numel() * p.element_size() for p in trained]
        assert sum(sizes) > 6 * max(sizes)
        batch = batch_of([short], 0)
        with Allocations(trained) as counted:
            loss = SFT_OF(engine.model, batch).loss.mean()
            gc.collect()
            before = counted.alive
            engine.backward(loss, is_last=True)
        most[name] = counted.highest - before
    assert most["sgd"] > sum(sizes) - max(sizes) and most["lomo"] < 2.5 * max(sizes)

    torch.manual_seed(0)
    model: Any = load_language_model(ModelConfig(init=tiny_init), tokenizer, WHOLE)
    trained = list(model.parameters())
    for p in trained:  # hooks run in the order in which they are made, and these before the engine's
        p.register_post_accumulate_grad_hook(lambda _: seen.append(sum(each.grad is not None for each in trained)))
    config = TrainConfig(max_steps=STEPS, optimizer=OptimizerName.lomo, learning_rate=0.1)
    optimizer, scheduler = build_optimizer(model, config, num_steps=STEPS, learning_rate=0.1)
    engine = LomoEngine(
        model, optimizer, scheduler, config=DistributedConfig(device=Device.cpu), max_grad_norm=math.inf
    )
    train_step(engine, SFT_OF, [batch])
    assert seen == [1] * len(trained)


def test_a_second_pass_is_refused_before_a_weight_has_changed(
    tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, demonstrations: list[Example]
) -> None:
    engine = engine_of(tiny_init, tokenizer, "lomo")
    before = weights(engine)
    with pytest.raises(UserError, match="takes each step in one pass, in which it updates weights: batch"):
        train_step(engine, SFT_OF, [batch_of(demonstrations, 0), batch_of(demonstrations, 1)])
    assert all(map(torch.equal, weights(engine), before))


class Broken:
    """SFT whose loss, or the gradient of whose loss, is no number."""

    def __init__(self, factor: float, *, of_gradient: bool) -> None:
        self.factor, self.of_gradient = factor, of_gradient

    def __call__(self, model: nn.Module, batch: Batch) -> LossOutput:
        output = SFT_OF(model, batch)
        if self.of_gradient:
            output.loss.total.register_hook(lambda gradient: gradient * self.factor)
            return output
        return LossOutput(Mean(output.loss.total * self.factor, output.loss.count), output.metrics)

    def count(self, batch: Batch) -> float:
        return SFT_OF.count(batch)


def test_a_loss_that_is_no_number_changes_nothing_and_a_gradient_ends_the_run(
    tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, demonstrations: list[Example]
) -> None:
    engine, clean = (engine_of(tiny_init, tokenizer, "lomo") for _ in range(2))
    batch, told = batch_of(demonstrations, 0, 1), list[NonFiniteStep]()
    before = weights(engine)
    assert "loss" not in train_step(engine, Broken(math.nan, of_gradient=False), [batch], told.append)
    assert len(told) == 1 and math.isnan(told[0].loss) and math.isnan(told[0].grad_norm)
    assert all(map(torch.equal, weights(engine), before)) and engine.scheduler.last_epoch == 0
    for _ in range(2):
        assert train_step(engine, SFT_OF, [batch]).means() == train_step(clean, SFT_OF, [batch]).means()
    assert all(map(torch.equal, weights(engine), weights(clean)))
    rule = "^the norm of a gradient is (inf|nan), and train.optimizer=lomo has changed weights by then: go on from "
    with pytest.raises(UserError, match=rule):
        train_step(engine, Broken(math.inf, of_gradient=True), [batch])


@pytest.mark.parametrize("resharded", [False, True])
def test_what_is_saved_goes_on_bit_for_bit(
    resharded: bool, tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, demonstrations: list[Example]
) -> None:
    engine, other = (engine_of(tiny_init, tokenizer, "lomo") for _ in range(2))
    for step in range(2):
        train_step(engine, SFT_OF, [batch_of(demonstrations, step, step + 1)])
    if resharded:
        other.load_resharded([engine.state()])
    else:
        other.load_state(engine.state())
    assert engine.state()["optimizer"]["state"] == {}
    for step in range(2, STEPS):
        for each in (engine, other):
            train_step(each, SFT_OF, [batch_of(demonstrations, step, step + 1)])
    assert all(map(torch.equal, weights(engine), weights(other)))
