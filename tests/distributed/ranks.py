"""What one process of the invariance test does: ten steps of every method under the ZeRO stages asked for.

python ranks.py OUT STAGE ... with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT set; `none` is the plain engine.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from alignment.config.parts import BatchConfig, DistributedConfig, LoraConfig, ModelConfig, TrainConfig
from alignment.config.vocabulary import Device, Layout
from alignment.data.batches import Batches
from alignment.data.records import Source
from alignment.data.tokenize import Example
from alignment.distributed import world
from alignment.distributed.deepspeed import DeepSpeedEngine
from alignment.distributed.engine import Engine, TorchEngine
from alignment.losses import CrossEntropyLoss, DPOLoss, MarginRankingLoss, ORPOLoss
from alignment.models.load import load_language_model, load_scalar_model, load_tokenizer
from alignment.training.objectives import DPO, ORPO, SFT, Objective, RewardRanking
from alignment.training.optim import build_optimizer
from alignment.training.reference import reference_logprobs
from alignment.training.step import evaluate_step, to_floats, train_step

STEPS = 10
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
METHODS = ("sft", "reward", "dpo", "orpo", "lora")


def examples(num_completions: int) -> list[Example]:
    """Rows of very different lengths, so that a mean of means would show."""
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(11):
        prompt, *completions = (rng.integers(3, 2000, n).astype(np.int32) for n in rng.integers(1, 14, 3))
        margin = float(rng.integers(0, 4))
        taken = tuple(completions[:num_completions])
        rows.append(Example(prompt, taken, margin, Source("rows.jsonl", 1), (True,) * num_completions))
    return rows


def config_of(stage: str, folder: Path) -> DistributedConfig:
    if stage == "none":
        return DistributedConfig(device=Device.cpu)
    settings = folder / "deepspeed.json"
    settings.write_text('{"zero_optimization": {"stage3_param_persistence_threshold": 0}}')  # nothing stays whole
    return DistributedConfig(device=Device.cpu, zero=int(stage), deepspeed_config=str(settings))


def build(method: str, config: DistributedConfig) -> tuple[Engine, Any]:
    torch.manual_seed(0)
    lora = LoraConfig(rank=4) if method == "lora" else LoraConfig()
    model_config = ModelConfig(init=INIT, lora=lora, gradient_checkpointing=method in ("orpo", "lora"))
    tokenizer = load_tokenizer(model_config)
    load = load_scalar_model if method == "reward" else load_language_model
    model = load(model_config, tokenizer)
    optimizer, scheduler = build_optimizer(model, TRAIN, num_steps=STEPS, learning_rate=TRAIN.learning_rate)
    kind = TorchEngine if config.zero is None else DeepSpeedEngine
    return kind(model, optimizer, scheduler, config=config, max_grad_norm=TRAIN.max_grad_norm), model


def objective_of(method: str, engine: Engine, batches: Batches) -> Objective[Any]:
    if method in ("dpo", "lora"):
        return DPO(DPOLoss(beta=0.3), reference_logprobs(engine, batches, range(len(batches.examples))))
    return {"sft": SFT(CrossEntropyLoss()), "reward": RewardRanking(MarginRankingLoss()), "orpo": ORPO(ORPOLoss())}[
        method
    ]


def run(method: str, config: DistributedConfig) -> dict[str, list[float]]:
    engine, _ = build(method, config)
    batches = Batches(examples(1 if method == "sft" else 2), BATCH, 0, 0, world.rank(), world.size())
    objective = objective_of(method, engine, batches)
    steps = [to_floats(train_step(engine, objective, batches.step(index))) for index in range(STEPS)]
    seen = {name: [step[name] for step in steps] for name in ("loss", "grad_norm")}
    evaluated = to_floats(evaluate_step(engine, objective, batches.once(), batches.spare()))
    return {**seen, "eval": [evaluated["loss"]]}


def resumed(method: str, config: DistributedConfig) -> bool:
    """Whether four steps, and two steps, a fresh engine and two more, are the same bit for bit."""
    batches = Batches(examples(1 if method == "sft" else 2), BATCH, 0, 0, world.rank(), world.size())
    unbroken, _ = build(method, config)
    objective = objective_of(method, unbroken, batches)
    taken = [train_step(unbroken, objective, batches.step(index)) for index in range(2)]
    saved = Path(sys.argv[1]).parent / f"rank-{world.rank()}.pt"
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


def main() -> None:
    torch.set_num_threads(1)
    out, stages = Path(sys.argv[1]), sys.argv[2:]
    results: dict[str, Any] = {}
    for stage in stages:
        config = config_of(stage, out.parent)
        world.init(config)
        for method in METHODS:
            results[f"{method}/{stage}"] = run(method, config)
            print(method, stage, results[f"{method}/{stage}"], flush=True)
        if stage != "none":
            results[f"resumed/{stage}"] = all(world.gather(resumed("sft", config)))
            print("resumed", stage, results[f"resumed/{stage}"], flush=True)
    if world.is_main():
        out.write_text(json.dumps(results))
    world.leave()


if __name__ == "__main__":
    main()
