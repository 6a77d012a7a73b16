"""What some processes saved, cut anew for others: each element of weights and moments where DeepSpeed would have it."""

from math import prod
from typing import Any

import pytest
import torch
from torch import Size, Tensor

from alignment.config.errors import UserError
from alignment.distributed.reshard import piece, recut, whole_weights

GROUPS = [{"a": Size((3, 5)), "b": Size((2, 2)), "c": Size((1, 7))}, {"d": Size((1,)), "e": Size((6,))}]
NAMES = [name for group in GROUPS for name in group]
PLACES = [(None, 1), (0, 1), (0, 2), (1, 1), (1, 2), (2, 3), (2, 40), (3, 1), (3, 2), (3, 5)]  # stage, processes
FIELDS = ("weights", "exp_avg", "exp_avg_sq")


def whole() -> dict[str, dict[str, Tensor]]:
    draw = torch.Generator().manual_seed(0)
    shapes = {name: shape for group in GROUPS for name, shape in group.items()}
    return {field: {name: torch.rand(shape, generator=draw) for name, shape in shapes.items()} for field in FIELDS}


def cut(stage: int | None, processes: int) -> tuple[list[dict[str, list[Tensor]]], list[list[int]]]:
    """Each process's tensors by field; which of them are a group's."""
    fields = whole()
    if stage in (None, 0):
        held = {field: list(fields[field].values()) for field in FIELDS}
        return [held] * processes, [[0, 1, 2], [3, 4]]
    parts: list[dict[str, list[Tensor]]] = [{field: [] for field in FIELDS} for _ in range(processes)]
    for field in FIELDS:
        for group in GROUPS:
            weights = [fields[field][name].flatten() for name in group]
            if stage == 3:
                pieces = [padded(weight, processes).chunk(processes) for weight in weights]
                slices = [torch.cat([piece[rank] for piece in pieces]) for rank in range(processes)]
            else:
                slices = list(padded(torch.cat(weights), 2 * processes).chunk(processes))
            for part, flat in zip(parts, slices, strict=True):
                part[field].append(flat)
    return parts, [[0], [1]]


def padded(flat: Tensor, multiple: int) -> Tensor:
    return torch.cat([flat, torch.zeros(-len(flat) % multiple)])


def states(stage: int | None, processes: int, *, learned: bool = True) -> list[dict[str, Any]]:
    """As the engines save them; the optimizer has no states before its first step."""
    parts, numbers = cut(stage, processes)
    found = []
    for rank, part in enumerate(parts):
        kept = {
            number: {"step": torch.tensor(9.0), **{name: part[name][number] for name in FIELDS[1:]}}
            for number in range(len(part["weights"]))
        }
        groups = [{"lr": 0.5 + group, "params": params} for group, params in enumerate(numbers)]
        state: dict[str, Any] = {"optimizer": {"state": kept if learned else {}, "param_groups": groups}}
        state["scheduler"] = {"last_epoch": 9}
        if stage is None:
            found.append({"model": dict(zip(NAMES, part["weights"], strict=True)), **state})
            continue
        shapes = [[list(shape) for shape in group.values()] for group in GROUPS]
        offsets = [[0, 15, 19], [0, 1]] if stage in (1, 2) else []
        state |= {"zero": stage, "processes": processes, "rank": rank, "shapes": shapes, "offsets": offsets}
        found.append({"weights": part["weights"], **state})
    return found


def fresh(state: dict[str, Any]) -> dict[str, Any]:
    """The same process's before it has learned anything."""
    held = state["model"].values() if "model" in state else state["weights"]
    empty = [torch.full_like(flat, 7.0) for flat in held]
    groups = [{**group, "lr": 0.0} for group in state["optimizer"]["param_groups"]]
    weights = {"model": dict(zip(NAMES, empty, strict=True))} if "model" in state else {"weights": empty}
    return {**state, **weights, "optimizer": {"state": {}, "param_groups": groups}, "scheduler": {"last_epoch": 0}}


def assert_equal(one: Any, other: Any) -> None:
    if isinstance(one, Tensor):
        assert torch.equal(one, other) and one.dtype == other.dtype
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for name in one:
            assert_equal(one[name], other[name])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for mine, theirs in zip(one, other, strict=True):
            assert_equal(mine, theirs)
    else:
        assert one == other


@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize("to", PLACES, ids=str)
@pytest.mark.parametrize("of", PLACES, ids=str)
def test_from_any_to_any_is_as_if_saved_there(
    of: tuple[int | None, int], to: tuple[int | None, int], learned: bool
) -> None:
    saved = states(*of, learned=learned)
    for wanted in states(*to, learned=learned):
        assert_equal(recut(saved, fresh(wanted), GROUPS), wanted)


