"""How many operations a training step issues, what it makes and how often it would wait for a GPU: counted, on a CPU.

python scripts/count_operations.py

What is counted here is the same on a GPU. The kernels of attention in one call a layer are stood in for by ones that
give zeros; all that is around them runs. tests/training/test_operations.py holds bounds on these numbers. What several
processes send each other is in a table behind this one, which scripts/count_collectives.py makes.
"""

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from counted_steps import METHODS, SCALAR, SIZES, objective_of, unit_of
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from alignment.config.batch import Layout
from alignment.config.distributed import Device, DistributedConfig
from alignment.config.model import Attention, ModelConfig
from alignment.data.pack import Batch
from alignment.distributed.engine import TorchEngine
from alignment.distributed.placement import WHOLE
from alignment.losses import (
    LossOutput,
)
from alignment.models import varlen
from alignment.models.load import load_language_model, load_scalar_model
from alignment.models.tokenizer import load_tokenizer
from alignment.training.objectives import StepWide
from alignment.training.step import train_step

WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique_dim", "_unique", "_unique2"}
"""Operations whose result, or its size, the host has to have."""
GROUPS = (1, 64)


class Operations(TorchDispatchMode):
    """Counts what is issued inside, but for what is done on the host anyway (`pausing`)."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()
        self.made = 0
        self.shapes: set[tuple[int, ...]] = set()
        self.is_paused = False

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = operation(*args, **(kwargs or {}))
        if self.is_paused:
            return results
        name = operation._schema.name.partition("::")[2]
        self.names[name] += 1
        if name in WAITS or _needs_a_size(name, args, kwargs or {}):
            self.waits[name] += 1
        tensors = [each for each in tree_leaves(results) if isinstance(each, Tensor)]
        if not operation.is_view:
            self.made += sum(each.numel() * each.element_size() for each in tensors)
        self.shapes.update(tuple(each.shape) for each in tensors)
        return results

    @property
    def total(self) -> int:
        return self.names.total()

    @contextmanager
    def pausing(self) -> Iterator[None]:
        self.is_paused = True
        yield
        self.is_paused = False


def _needs_a_size(name: str, args: Sequence[Any], settings: dict[str, Any]) -> bool:
    """Whether it is indexed by a mask, or repeats by numbers on the device without being told their sum."""
    if name == "repeat_interleave":
        return settings.get("output_size") is None
    is_index = name.startswith(("index", "_index_put")) and len(args) > 1 and isinstance(args[1], list | tuple)
    return is_index and any(isinstance(each, Tensor) and each.dtype == torch.bool for each in args[1])


@dataclass
class Counted:
    """An objective of which is counted what comes after its batch is on the device: how many forward operations."""

    objective: Any
    seen: Operations
    forward: list[int] = field(default_factory=list)

    def __call__(self, model: nn.Module, batch: Batch) -> LossOutput:
        before = self.seen.total
        output: LossOutput = self.objective(model, batch)
        self.forward.append(self.seen.total - before)
        return output

    def count(self, batch: Batch) -> float:
        with self.seen.pausing():  # of the batch on the host
            found: float = self.objective.count(batch)
        return found


@dataclass
class CountedStepWide(Counted):
    """The same of one that reads something of the whole step first, whose rows are packed on the host."""

    def prepare(self, engine: Any, batches: Any) -> None:
        with self.seen.pausing():
            packed = {
                tuple(batch.rows.tolist()): self.objective.mismatched.of(batch.rows.tolist()) for batch, _ in batches
            }
        mismatched, self.objective.mismatched = self.objective.mismatched, _Packed(packed)
        self.objective.prepare(engine, batches)
        self.objective.mismatched = mismatched


@dataclass(frozen=True)
class _Packed:
    batches: dict[tuple[int, ...], Batch]

    def of(self, rows: list[int]) -> Batch:
        return self.batches[tuple(rows)]


@contextmanager
def with_kernels() -> Iterator[None]:
    """Inside, a CPU has the kernels of attention in one call a layer, which give zeros."""
    library = torch.library.Library("aten", "IMPL")
    library.impl("_flash_attention_forward", _forward, "CPU")
    library.impl("_flash_attention_backward", _backward, "CPU")
    former = varlen.DEVICES, varlen.DTYPES
    varlen.DEVICES, varlen.DTYPES = ("cpu",), (torch.float32,)
    try:
        yield
    finally:
        varlen.DEVICES, varlen.DTYPES = former
        library._destroy()


def _forward(query: Tensor, *rest: Any, **settings: Any) -> tuple[Tensor, ...]:
    nothing = query.new_zeros(0)
    return torch.zeros_like(query), query.new_zeros(query.shape[1::-1]), nothing, nothing.clone(), nothing.clone()


def _backward(_: Tensor, *parts: Any, **settings: Any) -> tuple[Tensor, ...]:
    query, key, value, *_rest = parts
    return torch.zeros_like(query), torch.zeros_like(key), torch.zeros_like(value)


def engine_of(method: str, layers: int, attention: Attention) -> TorchEngine:
    load: Any = load_scalar_model if method in SCALAR else load_language_model
    init = {"model_type": "llama", "num_hidden_layers": layers, **SIZES}
    tokenizer = load_tokenizer(ModelConfig(init=init))
    model = load(ModelConfig(init=init, attention=attention), tokenizer, WHOLE)
    optimizer = AdamW(model.parameters(), fused=True)
    config = DistributedConfig(device=Device.cpu)
    return TorchEngine(model, optimizer, LambdaLR(optimizer, lambda _: 1.0), config=config, max_grad_norm=1.0)


@dataclass(frozen=True)
class Count:
    """Of one step."""

    operations: int
    forward: int  # of its first micro-batch
    waits: dict[str, int]
    made: int  # bytes


def step(
    method: str,
    layout: Layout,
    attention: Attention,
    groups: int,
    layers: int,
    micro_batches: int = 1,
    *,
    times: int = 1,
) -> Count:
    """A step on so many micro-batches of so many prompts each, `times` as long, the optimizer's part included."""
    engine = engine_of(method, layers, attention)
    batch = unit_of(method, groups, layout, times)
    objective = objective_of(method, groups, layout, times)
    train_step(engine, objective, [batch])  # what is made once
    seen = Operations()
    counted: Any = (CountedStepWide if isinstance(objective, StepWide) else Counted)(objective, seen)
    with seen:
        train_step(engine, counted, [batch] * micro_batches)
    return Count(seen.total, counted.forward[0], dict(seen.waits), seen.made)


