"""What one process of the invariance test does: ten steps of each method under the ZeRO stages asked for, and what is
held of a stage whatever the method.

python ranks.py OUT METHOD/STAGE ... with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT set; `none` is the plain engine,
and `held`, behind a stage's methods, the rest. Two processes also go on there from where the one before them, whose OUT
was in the same folder, was after `LEFT` steps.
"""

import gc
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from alignment.config.batch import BatchConfig, Layout
from alignment.config.distributed import Device, DistributedConfig, Offload, Precision
from alignment.config.errors import UserError
from alignment.config.model import LoraConfig, ModelConfig
from alignment.config.train import Schedule, TrainConfig
from alignment.data.batches import Batches, Packer
from alignment.data.records import Source
from alignment.data.tokenize import Example
from alignment.distributed import collectives
from alignment.distributed.deepspeed import DeepSpeedEngine
from alignment.distributed.engine import Engine, TorchEngine
from alignment.distributed.frozen import FrozenEngine
from alignment.distributed.placement import WHOLE
from alignment.distributed.reshard import whole_weights
from alignment.distributed.sharded import placement_of
from alignment.losses import (
    CPOLoss,
    CPOVariant,
    CrossEntropyLoss,
    DPOLoss,
    DPOVariant,
    KTOLoss,
    KTOVariant,
    LossOutput,
    MarginRankingLoss,
    Mean,
    ORPOLoss,
    ProcessRewardLoss,
    ScoreRegressionLoss,
    SimPOLoss,
)
from alignment.models.load import load_language_model, load_scalar_model
from alignment.models.readout import token_logprobs
from alignment.models.tokenizer import load_tokenizer
from alignment.runs.written import whole_file
from alignment.training.aot import dpo_objective
from alignment.training.kto import KTO, with_replies_to_others
from alignment.training.objectives import (
    CPO,
    DPO,
    ORPO,
    SFT,
    Objective,
    ProcessReward,
    RewardRanking,
    ScoreRegression,
    SimPO,
)
from alignment.training.optim import build_optimizer
from alignment.training.parameter_groups import parameter_groups
from alignment.training.reference import reference_logprobs
from alignment.training.step import evaluate_step, train_step

STEPS = 10
LEFT = 4
INIT = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
}
TRAIN = TrainConfig(max_steps=STEPS, learning_rate=3e-3, warmup_steps=2, weight_decay=0.1, max_grad_norm=0.5)
BATCH = BatchConfig(size=6, max_tokens=48, layout=Layout.shared)
ADAPTERS = {
    "lora": LoraConfig(rank=4),  # of DPO
    "lora on the head": LoraConfig(rank=4, targets=["q_proj", "lm_head"]),
    "bfloat16 lora": LoraConfig(rank=4),
}
REWARDS = ("reward", "reward_regression", "reward_process")
KTOS = {"kto": KTOVariant.kto, "apo_zero_unpaired": KTOVariant.apo_zero_unpaired}
SINGLE = ("sft", *KTOS, "bfloat16", "reward_regression", "reward_process")  # one reply to each prompt; bfloat16: SFT


def examples(num_completions: int) -> list[Example]:
    """Rows of very different lengths, and pairs that count unequally, so that a mean of means would show."""
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(11):
        prompt, *completions = (rng.integers(3, 2000, n).astype(np.int32) for n in rng.integers(1, 14, 3))
        margin, weight = float(rng.integers(0, 4)), (0.5, 1.0, 2.5)[len(rows) % 3]
        taken = tuple(completions[:num_completions])
        finished = (True,) * num_completions
        rows.append(Example(prompt, taken, margin, Source("rows.jsonl", 1), finished, weight=weight))
    return rows


