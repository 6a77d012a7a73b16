"""Low rank again and again: every few steps the adapter is merged, a new one begins, and the learning rate rises anew
(ReLoRA, arXiv:2307.05695; PLoRA, arXiv:2402.16141, of whole batches)."""

from typing import Any

import torch

from alignment.config.model import LoraConfig
from alignment.config.run import TrainingConfig
from alignment.distributed.engine import Engine
from alignment.models.heads import Trunk
from alignment.models.merged_base import KEY, base_weights, merge_and_begin
from alignment.terminal import say
from alignment.training.metrics import Metrics


class Merging:
    """What a checkpoint has of it are the weights beneath the adapters, once they are others than `model.path` has."""

    def __init__(self, engine: Engine, model: Trunk, config: LoraConfig, seed: int) -> None:
        """Raises:
        ConfigError: the base is packed.
        """
        self.engine, self.model, self.config, self.seed = engine, model, config, seed
        self.base = base_weights(model)
        self.steps = 0  # that were taken

    def after(self, learned: Metrics) -> None:
        """Merge, where the step that has learned this was taken, as schedules count them, and is one to merge after."""
        if "loss" not in learned:
            return
        self.steps += 1
        if self.steps % self.config.merge_every == 0:
            number = self.steps // self.config.merge_every
            generator = torch.Generator().manual_seed((self.seed + number * 1_000_003) % 2**63)
            for weight in merge_and_begin(self.model, self.config.init, generator):
                self.engine.optimizer.state.pop(weight, None)
            self.model.changed()

    def state(self) -> dict[str, Any]:
        is_another = self.steps >= self.config.merge_every
        return {"steps": self.steps, "base": {name: w.detach() for name, w in self.base.items()} if is_another else {}}

    @torch.no_grad()
    def load_state(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]
        for name, weight in state["base"].items():
            self.base[name].copy_(weight)


def merging_of(engine: Engine, model: Trunk, config: TrainingConfig, num_steps: int) -> Merging:
    """That of a run, with a line on how often it merges."""
    every = config.model.lora.merge_every
    times = f"{num_steps // every} merges in the run's {num_steps} steps"
    say(f"{'WARNING: ' if num_steps < every else ''}{KEY}={every}: {times}; the whole model is left, and no adapter")
    return Merging(engine, model, config.model.lora, config.seed)
