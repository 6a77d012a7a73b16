"""What one process of the test of float16 does: steps of which one overflows, on one process alone.

python float16_ranks.py OUT STAGE ... with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT set.
"""

import json
import sys
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from ranks import BATCH, INIT, examples
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from alignment.config.distributed import Device, DistributedConfig, Precision
from alignment.config.model import ModelConfig
from alignment.data.batches import Batches, Packer
from alignment.data.pack import Batch
from alignment.distributed import collectives
from alignment.distributed.deepspeed import DeepSpeedEngine
from alignment.distributed.sharded import placement_of
from alignment.losses import CrossEntropyLoss, LossOutput, Mean
from alignment.models.load import load_language_model
from alignment.models.tokenizer import load_tokenizer
from alignment.training.objectives import SFT
from alignment.training.step import Learner, train_step, train_together

SCALE = 2.0**10
CLIPPED = 0.05


class Overflowing(SFT):
    """Of a finite loss, whose gradient is none in float16 on the last process."""

    def __call__(self, model: nn.Module, batch: Batch) -> LossOutput:
        loss = SFT.__call__(self, model, batch).loss
        factor = 1e12 if collectives.rank() == collectives.size() - 1 else 1.0
        return LossOutput(Mean(loss.total * factor, loss.count), {})


def build(config: DistributedConfig) -> DeepSpeedEngine:
    torch.manual_seed(0)
    settings = ModelConfig(init=INIT)
    model = load_language_model(settings, load_tokenizer(settings), placement_of(config))
    optimizer = AdamW(model.parameters(), lr=3e-3)
    schedule = LambdaLR(optimizer, lambda step: 1 - step / 100)
    return DeepSpeedEngine(model, optimizer, schedule, config=config, max_grad_norm=CLIPPED)


def is_alike(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(is_alike(one[name], other[name]) for name in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(is_alike, one, other))
    return torch.equal(one, other) if isinstance(one, Tensor) else one == other


def copied(engine: DeepSpeedEngine) -> dict[str, Any]:
    state: dict[str, Any] = deepcopy(engine.state())
    return state


def without_scale(engine: DeepSpeedEngine) -> dict[str, Any]:
    return {name: each for name, each in copied(engine).items() if name != "loss_scale"}


def but_began(engine: DeepSpeedEngine) -> dict[str, Any]:
    """All but the scale that it was built with, which another one that is as it is now need not have."""
    state = copied(engine)
    del state["loss_scale"]["began"]
    return state


def scales(*engines: DeepSpeedEngine) -> list[float]:
    return [each.scaling.scale for each in engines if each.scaling is not None]


def found_of(stage: int, batches: Batches) -> dict[str, bool]:
    plain = DistributedConfig(device=Device.cpu, precision=Precision.float16, zero=stage, initial_loss_scale=SCALE)
    config, sft, bad = replace(plain, loss_scale_window=2), SFT(CrossEntropyLoss()), Overflowing(CrossEntropyLoss())
    engine, other = build(config), build(replace(config, initial_loss_scale=SCALE / 2))
    before = without_scale(engine)
    told = train_step(engine, bad, batches.step(0)).means()
    is_left_out = told == {"precision/loss_scale": SCALE, "precision/skipped": 1.0}
    alone = is_left_out and is_alike(before, without_scale(engine)) and scales(engine) == [SCALE / 2]
    pairs = [[train_step(each, sft, batches.step(step)).means() for each in (engine, other)] for step in range(3)]
    alone = alone and all(first == second for first, second in pairs) and is_alike(but_began(engine), but_began(other))
    alone = alone and scales(engine) == [SCALE] and "loss" in pairs[0][0]

    states = [without_scale(engine), without_scale(other)]
    together = True
    for which in ((sft, bad), (bad, sft)):
        learners = [Learner(each, kind, batches.step(4)) for each, kind in zip((engine, other), which, strict=True)]
        told_of = [each.means() for each in train_together(learners[0], learners[1])]
        together = together and [each["precision/skipped"] for each in told_of] == [1.0, 1.0]
        together = together and is_alike(states, [without_scale(engine), without_scale(other)])
    together = together and scales(engine, other) == [SCALE / 4, SCALE / 4]
    learners = [Learner(each, sft, batches.step(4)) for each in (engine, other)]
    one, two = (each.means() for each in train_together(learners[0], learners[1]))
    together = together and one == two and "loss" in one and is_alike(but_began(engine), but_began(other))

    again = build(config)
    again.load_state(copied(engine))
    resumed = scales(again) == scales(engine) == [SCALE / 4]
    for step in (5, 6):
        resumed = resumed and is_alike(*(train_step(e, sft, batches.step(step)).means() for e in (engine, again)))
    resumed = resumed and is_alike(copied(engine), copied(again))

    exact = build(DistributedConfig(device=Device.cpu, precision=Precision.float32, zero=stage))
    half = build(config)
    norms = [train_step(each, sft, batches.step(0)).means()["grad_norm"] for each in (exact, half)]
    moments = [_first_moments(each) for each in (exact, half)]
    clipped = abs(norms[0] - norms[1]) < 0.02 * norms[0] and norms[0] > 4 * CLIPPED
    clipped = clipped and bool((moments[0] - moments[1]).norm() < 0.05 * moments[0].norm())
    return {"alone": alone, "together": together, "resumed": resumed, "clipped": clipped}


def _first_moments(engine: DeepSpeedEngine) -> Tensor:
    """A tenth of the gradient after clipping."""
    states = engine.state()["optimizer"]["state"].values()
    return torch.cat([each["exp_avg"].flatten() for each in states])


def main() -> None:
    found = {}
    for stage in map(int, sys.argv[2:]):
        collectives.init(DistributedConfig(device=Device.cpu, zero=stage))
        batches = Batches(examples(1), Packer(BATCH, 0, collectives.rank(), collectives.size()), 0)
        each = collectives.gathered(found_of(stage, batches))
        found[stage] = {name: all(one[name] for one in each) for name in each[0]}
    if collectives.is_main():
        Path(sys.argv[1]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