def config_of(stage: str, folder: Path, precision: Precision = Precision.float32) -> DistributedConfig:
    if stage == "none":
        return DistributedConfig(device=Device.cpu, precision=precision)
    settings = folder / f"deepspeed-{collectives.num_launched()}.json"
    with whole_file(settings) as path:  # by every process, while others read it
        path.write_text('{"zero_optimization": {"stage3_param_persistence_threshold": 0}}')  # nothing stays whole
    zero, offload = (3, Offload.cpu) if stage == "offload" else (int(stage), Offload.none)
    return DistributedConfig(
        device=Device.cpu,
        precision=precision,
        zero=zero,
        offload_optimizer=offload,
        offload_param=offload,
        deepspeed_config=str(settings),
    )


def build(method: str, config: DistributedConfig, train: TrainConfig = TRAIN) -> tuple[Engine, Any]:
    torch.manual_seed(0)
    lora = ADAPTERS.get(method, LoraConfig())
    model_config = ModelConfig(init=INIT, lora=lora, gradient_checkpointing=method in ("orpo", "lora", "bfloat16 lora"))
    tokenizer = load_tokenizer(model_config)
    load = load_scalar_model if method in REWARDS else load_language_model
    model = load(model_config, tokenizer, placement_of(config))
    optimizer, scheduler = build_optimizer(model, train, num_steps=STEPS, learning_rate=train.learning_rate)
    kind = TorchEngine if config.zero is None else DeepSpeedEngine
    return kind(model, optimizer, scheduler, config=config, max_grad_norm=train.max_grad_norm), model


def objective_of(method: str, engine: Engine, batches: Batches) -> Objective[Any]:
    if method == "dpo" or method in ADAPTERS:
        return DPO(DPOLoss(beta=0.3), reference_logprobs(engine, batches, range(len(batches.examples))))
    if method == "aot":
        table = reference_logprobs(engine, batches, range(len(batches.examples)))
        noise = torch.randn(table.shape, generator=torch.Generator().manual_seed(3))  # so that the ranks differ
        table += noise.to(table.device)
        return dpo_objective(DPOLoss(beta=0.3, variant=DPOVariant.aot), table)
    if method in KTOS:
        mismatched = replace(batches, examples=with_replies_to_others(batches.examples, 20))
        tables = [reference_logprobs(engine, each, range(len(batches.examples))) for each in (batches, mismatched)]
        return KTO(KTOLoss(beta=0.3, variant=KTOS[method]), tables[0], mismatched, tables[1])
    of_pairs: dict[str, Objective[Any]] = {
        "reward": RewardRanking(MarginRankingLoss()),
        "reward_regression": ScoreRegression(ScoreRegressionLoss()),
        "reward_process": ProcessReward(ProcessRewardLoss()),
        "orpo": ORPO(ORPOLoss()),
        "simpo": SimPO(SimPOLoss()),
        "cpo": CPO(CPOLoss(beta=0.3)),
        "cpo_hinge": CPO(CPOLoss(beta=0.3, variant=CPOVariant.hinge)),
    }
    return of_pairs.get(method, SFT(CrossEntropyLoss()))


def batches_of(method: str) -> Batches:
    rows = examples(1 if method in SINGLE else 2)
    if method in KTOS:
        rows = [replace(row, labels=(place % 3 > 0,)) for place, row in enumerate(rows)]
    if method == "reward_regression":
        rows = [replace(row, labels=(place / 4,)) for place, row in enumerate(rows)]
    if method == "reward_process":  # steps of two tokens, and of what is left
        ends = [(*range(1, len(row.completion_ids[0]) - 1, 2), len(row.completion_ids[0]) - 1) for row in rows]
        rows = [replace(row, ends=at, labels=tuple(n % 3 > 0 for n in at)) for row, at in zip(rows, ends, strict=True)]
    return Batches(rows, Packer(BATCH, 0, collectives.rank(), collectives.size()), 0)


def left(stage: str, processes: int, rank: int) -> Path:
    """What a process of a run under this stage had after `LEFT` steps of DPO."""
    return Path(sys.argv[1]).parent / f"left-{stage}-{processes}-{rank}.pt"