@pytest.mark.parametrize("of", PLACES, ids=str)
def test_whole_weights(of: tuple[int | None, int]) -> None:
    assert_equal(whole_weights(states(*of), GROUPS), whole()["weights"])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("to", [None, 1, 2, 5, 40])
@pytest.mark.parametrize("of", [None, 1, 2, 5, 40])
def test_pieces_of_one_weight(of: int | None, to: int | None, name: str) -> None:
    """All of it, or stage 3's pieces of so many processes."""
    weight = whole()["weights"][name]
    saved, wanted = (
        [weight] if processes is None else list(padded(weight.flatten(), processes).chunk(processes))
        for processes in (of, to)
    )
    for rank, mine in enumerate(wanted):
        found = piece(saved, weight.shape, torch.full_like(mine, 7.0), rank=rank)
        is_whole = mine.shape == weight.shape  # so is a piece of one element, even where it is padding
        assert_equal(found, weight if is_whole else mine)


def test_weights_in_another_order_and_apart() -> None:
    """DeepSpeed's round_robin_gradients and parameter_alignment: c, a, b from multiples of 4 on."""
    saved, fields = states(1, 2), whole()
    for state in saved:
        state["offsets"] = [[8, 24, 0], [0, 4]]
    for field in FIELDS:
        for number, length in enumerate((28, 12)):
            flat = torch.full((length,), 5.0)
            for name, offset in zip(GROUPS[number], saved[0]["offsets"][number], strict=True):
                flat[offset : offset + prod(GROUPS[number][name])] = fields[field][name].flatten()
            for state, half in zip(saved, flat.chunk(2), strict=True):
                held = state["weights"] if field == "weights" else state["optimizer"]["state"][number]
                held[number if field == "weights" else field] = half
    (plain,) = states(None, 1)
    assert_equal(recut(saved, fresh(plain), GROUPS), plain)
    again = [recut([plain], fresh(mine), GROUPS) for mine in saved]
    assert_equal(recut(again, fresh(plain), GROUPS), plain)


def test_several_tensors_of_a_group() -> None:
    """ZeRO 3's sub-groups: whole weights in each."""
    saved = states(3, 2)
    for state in saved:
        first, second = state["weights"]
        state["weights"] = [*first.split([8 + 2, 4]), second]
        moments = state["optimizer"]["state"]
        parts = {field: [*moments[0][field].split([8 + 2, 4]), moments[1][field]] for field in FIELDS[1:]}
        step = moments[0]["step"]
        state["optimizer"]["state"] = {n: {"step": step, **{f: parts[f][n] for f in parts}} for n in range(3)}
        state["optimizer"]["param_groups"][0]["params"], state["optimizer"]["param_groups"][1]["params"] = [0, 1], [2]
    (plain,) = states(None, 1)
    assert_equal(recut(saved, fresh(plain), GROUPS), plain)
    for wanted in saved:
        assert_equal(recut([plain], fresh(wanted), GROUPS), wanted)


def test_a_weight_without_a_gradient_so_far() -> None:
    """Plain torch has no state of it; ZeRO has zeros, and counts its steps with the others'."""
    (plain,), (zero,) = states(None, 1), states(1, 1)
    del plain["optimizer"]["state"][4]
    moments = recut([plain], fresh(zero), GROUPS)["optimizer"]["state"][1]
    assert moments["step"] == 9
    assert moments["exp_avg"][1:].tolist() == [0.0] * 7  # e, and padding
    assert moments["exp_avg"][0] == whole()["exp_avg"]["d"]


def test_unequal_steps_fit_no_common_tensor() -> None:
    saved = states(None, 1)
    saved[0]["optimizer"]["state"][1]["step"] = torch.tensor(3.0)
    kept = recut(saved, fresh(states(0, 1)[0]), GROUPS)["optimizer"]["state"]
    assert [kept[n]["step"].item() for n in range(5)] == [9, 3, 9, 9, 9]
    rule = r"^weights took unequally many steps, so distributed.zero must be null or 0 to go on: 9 and 3$"
    for stage in (1, 3):
        with pytest.raises(UserError, match=rule):
            recut(saved, fresh(states(stage, 2)[0]), GROUPS)


@pytest.mark.parametrize("stage", [None, 0, 1, 2, 3])
def test_another_model_is_told(stage: int | None) -> None:
    saved = states(stage, 1)
    others = [
        [{**GROUPS[0], "c": Size((7, 1))}, GROUPS[1]],
        [{name: GROUPS[0][name] for name in "ab"}, GROUPS[1]],
        [{**GROUPS[0], "f": Size((2,))}, GROUPS[1]],
    ]
    for other in others:
        with pytest.raises(UserError, match=r"^the checkpoint's weights are not this model's: their names or shapes"):
            whole_weights(saved, other)
