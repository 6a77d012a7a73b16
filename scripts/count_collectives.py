"""What each of several processes sends in a training step: collectives and bytes, counted on two processes of a CPU.

python scripts/count_collectives.py [METHOD ...]

It starts the two itself. What is counted is the same between GPUs: of a collective the whole tensor that it is about,
what is summed, or what a gather or a scatter has on its wide side. tests/distributed/test_wire.py holds bounds on it.
"""

import json
import os
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from count_operations import Counted, CountedStepWide, Operations
from counted_steps import METHODS, SCALAR, SIZES, objective_of, unit_of
from torch import Tensor
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from torch.utils._pytree import tree_leaves

from alignment.config.batch import Layout
from alignment.config.distributed import Device, DistributedConfig, Precision
from alignment.config.model import Attention, ModelConfig
from alignment.distributed import collectives
from alignment.distributed.deepspeed import DeepSpeedEngine
from alignment.distributed.sharded import placement_of
from alignment.models.load import load_language_model, load_scalar_model
from alignment.models.tokenizer import load_tokenizer
from alignment.training.objectives import StepWide
from alignment.training.step import train_step

STAGES = (0, 1, 2, 3)
GROUPS = 4
LAYERS = 2
EVERYTHING = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}  # is sharded, as in a larger model


class Collectives(Operations):
    """Counts those that are started inside, beside all operations."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0
        self.sent: Counter[str] = Counter()
        """Bytes, by dtype."""

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if operation._schema.name.startswith("c10d::"):
            tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
            widest = max(tensors, key=lambda each: each.numel() * each.element_size())
            self.number += 1
            self.sent[str(widest.dtype).removeprefix("torch.")] += widest.numel() * widest.element_size()
        return super().__torch_dispatch__(operation, types, args, kwargs)


def step(method: str, layout: Layout, config: DistributedConfig, micro_batches: int) -> dict[str, Any]:
    """Of a step after the first one: how many collectives, the bytes that they send in each dtype, how many modules are
    called and how often a GPU would be waited for. Each process has other rows, and the later ones more of them."""
    init = {"model_type": "llama", "num_hidden_layers": LAYERS, "tie_word_embeddings": False, **SIZES}
    load: Any = load_scalar_model if method in SCALAR else load_language_model
    settings = ModelConfig(init=init, attention=Attention.sdpa)
    torch.manual_seed(0)
    model = load(settings, load_tokenizer(settings), placement_of(config))
    optimizer = AdamW(model.parameters(), fused=True)
    scheduler = LambdaLR(optimizer, lambda _: 1.0)
    engine = DeepSpeedEngine(model, optimizer, scheduler, config=config, max_grad_norm=1.0)
    groups = GROUPS + collectives.rank()
    units, objective = [unit_of(method, groups, layout)] * micro_batches, objective_of(method, groups, layout)
    with torch.no_grad(), engine.precision():  # as of a reference before the first step
        for unit in units * 2:
            objective(engine.model, unit)
    for _ in range(2):  # ZeRO 3 notes the order of the modules, and gathers ahead from then on
        train_step(engine, objective, units)
    called: Counter[str] = Counter()
    noted = register_module_forward_pre_hook(lambda module, _: called.update([type(module).__name__]))
    seen = Collectives()
    counted: Any = (CountedStepWide if isinstance(objective, StepWide) else Counted)(objective, seen)
    with seen:
        train_step(engine, counted, units)
    noted.remove()
    counts = {"collectives": seen.number, "calls": called.total(), "sent": dict(seen.sent)}
    return counts | {"waits": seen.waits.total(), "weights": 4 * engine.num_trained}


def count(methods: Sequence[str], folder: Path) -> dict[str, Any]:
    """In one of the processes: each method under each stage, by layout, precision and micro-batches."""
    raw = folder / f"deepspeed-{os.environ['RANK']}.json"
    raw.write_text(json.dumps(EVERYTHING))
    found: dict[str, Any] = {}
    for stage in STAGES:
        for precision in (Precision.float32, Precision.bfloat16):
            config = DistributedConfig(device=Device.cpu, precision=precision, zero=stage, deepspeed_config=str(raw))
            collectives.init(config)
            for method in methods:
                for layout in (Layout.shared, Layout.separate) if precision is Precision.float32 else (Layout.shared,):
                    one, two = (step(method, layout, config, number) for number in (1, 2))
                    found[f"{method}/{stage}/{precision.value}/{layout.value}"] = {"one": one, "two": two}
    return found


def cells(counted: dict[str, Any]) -> list[str]:
    """A step's waits; collectives of one of one micro-batch and of each more, and the bytes of both, of the weights' in
    float32."""
    one, two = counted["one"], counted["two"]
    sent = [sum(each["sent"].values()) / each["weights"] for each in (one, two)]
    more = two["collectives"] - one["collectives"]
    return [str(one["waits"]), str(one["collectives"]), str(more), f"{sent[0]:.2f}", f"{sent[1] - sent[0]:.2f}"]


def in_two_processes(methods: Sequence[str], folder: Path) -> dict[str, Any]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, *methods, f"--in={folder}"]
    started = [subprocess.Popen(command, env={**shared, "RANK": str(r), "LOCAL_RANK": str(r)}) for r in range(2)]
    if sum([process.wait() for process in started]):
        raise SystemExit("a process has failed")
    found: dict[str, Any] = json.loads((folder / "found.json").read_text())
    return found


def main() -> None:
    folder = next((Path(word[5:]) for word in sys.argv[1:] if word.startswith("--in=")), None)
    methods = [word for word in sys.argv[1:] if not word.startswith("--")] or list(METHODS)
    if folder is not None:
        first, *others = collectives.gathered(count(methods, folder))
        if collectives.is_main():
            (folder / "found.json").write_text(json.dumps(first))
            (folder / "others.json").write_text(json.dumps(others))
        collectives.leave()
        return
    with TemporaryDirectory() as made:
        found = in_two_processes(methods, Path(made))
    head = "| method | ZeRO | waits | collectives | of each further micro-batch "
    head += "| sent | of each | sent in bfloat16 | of each |"
    print(head)
    print("|---" * (head.count("|") - 1) + "|")
    for method in methods:
        for stage in STAGES:
            wide, narrow = (cells(found[f"{method}/{stage}/{kind}/shared"]) for kind in ("float32", "bfloat16"))
            print("|", " | ".join([method, str(stage), *wide, *narrow[3:]]), "|", flush=True)


if __name__ == "__main__":
    main()
