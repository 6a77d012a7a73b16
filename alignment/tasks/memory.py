"""What PPO's roles hold in memory, counted in the models that were built: ways to share them can be compared."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.optim import Optimizer

MOMENTS = 2  # that AdamW keeps of each trained weight
MB = 1e6


@dataclass(frozen=True, slots=True)
class Held:
    """A weight that several roles read is there once. In bytes, but for the two counts."""

    num_weights: int
    num_trained: int
    weights: int
    gradients: int  # actor and critic take turns: those of the one that has more
    moments: int
    average: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.moments + self.average

    def said(self) -> str:
        """One line for the terminal."""
        average = f", {self.average / MB:.1f} MB average" if self.average else ""
        return (
            f"roles: {self.num_weights / 1e6:.2f} million weights, {self.num_trained / 1e6:.2f} million trained; "
            f"{self.weights / MB:.1f} MB weights, {self.gradients / MB:.1f} MB gradients, "
            f"{self.moments / MB:.1f} MB optimizer{average}: {self.total / MB:.1f} MB without activations"
        )


def held(models: Sequence[nn.Module], optimizers: Sequence[Optimizer], *, average: bool) -> Held:
    """`models`: of all roles. `optimizers`: AdamW's, the actor's first. `average`: whether one of the actor is kept."""
    weights = _once(p for model in models for p in model.parameters())
    trained = [[p for group in optimizer.param_groups for p in group["params"]] for optimizer in optimizers]
    by_role = [_bytes(parameters) for parameters in trained]
    return Held(
        num_weights=sum(p.numel() for p in weights),
        num_trained=sum(p.numel() for parameters in trained for p in parameters),
        weights=_bytes(weights),
        gradients=max(by_role),
        moments=MOMENTS * sum(by_role),
        average=by_role[0] if average else 0,
    )


def _once(parameters: Iterable[Tensor]) -> list[Tensor]:
    return list({id(p): p for p in parameters}.values())


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