def run(method: str, stage: str, config: DistributedConfig) -> dict[str, list[float]]:
    engine, _ = build(method, config)
    batches = batches_of(method)
    objective = objective_of(method, engine, batches)
    steps = []
    for index in range(STEPS):
        if index == LEFT and method == "dpo":
            torch.save(engine.state(), left(stage, collectives.size(), collectives.rank()))
        steps.append(train_step(engine, objective, batches.step(index)).means())
    seen = {name: [step[name] for step in steps] for name in ("loss", "grad_norm")}
    evaluated = evaluate_step(engine, objective, batches.once()).means()
    return {**seen, "eval": [evaluated["loss"]]}


def resumed(method: str, config: DistributedConfig) -> bool:
    """Whether four steps, and two steps, a fresh engine and two more, are the same bit for bit."""
    batches = batches_of(method)
    unbroken, _ = build(method, config)
    objective = objective_of(method, unbroken, batches)
    taken = [train_step(unbroken, objective, batches.step(index)) for index in range(2)]
    saved = Path(sys.argv[1]).parent / f"rank-{collectives.rank()}.pt"
    torch.save(unbroken.state(), saved)
    taken += [train_step(unbroken, objective, batches.step(index)) for index in range(2, 4)]
    other, _ = build(method, config)
    other.load_state(torch.load(saved, weights_only=True))
    again = [train_step(other, objective, batches.step(index)) for index in range(2, 4)]
    same = all(
        torch.equal(old[name].total, new[name].total)
        for old, new in zip(taken[2:], again, strict=True)
        for name in ("loss", "grad_norm")
    )
    with unbroken.gathered():
        weights = [p.detach().clone() for p in unbroken.model.parameters()]
    with other.gathered():
        return same and all(torch.equal(a, b) for a, b in zip(weights, other.model.parameters(), strict=True))


def goes_on(stage: str, processes: int, config: DistributedConfig) -> list[float]:
    """The losses of DPO from step `LEFT` on, by other processes than took the steps before."""
    batches = batches_of("dpo")
    engine, _ = build("dpo", config)
    objective = objective_of("dpo", engine, batches)
    saved = [torch.load(left(stage, processes, rank), weights_only=True, mmap=True) for rank in range(processes)]
    engine.load_resharded(saved)
    steps = [train_step(engine, objective, batches.step(index)).means() for index in range(LEFT, STEPS)]
    return [step[name] for step in steps for name in ("loss", "grad_norm")]


def steered(stage: str, config: DistributedConfig) -> list[float]:
    """The losses of DPO from step `LEFT` on, where the run goes on with another rate, schedule, decay, betas and
    clipping than it was left with."""
    batches = batches_of("dpo")
    rates = {"learning_rate": 3 * TRAIN.learning_rate, "schedule": Schedule.linear, "warmup_steps": 0}
    engine, _ = build("dpo", config, replace(TRAIN, **rates, weight_decay=0.5, betas=[0.5, 0.6], max_grad_norm=0.2))
    objective = objective_of("dpo", engine, batches)
    saved = torch.load(left(stage, collectives.size(), collectives.rank()), weights_only=True)
    engine.load_state(saved)
    steps = [train_step(engine, objective, batches.step(index)).means() for index in range(LEFT, STEPS)]
    return [engine.learning_rate(), *(step[name] for step in steps for name in ("loss", "grad_norm"))]


def exported(method: str, config: DistributedConfig) -> bool:
    """Whether the weights put together from what the ranks save are those of the model, bit for bit."""
    batches = batches_of(method)
    engine, model = build(method, config)
    train_step(engine, objective_of(method, engine, batches), batches.step(0))
    folder = Path(sys.argv[1]).parent
    torch.save(engine.state(), folder / f"state-{collectives.rank()}.pt")
    collectives.barrier()
    states = [torch.load(folder / f"state-{rank}.pt", weights_only=True) for rank in range(collectives.size())]
    with engine.gathered():
        groups = [group.weights for group in parameter_groups(model, TRAIN)]
        whole = whole_weights(states, [{name: p.shape for name, p in group.items()} for group in groups])
        same = [torch.equal(whole[name], p.cpu()) for group in groups for name, p in group.items()]
    collectives.barrier()
    return all(same)


