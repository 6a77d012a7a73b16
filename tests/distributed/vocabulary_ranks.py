"""What one process of the test of a real vocabulary does: ten steps of each method with 131,072 pieces, the logits of
which take another number of chunks on one process than on the other.

python vocabulary_ranks.py OUT METHOD/STAGE ... with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT set, as ranks.py.
"""

import gc
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ranks
import torch
from torch import Tensor

from alignment.config.batch import BatchConfig, Layout
from alignment.config.distributed import DistributedConfig
from alignment.distributed import collectives
from alignment.distributed.deepspeed import ready
from alignment.models import heads
from alignment.models.logprobs import logprobs_of
from alignment.training.step import train_step

PIECES = 131_072
CHUNK = 8  # tokens: as many logits at a time as there are of many thousand tokens in a run
ON_HEAD = "lora on the head"


def make_small() -> None:
    """Few weights beside those of the vocabulary, few tokens, and many chunks of them."""
    ranks.INIT |= {"vocab_size": PIECES, "hidden_size": 16, "intermediate_size": 24}
    ranks.BATCH = BatchConfig(size=4, max_tokens=48, layout=Layout.shared)
    heads.CHUNK = CHUNK * PIECES


@contextmanager
def counted_chunks() -> Iterator[list[int]]:
    """The number of tokens of each chunk whose logits are made."""
    sizes: list[int] = []

    def seen(logits: Tensor, *arguments: Any) -> Tensor:
        sizes.append(len(logits))
        return logprobs_of(logits, *arguments)

    heads.logprobs_of = seen
    try:
        yield sizes
    finally:
        heads.logprobs_of = logprobs_of


def gathers(method: str, config: DistributedConfig) -> dict[str, Any]:
    """Of the backward and forward passes of one step: which modules' weights are gathered, in order, and the chunks."""
    engine, model = ranks.build(method, config)
    batches = ranks.batches_of(method)
    objective = ranks.objective_of(method, engine, batches)
    names = {module: name for name, module in model.named_modules()}
    ready(config)
    from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator as Coordinator

    fetch, found = Coordinator.fetch_sub_module, []

    def fetched(coordinator: Any, module: torch.nn.Module, forward: bool) -> None:
        if list(module.parameters(recurse=False)):
            found.append(f"{'forward' if forward else 'backward'} {names.get(module, '')}")
        fetch(coordinator, module, forward)

    Coordinator.fetch_sub_module = fetched
    micro_batches = batches.step(0)
    try:
        with counted_chunks() as sizes:
            train_step(engine, objective, micro_batches)
    finally:
        Coordinator.fetch_sub_module = fetch
    return {"gathers": found, "chunks": len(sizes), "micro-batches": len(micro_batches)}


def main() -> None:
    gc.freeze()  # as a run does; DeepSpeed collects often
    torch.set_num_threads(1)
    make_small()
    out, cases = Path(sys.argv[1]), [case.split("/") for case in sys.argv[2:]]
    results: dict[str, Any] = {}
    for method, stage in cases:
        config = ranks.config_of(stage, out.parent)
        collectives.init(config)
        results[f"{method}/{stage}"] = ranks.run(method, stage, config)
    if [ON_HEAD, "3"] in cases:
        for method in ("sft", ON_HEAD):
            results[f"gathers/{method}"] = collectives.gathered(gathers(method, ranks.config_of("3", out.parent)))
    if collectives.is_main():
        out.write_text(json.dumps(results))


if __name__ == "__main__":
    main()
