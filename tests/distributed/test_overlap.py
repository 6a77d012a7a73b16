"""Gradients are summed while those of the layers below are still made: under ZeRO 1 in a step's last pass, under 2 in
each. Counted on a CPU, where the order in which things start is that on a GPU."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

STAGES = ("1", "1 beside", "2 beside")
LAST = "layers.0.weight"  # whose gradient a backward pass makes at its end, with its bias's


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, run_ranks: Callable[..., None]) -> dict[str, Any]:
    folder, seen = tmp_path_factory.mktemp("overlap"), {}
    for processes, stages in ((1, ["none", "1 beside"]), (2, list(STAGES))):
        out = folder / f"{processes}.json"
        run_ranks(Path(__file__).with_name("overlap_ranks.py"), [str(out), *stages], processes=processes)
        seen |= {f"{stage} of {processes}": value for stage, value in json.loads(out.read_text()).items()}
    return seen


def test_under_zero_1_the_last_pass_alone_sends(found: dict[str, Any]) -> None:
    beside, behind = (found[f"{stage} of 2"]["order"] for stage in ("1 beside", "1"))
    assert "sum" not in beside["pass 0"] and "sum" not in behind["pass 0"]
    before = beside["pass 1"][: beside["pass 1"].index(LAST)]
    assert before.count("sum") >= 1  # the layer's above, while this one's is computed
    assert "sum" not in behind["pass 1"][: behind["pass 1"].index(LAST)]


def test_under_zero_2_each_pass_does(found: dict[str, Any]) -> None:
    order = found["2 beside of 2"]["order"]
    for number in range(2):
        events = order[f"pass {number}"]
        assert events[: events.index(LAST)].count("sum") >= 1


def test_nothing_is_sent_twice(found: dict[str, Any]) -> None:
    """As many collectives of a step as where it waits for the end."""
    totals = [sum(events.count("sum") for events in found[f"{stage} of 2"]["order"].values()) for stage in STAGES[:2]]
    assert totals[0] == totals[1] > 1


@pytest.mark.parametrize("case", ["1 beside of 1", *(f"{stage} of 2" for stage in STAGES)])
def test_a_weight_that_the_last_pass_left_out_learns_too(case: str, found: dict[str, Any]) -> None:
    """DeepSpeed would leave its gradient out of the sum, and of the norm."""
    assert found[case]["norms"] == pytest.approx(found["none of 1"]["norms"], rel=1e-5)
