"""Engines of ZeRO 3 whose models have weights in common, each with modules of its own on them: PPO's roles on one base.

Each engine gathers the weights by the order of its own modules, and some that it had expected to need again are still
there, or on their way, when another one's pass begins. So the one that was at work before lets go of all weights first.
"""

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn


class Turns:
    """Which engine is at work."""

    def __init__(self) -> None:
        self._at_work: Any = None

    def of(self, module: nn.Module, offload: Any) -> Callable[[], None]:
        """What has the engine's turn begin, as each of the module's forwards does; `offload`: what gathers its
        weights."""

        def begin(*_: Any) -> None:
            if self._at_work is not None and self._at_work is not offload:
                self._at_work.partition_all_parameters()
            self._at_work = offload

        module.register_forward_pre_hook(begin, prepend=True)  # of DeepSpeed's
        return begin


def take_turns(engines: Iterable[Any], frozen: Iterable[Any]) -> None:
    """Have them do so. `engines`: `DeepSpeedEngine`s, under ZeRO 3. `frozen`: what forwards go through of sharded
    models that do not train (`shard_frozen`)."""
    turns = Turns()
    for engine in engines:
        engine.take_turns(turns)
    for model in frozen:
        turns.of(model.module, model.optimizer)