def copied(config: DistributedConfig) -> bool:
    """Whether ZeRO 3's optimizer has weights of its own to update, beside the shards that are gathered."""
    engine, _ = build("sft", config)
    assert isinstance(engine, DeepSpeedEngine)
    zero = engine.model.optimizer
    pairs = zip(zero.fp32_partitioned_groups_flat, zero.fp16_partitioned_groups_flat, strict=True)
    return any(own.data_ptr() != shard.data_ptr() for own, shard in pairs)


class Spoilt:
    """An objective whose loss is infinite, with a gradient that is not, or whose loss is right and its gradient NaN."""

    def __init__(self, inner: Objective[Any], *, loss: bool) -> None:
        self.inner, self.loss, self.count = inner, loss, inner.count

    def __call__(self, model: Any, batch: Any) -> LossOutput:
        output = self.inner(model, batch)
        total = output.loss.total
        spoilt = total + torch.inf if self.loss else total + (total - total.detach()).square().sqrt()
        return LossOutput(Mean(spoilt, output.loss.count), output.metrics)


def left_out(config: DistributedConfig) -> bool:
    """Whether two steps with two spoilt ones between them are two steps, bit for bit."""
    batches = batches_of("sft")
    losses: list[list[float]] = []
    for spoil in (False, True):
        engine, _ = build("sft", config)
        objective, met = objective_of("sft", engine, batches), []
        first = train_step(engine, objective, batches.step(0))
        for loss in (True, False) if spoil else ():
            train_step(engine, Spoilt(objective, loss=loss), batches.step(1), met.append)
        assert len(met) == 2 * spoil and all(np.isfinite(broken.loss) != (at == 0) for at, broken in enumerate(met))
        second = train_step(engine, objective, batches.step(2))
        third = train_step(engine, objective, batches.step(3))
        losses.append([step[name].total.item() for step in (first, second, third) for name in ("loss", "grad_norm")])
        losses[-1].append(engine.learning_rate())
    return losses[0] == losses[1]


@contextmanager
def whole_at_once(module: nn.Module) -> Iterator[list[int]]:
    """The number of weights that are whole in this process as each part of the module runs."""
    numbers: list[int] = []

    def look(*_: Any) -> None:
        numbers.append(sum(p.numel() for p in module.parameters()))

    hooks = [part.register_forward_pre_hook(look) for part in module.modules()]
    yield numbers
    for hook in hooks:
        hook.remove()


