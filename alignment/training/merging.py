"""Low rank again and again: every few steps the adapter is merged, a new one begins, and the learning rate rises anew
(ReLoRA, arXiv:2307.05695; PLoRA, arXiv:2402.16141, of whole batches)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from alignment.config.model import LoraConfig
from alignment.distributed.collectives import is_main, rank, tensor_from_main
from alignment.distributed.engine import Engine, shape_of
from alignment.distributed.reshard import piece
from alignment.models.adapters import lora_layers
from alignment.models.heads import Trunk
from alignment.models.merged_base import KEY, base_weights, merge_and_begin
from alignment.terminal import say
from alignment.training.checkpoint import Stateful


class Merging:
    """What a checkpoint has of it are the weights beneath the adapters, once they are others than `model.path` has: of
    weights that are whole in each process once, of those that are shared out each process's part."""

    def __init__(self, engine: Engine, model: Trunk, config: LoraConfig, seed: int) -> None:
        """Raises:
        ConfigError: the base is packed, or more than a sum is merged into it.
        """
        self.engine, self.model, self.config, self.seed = engine, model, config, seed
        self.base = base_weights(model)
        self.steps = 0  # that were taken, as schedules count them

    def after(self) -> None:
        """Merge, where the step that was taken is one to merge after."""
        self.steps += 1
        if self.steps % self.config.merge_every == 0:
            number = self.steps // self.config.merge_every
            generator = torch.Generator().manual_seed((self.seed + number * 1_000_003) % 2**63)
            with self.engine.partitioned():
                begun = merge_and_begin(self.model, self.config.init, generator, self.model.placement)
            self.engine.forget(begun)
            self.model.changed()

    def state(self) -> dict[str, Any]:
        parts = {name: (self.model.placement.shard_of(w), shape_of(w)) for name, w in self.base.items()}
        base = {name: part for name, (part, shape) in parts.items() if part.shape != shape or is_main()}
        return {"steps": self.steps, "base": base if self.steps >= self.config.merge_every else {}}

    @torch.no_grad()
    def load_state(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]
        if self.steps < self.config.merge_every:
            return
        with self.engine.partitioned():
            for name, weight in self.base.items():
                part = self.model.placement.shard_of(weight)
                if name in state["base"]:
                    part.copy_(state["base"][name])
                if part.shape == shape_of(weight):
                    part.copy_(tensor_from_main(part))

    def load_resharded(self, saved: Sequence[dict[str, Any]]) -> None:
        """From what ranks 0, 1, ... saved."""
        self.steps = saved[0]["steps"]
        with self.engine.partitioned():
            fill_base(self.model, saved)


def merging_of(engine: Engine, model: Trunk, config: LoraConfig, *, num_steps: int, seed: int) -> Merging | None:
    """That of an engine's model, with a line on how often it merges; None where no adapter is merged."""
    every = config.merge_every
    if every == 0 or not lora_layers(model.hf):
        return None
    times = f"{KEY}={every}: {num_steps // every} merges in the run's {num_steps} steps"
    say(f"{'WARNING: ' if num_steps < every else ''}{times}; the whole model is left, and no adapter")
    return Merging(engine, model, config, seed)


@torch.no_grad()
def fill_base(model: Trunk, saved: Sequence[dict[str, Any]]) -> None:
    """The weights beneath the adapters, of what ranks 0, 1, ... saved of them; as they are where nothing was merged."""
    for name, weight in base_weights(model).items():
        parts = [state["base"][name] for state in saved if name in state["base"]]
        if parts:
            own = model.placement.shard_of(weight)
            own.copy_(piece(parts, shape_of(weight), own, rank=rank()))


def merging_part(part: str) -> str:
    """The name in a checkpoint of what the engine that is its part `part` has merged."""
    return f"{part}_merging"


def with_merging(engines: Mapping[str, Engine]) -> dict[str, Stateful]:
    """The engines as parts of a checkpoint, and what each has merged, behind it."""
    parts: dict[str, Stateful] = {}
    for name, engine in engines.items():
        parts[name] = engine
        if engine.merging is not None:
            parts[merging_part(name)] = engine.merging
    return parts
