"""What a model's weights, gradients and optimizer take in one process, as ZeRO and offload have them."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from alignment.config.distributed import DistributedConfig, Offload

MOMENTS = 2  # that AdamW keeps of each trained weight


class States(NamedTuple):
    """Bytes of what an optimizer keeps."""

    kept: float = 0.0
    paged: float = 0.0
    """Of these, what is in pages: in the memory of the machine, as far as a GPU has no room for it."""
    page: float = 0.0
    """Of the pages, those of the weight that has most, which are all on the GPU while it is updated."""
    update: float = 0.0
    """What is made while a weight is updated, and gone before the next one is, at the most."""

    def beside(self, other: "States") -> "States":
        """Of both."""
        page, update = max(self.page, other.page), max(self.update, other.update)
        return States(self.kept + other.kept, self.paged + other.paged, page, update)


@dataclass(frozen=True, slots=True)
class Held:
    """Bytes in one process, on its device or, where `in_cpu_memory` names it, beside it."""

    weights: float
    scales: float
    """What unpacks packed weights, which stays whole on the device whatever becomes of these."""
    gradients: float
    masters: float
    """DeepSpeed's own float32 copy of the weights that train, which its optimizer updates, from stage 1 on."""
    moments: float
    """What the optimizer keeps, but for pages."""
    averages: float
    """Further copies of the weights that train, such as their moving average."""
    weights_in: Offload
    gradients_in: Offload
    optimizer_in: Offload
    keeps_gradients: bool
    """Whether the gradients' memory is there between steps too, as it is under ZeRO 3 alone."""
    pages: float = 0.0
    """What the optimizer keeps in pages, which leave a GPU where there is no room."""
    page: float = 0.0
    """Of these, what has to be on the GPU while a weight is updated, at the most."""
    update: float = 0.0
    """On the device, what is made beside all this while a weight is updated, or under ZeRO all of a share."""

    @property
    def on_device(self) -> float:
        """While it learns."""
        weights = self.weights + self.averages if self.weights_in is Offload.none else self.averages
        return weights + self.scales + self.gradients_at(Offload.none) + self.optimizer_at(Offload.none)

    @property
    def between_steps(self) -> float:
        """On the device, when it does not learn."""
        return self.on_device - (0.0 if self.keeps_gradients else self.gradients_at(Offload.none))

    @property
    def in_cpu_memory(self) -> float:
        """What was moved off the device, or may have to be."""
        weights = self.weights if self.weights_in is Offload.cpu else 0
        return self.pages + weights + self.gradients_at(Offload.cpu) + self.optimizer_at(Offload.cpu)

    def gradients_at(self, place: Offload) -> float:
        """Of the gradients, what is there."""
        return self.gradients if self.gradients_in is place else 0

    def optimizer_at(self, place: Offload) -> float:
        """Of masters and moments, what is there."""
        return self.masters + self.moments if self.optimizer_in is place else 0


def together(models: Iterable[Held]) -> float:
    """Bytes on the device of models that are there at one time and learn one after the other, at the most."""
    found = list(models)
    return sum(each.between_steps for each in found) + max(each.on_device - each.between_steps for each in found)


def held_of(
    trained: float,
    frozen: float,
    distributed: DistributedConfig,
    processes: int,
    *,
    is_gpu: bool,
    averages: int = 0,
    states: States | None = None,
    scales: float = 0.0,
    gradients: float | None = None,
    in_a_group: float = 0.0,
    update: float = 0.0,
) -> Held:
    """Of `trained` bytes of float32 weights, their `gradients` and the `states` that the optimizer keeps, and from ZeRO
    1 on DeepSpeed's own copy, each whole or shared out by the stage; and `frozen` bytes of weights that do not train.

    Args:
        is_gpu: whether the device is one; beside a CPU there is nowhere to move what is offloaded to it.
        averages: further copies of the trained weights.
        states: None: AdamW's two moments.
        scales: of the `frozen` ones, what unpacks the others.
        gradients: bytes, of those that are kept; None: of all that trains.
        in_a_group: bytes of a trained weight that is a group of the optimizer by itself. ZeRO 2 cuts each group into
            shares, and keeps a gradient whole that is in several of them.
        update: bytes that are made while a weight is updated.
    """

    def placed(offload: Offload) -> Offload:
        return Offload.none if offload is Offload.cpu and not is_gpu else offload

    is_beside = is_gpu and distributed.zero == 3 and distributed.offload_optimizer is not Offload.none

    def shares(stage: int) -> int:
        """Among how many processes that is shared out which ZeRO shares from this stage on."""
        return processes if (distributed.zero or 0) >= stage else 1

    kept = States(MOMENTS * trained) if states is None else states
    pages = kept.paged if is_gpu else 0.0
    gradients = trained if gradients is None else gradients
    whole = in_a_group if distributed.zero == 2 else 0.0
    return Held(
        weights=(trained + frozen - scales) / shares(3),
        scales=scales,
        gradients=(gradients - whole) / shares(2) + whole,
        masters=trained / shares(1) if distributed.zero else 0.0,
        moments=(kept.kept - pages) / shares(1),
        averages=averages * trained / shares(3),
        weights_in=placed(distributed.offload_param),
        gradients_in=Offload.cpu
        if is_beside
        else Offload.none,  # DeepSpeed adds them up where the optimizer reads them
        optimizer_in=placed(distributed.offload_optimizer),
        keeps_gradients=distributed.zero == 3,
        pages=pages,
        page=kept.page if is_gpu else 0.0,
        update=update if placed(distributed.offload_optimizer) is Offload.none else 0.0,
    )
