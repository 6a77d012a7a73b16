"""The moving average of a model's trained weights."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from alignment.distributed import collectives
from alignment.distributed.engine import shape_of
from alignment.distributed.reshard import piece
from alignment.models.heads import Trunk


class MovingAverage:
    """m <- decay m + (1 - decay) w, once an iteration, from m = w on (Polyak & Juditsky 1992).

    Where the weights are sharded, each process averages its shard.
    """

    def __init__(self, model: Trunk, decay: float) -> None:
        self.model = model
        self.decay = decay
        self.weights = {name: shard.clone() for name, shard in self._shards()}

    @torch.no_grad()
    def update(self) -> None:
        for name, shard in self._shards():
            self.weights[name].lerp_(shard, 1 - self.decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the model has the averaged weights. Under ZeRO 3 its engine is at rest, before and until after."""
        own = {name: shard.clone() for name, shard in self._shards()}
        self._write(self.weights)
        try:
            yield
        finally:
            self._write(own)

    def _write(self, weights: dict[str, Tensor]) -> None:
        for name, shard in self._shards():
            shard.copy_(weights[name])
        self.model.changed()

    def _shards(self) -> Iterator[tuple[str, Tensor]]:
        return ((name, self.model.placement.shard_of(p)) for name, p in self.model.trained().items())

    def state(self) -> dict[str, Any]:
        return {"weights": self.weights}

    def load_state(self, state: dict[str, Any]) -> None:
        for name, weight in self.weights.items():
            weight.copy_(state["weights"][name])

    def load_resharded(self, saved: Sequence[dict[str, Any]]) -> None:
        """From what ranks 0, 1, ... saved, of all weights or of their shards."""
        for name, p in self.model.trained().items():
            own, pieces = self.weights[name], [state["weights"][name] for state in saved]
            own.copy_(piece(pieces, shape_of(p), own, rank=collectives.rank()))
