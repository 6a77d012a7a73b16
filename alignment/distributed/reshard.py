"""Where each ZeRO stage keeps which elements of the weights: from what some processes saved of an engine to whole
weights, and to what others would have saved. Without DeepSpeed, and in any process.

DeepSpeed's universal checkpoints (`ds_to_universal.py`) do the same as a step of its own, with files of another format
that are unpickled, and for DeepSpeed's engine only. Here a checkpoint stays what it is, hashed and never unpickled, and
is read element by element as the new processes need it, by the engine of plain torch too. Elements are copied and never
computed with: weights and moments go on bit for bit.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Any

import torch
from torch import Size, Tensor

from alignment.config.errors import UserError

Groups = Sequence[Mapping[str, Size]]  # the optimizer's groups: each trained weight's name and whole shape, in order
State = Mapping[str, Any]  # what one process saved of an engine


@dataclass(frozen=True, slots=True)
class Stretch:
    """Elements [start, stop) of a weight, which process `rank` stores in its flat tensor number `flat`, from element
    `offset` on.

    A weight is never in two tensors of a process.
    """

    start: int
    stop: int
    rank: int
    flat: int
    offset: int


def recut(saved: Sequence[State], own: State, groups: Groups) -> dict[str, Any]:
    """What this process would have saved, had its run saved in place of the one that did.

    One stretch is in memory at a time beside the result, where `saved` is mapped from disk.

    Args:
        saved: by ranks 0, 1, ... under any stage, or by the engine of one process.
        own: this process's, of an engine of the same model that has not learned yet: the layout to have.

    Raises:
        UserError: it is of another model, or weights whose moments are to be in one tensor took unequally many steps.
    """
    source, rank = Shards(saved, groups), own["rank"] if is_cut(own) else 0
    weights = [torch.zeros(flat.shape, dtype=flat.dtype) for flat in flats(own, groups)]
    states: dict[int, dict[str, Any]] = defaultdict(dict)
    is_cut_anew = is_cut(saved[0]) or is_cut(own)
    if not is_cut_anew:  # each process has all of it, whatever it is of: elements, rows, blocks
        states.update(deepcopy(saved[0]["optimizer"]["state"]))
    for weight, stretches in enumerate(places(own, groups)):
        flat = stretches[0].flat
        targets = {"weights": weights[flat]}
        numbers, moments = (source.numbers(weight), source.moments(weight)) if is_cut_anew else ({}, [])
        for name, number in numbers.items():
            _require_equal(states[flat].setdefault(name, deepcopy(number)), number)
        for name in moments:
            if name not in states[flat]:
                states[flat][name] = torch.zeros_like(weights[flat])
            targets[name] = states[flat][name]
        for to in (stretch for stretch in stretches if stretch.rank == rank):
            for name, target in targets.items():
                target.view(-1)[to.offset : to.offset + to.stop - to.start] = source.read(name, weight, to)
    pairs = zip(own["optimizer"]["param_groups"], saved[0]["optimizer"]["param_groups"], strict=True)
    optimizer = {
        "state": dict(sorted(states.items())),
        "param_groups": [{**mine, **theirs, "params": mine["params"]} for mine, theirs in pairs],
    }
    held = {"weights": weights} if "weights" in own else {"model": dict(zip(names(groups), weights, strict=True))}
    alike = {name: saved[0][name] for name in ("scheduler", "loss_scale") if name in saved[0]}  # in all processes
    return {**own, **held, "optimizer": optimizer, **alike}


def whole_weights(saved: Sequence[State], groups: Groups) -> dict[str, Tensor]:
    """The trained weights by name.

    Raises:
        UserError: they are of another model.
    """
    shards, shapes = Shards(saved, groups), [shape for group in groups for shape in group.values()]
    return {
        name: shards.read("weights", weight, Stretch(0, prod(shape), 0, 0, 0)).view(shape)
        for weight, (name, shape) in enumerate(zip(names(groups), shapes, strict=True))
    }


def piece(saved: Sequence[Tensor], shape: Size, own: Tensor, *, rank: int) -> Tensor:
    """Like `own`, which is what process `rank` has of a weight of this shape: the elements that ranks 0, 1, ... saved.

    What there is of a weight is all of it, or stage 3's piece: laid flat, padded at the end.
    """
    whole = saved[0] if saved[0].shape == shape else torch.cat(list(saved))
    start = 0 if own.shape == shape else rank * own.numel()
    mine = whole.reshape(-1)[: shape.numel()][start : start + own.numel()]
    return torch.nn.functional.pad(mine, (0, own.numel() - len(mine))).view(own.shape)


class Shards:
    """What the processes saved of an engine, to be read by weight, numbered in the optimizer's order."""

    def __init__(self, saved: Sequence[State], groups: Groups) -> None:
        self.saved = saved
        self.flats = [flats(state, groups) for state in saved]
        self.places = places(saved[0], groups)

    def read(self, name: str, weight: int, wanted: Stretch) -> Tensor:
        """Elements `wanted.start` to `wanted.stop` of the weight ("weights") or of a moment of its, end to end."""
        parts = []
        for place in self.places[weight]:
            start, stop = max(wanted.start, place.start), min(wanted.stop, place.stop)
            if start < stop:
                tensor = self.flats[place.rank][place.flat] if name == "weights" else self._state(place)[name]
                first = place.offset + start - place.start
                parts.append(tensor.reshape(-1)[first : first + stop - start])
        return torch.cat(parts)

    def moments(self, weight: int) -> list[str]:
        """What the optimizer has of each element of it (AdamW: exp_avg, exp_avg_sq); nothing before its first step.

        Raises:
            UserError: it has something else, such as blocks of elements that share a scale.
        """
        place = self.places[weight][0]
        held = {name: value for name, value in self._state(place).items() if _is_of_parts(value)}
        flat = self.flats[place.rank][place.flat]
        if any(value.shape != flat.shape or not value.is_floating_point() for value in held.values()):
            rule = "the checkpoint's optimizer keeps blocks of elements, which cannot be cut anew"
            raise UserError(f"{rule}: go on with as many processes and the distributed.zero that it was saved by")
        return list(held)

    def numbers(self, weight: int) -> dict[str, Any]:
        """What it has of the weight as a whole (AdamW: step)."""
        return {name: value for name, value in self._state(self.places[weight][0]).items() if not _is_of_parts(value)}

    def _state(self, place: Stretch) -> dict[str, Any]:
        states: dict[int, dict[str, Any]] = self.saved[place.rank]["optimizer"]["state"]
        return states.get(place.flat, {})


