"""What PPO's roles hold in memory, counted in the models that were built: ways to share them can be compared."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from alignment.distributed.collectives import size
from alignment.distributed.engine import shape_of
from alignment.models.quantized import packed_size

MOMENTS = 2  # that AdamW keeps of each trained weight
MB = 1e6


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """By one process. A weight that several roles read is there once. In bytes, but for the two counts, which are of
    all processes."""

    num_weights: int
    num_trained: int
    weights: float
    gradients: float  # actor and critic take turns: those of the one that has more
    optimizer: float
    average: float

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.average

    def summary(self) -> str:
        """One line for the terminal."""
        average = f", {self.average / MB:.1f} MB average" if self.average else ""
        each = f" in each of {size()} processes" if size() > 1 else ""
        return (
            f"roles: {self.num_weights / 1e6:.2f} million weights, {self.num_trained / 1e6:.2f} million trained; "
            f"{self.weights / MB:.1f} MB weights, {self.gradients / MB:.1f} MB gradients, "
            f"{self.optimizer / MB:.1f} MB optimizer{average}: {self.total / MB:.1f} MB without activations{each}"
        )


def estimate_memory(
    models: Sequence[nn.Module],
    *,
    actor: Sequence[Tensor],
    critic: Sequence[Tensor],
    average: bool,
    zero: int | None,
    states: float | None = None,
    keeps_gradients: bool = True,
) -> MemoryEstimate:
    """Before the engines shard anything. `models`: all that the run holds. `actor`, `critic`: the weights that are
    trained of each; none without a critic. `average`: whether a moving average of the actor's is kept. `states`: bytes
    of what their optimizers keep; None: AdamW's moments. `keeps_gradients`: whether those of a step are there together.

    ZeRO (arXiv:1910.02054, section 3) divides the optimizer's states by the number of processes from stage 1 on, the
    gradients from 2, the weights at 3, but not what unpacks them. Its optimizer has a copy of the weights that it
    updates, which counts as its.
    """
    weights = _once(p for model in models for p in model.parameters())
    scales = sum(packed[1] for packed in map(packed_size, weights) if packed is not None)
    trained = _bytes(actor), _bytes(critic)
    stage = zero or 0
    kept = sum(trained) * MOMENTS if states is None else states
    kept += 0 if stage == 0 else sum(trained)
    return MemoryEstimate(
        num_weights=sum(shape_of(p).numel() for p in weights),
        num_trained=sum(shape_of(p).numel() for p in (*actor, *critic)),
        weights=(_bytes(weights) - scales) / (size() if stage == 3 else 1) + scales,
        gradients=max(trained) * keeps_gradients / (size() if stage >= 2 else 1),
        optimizer=kept / (size() if stage >= 1 else 1),
        average=(trained[0] if average else 0) / (size() if stage == 3 else 1),
    )


def _once(parameters: Iterable[Tensor]) -> list[Tensor]:
    return list({id(p): p for p in parameters}.values())


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(sum(packed_size(each) or (shape_of(each).numel() * each.element_size(),)) for each in tensors)