@torch.no_grad()
def roles(config: DistributedConfig) -> dict[str, float]:
    """How far four roles under ZeRO 3 are from one plain model: each forward alike, gathered weights, generation."""
    actor, policy = build("dpo", config)
    critic, _ = build("reward", config)
    torch.manual_seed(0)
    model_config = ModelConfig(init=INIT)
    plain = load_language_model(model_config, load_tokenizer(model_config), WHOLE).to(actor.device)
    plain.eval()
    torch.manual_seed(0)
    shared_out = load_language_model(model_config, load_tokenizer(model_config), placement_of(config))
    sharded = FrozenEngine(shared_out, config=config, sharded=True)
    copied = FrozenEngine(deepcopy(plain), config=config, sharded=False)
    batch = batches_of("dpo").step(0)[0].to(actor.device)
    wanted = token_logprobs(plain, batch)

    def far(model: Any) -> float:
        return (token_logprobs(model, batch) - wanted).abs().max().item()

    found = {"actor": far(actor.model), "module": far(policy), "sharded": far(sharded.model), "copy": far(copied.model)}
    largest = max(p.numel() for p in plain.parameters())  # the embeddings, of more weights than a layer
    everything = sum(p.numel() for p in plain.parameters())
    found["kept"] = float(sum(p.numel() for p in policy.parameters()))
    for name, engine, module in (("actor", actor, policy), ("sharded", sharded, sharded.module)):
        for how, context in (("gathered", engine.gathered()), ("by layer", engine.by_layer())):
            with context, whole_at_once(module) as numbers:
                for _ in range(1 + collectives.rank()):  # nobody counts on anybody running as many
                    found[f"{name}, {how}"] = far(module)
                ids = torch.randint(3, 100, (2, 5)).to(actor.device)
                settings = {"max_new_tokens": 4 + collectives.rank(), "do_sample": False, "pad_token_id": 0}
                same = torch.equal(module.hf.generate(ids, **settings), plain.hf.generate(ids, **settings))
                found[f"{name}, {how}, generates"] = float(not same)
            found[f"{name}, {how}, whole"] = float(max(numbers) - (largest if how == "by layer" else everything))
    found["actor, again"] = far(actor.model)
    with torch.enable_grad():
        for engine, method in ((actor, "dpo"), (critic, "reward")):
            batches = batches_of(method)
            train_step(engine, objective_of(method, engine, batches), batches.step(0))
    found["sharded, still"] = far(sharded.model)
    for engine in (sharded, copied):
        engine.release()
        kept = engine.module.parameters()
        found["released"] = float(sum(p.numel() + ("ds_tensor" in vars(p) and p.ds_tensor.numel()) for p in kept))
    return found


def refused(config: DistributedConfig) -> list[str]:
    """What is said of a model that was loaded as if one process had it, by what would shard it unasked."""
    model_config = ModelConfig(init=INIT)
    model = load_language_model(model_config, load_tokenizer(model_config), WHOLE)
    optimizer, scheduler = build_optimizer(model, TRAIN, num_steps=STEPS, learning_rate=TRAIN.learning_rate)
    said = []
    for engine in (
        lambda: DeepSpeedEngine(model, optimizer, scheduler, config=config, max_grad_norm=TRAIN.max_grad_norm),
        lambda: FrozenEngine(model, config=config, sharded=True),
    ):
        try:
            engine()
        except UserError as error:
            said.append(str(error))
    return said


def held(stage: str, before: list[str], config: DistributedConfig) -> dict[str, Any]:
    """Of a stage: under two processes they go on also from the one of those `before` that was run last."""
    found: dict[str, Any] = {f"steered/{stage}": steered(stage, config)}
    if stage != "none":
        found[f"left out/{stage}"] = all(collectives.gathered(left_out(config)))
        found[f"exported/{stage}"] = all(collectives.gathered([exported(name, config) for name in ("sft", "lora")])[0])
        found[f"resumed/{stage}"] = all(collectives.gathered(resumed("sft", config)))
    if config.zero == 3:
        found[f"copied/{stage}"] = copied(config)
    if collectives.size() > 1:
        for other, processes in (("none", 1), [("3", 1), *((name, 2) for name in before)][-1]):
            found[f"on/{other}/{processes}/{stage}"] = goes_on(other, processes, config)
    return found


def main() -> None:
    gc.freeze()  # as a run does; DeepSpeed collects often
    torch.set_num_threads(1)
    out, cases = Path(sys.argv[1]), [case.split("/") for case in sys.argv[2:]]
    results: dict[str, Any] = {}
    done: list[str] = []
    for method, stage in cases:
        config = config_of(stage, out.parent)
        collectives.init(config)
        if method == "held":
            results |= held(stage, done, config)
            done.append(stage)
        else:
            kind = config_of(stage, out.parent, Precision.bfloat16) if method.startswith("bfloat16") else config
            results[f"{method}/{stage}"] = run(method, stage, kind)
    if collectives.size() > 1 and done:
        results["refused"] = collectives.gathered(refused(config_of("3", out.parent)))
        results["roles"] = collectives.gathered(roles(config_of("3", out.parent)))
    if collectives.is_main():
        out.write_text(json.dumps(results))


if __name__ == "__main__":
    main()