def a_layer(method: str, layout: Layout, attention: Attention, groups: int) -> tuple[int, int]:
    """Operations of one layer more, forward, and backward with its part of the optimizer's step."""
    two, one = (step(method, layout, attention, groups, layers) for layers in (3, 2))
    forward = two.forward - one.forward
    return forward, two.operations - one.operations - forward


def main() -> None:
    ways = {
        "one call a layer (a GPU)": (Layout.shared, Attention.auto),
        "group by group (a CPU)": (Layout.shared, Attention.sdpa),
        "separate rows": (Layout.separate, Attention.auto),
    }
    print("| method | attention | prompts | a layer, forward | a layer, backward | a step | its waits | MB made |")
    print("|---|---|---|---|---|---|---|---|")
    with with_kernels():
        for method in METHODS:
            for name, (layout, attention) in ways.items():
                for groups in GROUPS:
                    forward, backward = a_layer(method, layout, attention, groups)
                    whole = step(method, layout, attention, groups, 2)
                    cells = (method, name, groups, forward, backward, whole.operations, sum(whole.waits.values()))
                    print("|", " | ".join(map(str, cells)), f"| {whole.made / 1e6:.1f} |", flush=True)
    print(flush=True)
    subprocess.run([sys.executable, str(Path(__file__).with_name("count_collectives.py"))], check=True)


if __name__ == "__main__":
    main()