def names(groups: Groups) -> list[str]:
    return [name for group in groups for name in group]


def is_cut(state: State) -> bool:
    """Whether a process has a part of the trained weights only: stages 1 to 3."""
    return "zero" in state and state["zero"] != 0


def flats(state: State, groups: Groups) -> list[Tensor]:
    """A process's tensors of weights, numbered as the optimizer numbers its states.

    Raises:
        UserError: another model's.
    """
    if "model" not in state:
        return list(state["weights"])
    _require_same(state["model"].keys() == set(names(groups)))
    return [state["model"][name] for name in names(groups)]


def places(state: State, groups: Groups) -> list[list[Stretch]]:
    """Of each weight in the optimizer's order, where all its elements are, on whichever process.

    Args:
        state: of any one of the processes, which are all laid out alike.

    Raises:
        UserError: another model's.
    """
    shapes = [[list(shape) for shape in group.values()] for group in groups]
    if not is_cut(state):
        held = [list(flat.shape) for flat in flats(state, groups)]
        _require_same(held == [shape for group in shapes for shape in group])
        return [[Stretch(0, prod(shape), 0, number, 0)] for number, shape in enumerate(held)]
    _require_same(state["shapes"] == shapes)
    sizes = [[prod(shape) for shape in group] for group in shapes]
    if state["zero"] == 3:
        return list(_in_pieces(state, [size for group in sizes for size in group]))
    return [
        list(_in_slices(number, offset, size, len(state["weights"][number])))
        for number, group in enumerate(sizes)
        for offset, size in zip(state["offsets"][number], group, strict=True)
    ]


def _in_slices(flat: int, offset: int, size: int, length: int) -> Iterator[Stretch]:
    """Stages 1 and 2: a group's weights lie end to end, in one slice of `length` a process; the rest is padding."""
    ends = [offset, *range((offset // length + 1) * length, offset + size, length), offset + size]
    for start, stop in pairwise(ends):
        yield Stretch(start - offset, stop - offset, start // length, flat, start % length)


def _in_pieces(state: State, sizes: Sequence[int]) -> Iterator[list[Stretch]]:
    """Stage 3: each weight is cut into one piece a process, padded to equal size; a process has its pieces end to end,
    in one tensor or several (DeepSpeed's sub-groups)."""
    pieces = [-(-size // state["processes"]) for size in sizes]
    lengths, flat, offset = [len(flat) for flat in state["weights"]], 0, 0
    _require_same(sum(pieces) == sum(lengths))
    for size, piece in zip(sizes, pieces, strict=True):
        if offset == lengths[flat]:
            flat, offset = flat + 1, 0
        starts = range(0, size, piece)
        yield [Stretch(start, min(start + piece, size), rank, flat, offset) for rank, start in enumerate(starts)]
        offset += piece


def _is_of_parts(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0


def _require_equal(number: Any, other: Any) -> None:
    if number != other:
        rule = "weights took unequally many steps, so distributed.zero must be null or 0 to go on"
        raise UserError(f"{rule}: {float(number):g} and {float(other):g}")


def _require_same(holds: bool) -> None:
    if not holds:
        raise UserError("the checkpoint's weights are not this model's: their names or shapes differ")


def described(place: dict[str, int]) -> str:
    """Whose state it is."""
    return f"rank {place['rank']} of {place['processes']} under distributed.zero={place['zero']}"
