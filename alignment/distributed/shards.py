"""From what each process saved under ZeRO to whole weights, without DeepSpeed and in one process."""

from collections.abc import Sequence
from itertools import chain
from math import prod
from typing import Any

import torch
from torch import Tensor

Shapes = Sequence[Sequence[torch.Size]]


def whole_weights(states: Sequence[dict[str, Any]], shapes: Shapes) -> list[Tensor]:
    """The trained weights in the order of the optimizer's groups, as `DeepSpeedEngine.state` of each rank has them.

    Args:
        states: of ranks 0, 1, ...
        shapes: [group][weight].
    Those of another model are other shapes, or fewer.
    """
    stage = states[0]["zero"]
    shards = [state["weights"] for state in states]
    if stage == 0:
        return list(shards[0])
    if stage == 3:
        return _from_pieces(shards, list(chain.from_iterable(shapes)))
    return [weight for number, group in enumerate(shapes) for weight in _from_slices(shards, number, group)]


def _from_slices(shards: Sequence[list[Tensor]], number: int, group: Sequence[torch.Size]) -> list[Tensor]:
    """Stages 1 and 2: a group's weights end to end, cut into one slice a rank; what is left at the end is padding."""
    flat = torch.cat([shard[number] for shard in shards])
    sizes = [prod(shape) for shape in group]
    parts = flat[: sum(sizes)].split(sizes) if len(flat) >= sum(sizes) else ()
    return [part.view(shape) for part, shape in zip(parts, group, strict=False)]


def _from_pieces(shards: Sequence[list[Tensor]], shapes: Sequence[torch.Size]) -> list[Tensor]:
    """Stage 3: each weight cut into one piece a rank, padded to equal size; a rank has its pieces end to end."""
    flats = [torch.cat(list(shard)) for shard in shards]
    sizes = [-(-prod(shape) // len(shards)) for shape in shapes]
    if any(len(flat) != sum(sizes) for flat in flats):
        return []
    pieces = zip(*(flat.split(sizes) for flat in flats), strict=True)
    return [torch.cat(piece)[: prod(shape)].view(shape) for piece, shape in zip(pieces, shapes, strict=True)]
