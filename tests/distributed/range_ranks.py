"""What one process of the test of ranges does: the counts of two steps under each ZeRO stage.

python range_ranks.py OUT STAGE ... with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT set; `none` is the plain engine.
"""

import json
import sys
from pathlib import Path

import ranks
import torch

from alignment.distributed import collectives
from alignment.distributed.ranges import RangeWatch
from alignment.models.layer_names import layers_of
from alignment.training.step import train_step


def counts(stage: str) -> list[dict[str, list[float]]]:
    """Of each step, name -> the sum and the count of all processes. A step computes in float32, and is held to float16,
    so that nothing is rounded in another way where there are several processes."""
    engine, model = ranks.build("sft", ranks.config_of(stage, Path(sys.argv[1]).parent))
    engine.watch = RangeWatch(layers_of(model), dtype=torch.float16, every=1)
    batches = ranks.batches_of("sft")
    objective = ranks.objective_of("sft", engine, batches)
    found = []
    for step in range(2):
        metrics = train_step(engine, objective, batches.step(step))
        seen = {name: mean for name, mean in metrics.items() if name.startswith("ranges/")}
        pairs = [torch.stack([mean.total, mean.count]) for mean in seen.values()]
        found.append(dict(zip(seen, collectives.sum_over_ranks(torch.stack(pairs)).tolist(), strict=True)))
    return found


def main() -> None:
    found = {stage: counts(stage) for stage in sys.argv[2:]}
    if collectives.is_main():
        Path(sys.argv[1]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
