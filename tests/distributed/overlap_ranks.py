"""What one process of the test of overlap does: two steps of two micro-batches, whose last leaves a weight out.

python overlap_ranks.py OUT STAGE ... with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT set; `none` is the plain
engine, and `1 beside` sums gradients beside the backward pass, as on a GPU.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR
from torch.utils._python_dispatch import TorchDispatchMode

from alignment.config.distributed import Device, DistributedConfig, Precision
from alignment.distributed import collectives
from alignment.distributed.deepspeed import DeepSpeedEngine
from alignment.distributed.engine import TorchEngine

WIDTH, LAYERS = 4, 3
ROWS = 4  # of a micro-batch, on all processes together


class Model(nn.Module):
    """Layers one after another, and one that may be left out."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS))
        self.other = nn.Linear(WIDTH, WIDTH)

    def forward(self, rows: Tensor, is_whole: bool) -> Tensor:
        hidden = rows
        for layer in self.layers:
            hidden = layer(hidden).tanh()
        return (hidden + self.other(rows) if is_whole else hidden).square().sum()


class Noted(TorchDispatchMode):
    """Notes each collective that is started inside."""

    def __init__(self, events: list[str]) -> None:
        super().__init__()
        self.events = events

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if operation._schema.name.startswith("c10d::"):
            self.events.append("sum")
        return operation(*args, **(kwargs or {}))


def config_of(stage: str, folder: Path) -> DistributedConfig:
    if stage == "none":
        return DistributedConfig(device=Device.cpu, precision=Precision.float32)
    path = folder / f"{stage}-{collectives.num_launched()}-{collectives.rank()}.json"
    zero = {"reduce_bucket_size": WIDTH * (WIDTH + 1), "overlap_comm": stage.endswith("beside")}  # a layer at once
    path.write_text(json.dumps({"zero_optimization": zero}))
    return DistributedConfig(
        device=Device.cpu, precision=Precision.float32, zero=int(stage[0]), deepspeed_config=str(path)
    )


def found_of(stage: str, folder: Path) -> dict[str, Any]:
    """The norms of two steps, and of the second what was made and sent in which order, by micro-batch and step."""
    config = config_of(stage, folder)
    collectives.init(config)
    model = Model()
    optimizer = SGD(model.parameters(), lr=0.1)
    kind = TorchEngine if stage == "none" else DeepSpeedEngine
    engine = kind(model, optimizer, LambdaLR(optimizer, lambda _: 1.0), config=config, max_grad_norm=1e9)
    events: list[str] = []
    for name, weight in model.named_parameters():
        weight.register_post_accumulate_grad_hook(lambda _, name=name: events.append(name))
    rows = torch.randn(2, ROWS, WIDTH, generator=torch.Generator().manual_seed(0))
    own = slice(collectives.rank(), None, collectives.size())
    norms, order = [], {}
    for _ in range(2):
        order = {}
        for number, batch in enumerate(rows):
            events.clear()
            with Noted(events):
                engine.backward(engine.model(batch[own], number == 0), is_last=number == 1)
            order[f"pass {number}"] = list(events)
        events.clear()
        with Noted(events):
            norm, _ = engine.step()
        order["step"] = list(events)
        norms.append(norm.item())
    return {"norms": norms, "order": order}


def main() -> None:
    out = Path(sys.argv[1])
    found = {stage: found_of(stage, out.parent) for stage in sys.argv[2:]}
    if collectives.is_main():
        out.write_text(json.dumps(found))
    collectives.leave()


if __name__ == "__main__":
    main()
