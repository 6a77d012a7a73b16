"""Every optimizer in two processes under the ZeRO stages that have it: as in one, and restored bit for bit."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

BY_ELEMENT, BY_BLOCK, OF_MATRICES = ("lion", "sgd", "lora_plus", "adamw_bf16"), "adamw_8bit", ("muon", "adafactor")
RUNS = {  # one of each kind, and all of them: names, stages
    "few": (("lion", BY_BLOCK, "muon"), ("0", "2")),
    "all": ((*BY_ELEMENT, BY_BLOCK, *OF_MATRICES), ("0", "1", "2", "3", "offload")),
}
HOW = ["few", pytest.param("all", marks=pytest.mark.slow)]
Found = dict[str, Any]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, run_ranks: Callable[..., None]) -> Callable[[str, int], Found]:
    @cache
    def run(how: str, processes: int) -> Found:
        out = tmp_path_factory.mktemp("optimizers") / "found.json"
        names, stages = RUNS[how]
        asked = stages if processes > 1 else ("none",)
        run_ranks(
            Path(__file__).with_name("optimizer_ranks.py"), [str(out), ",".join(names), *asked], processes=processes
        )
        return json.loads(out.read_text())

    return run


def ran(how: str) -> list[tuple[str, str]]:
    names, stages = RUNS[how]
    of_matrices = [(name, "0") for name in OF_MATRICES]
    others = [(name, stage) for name in (*BY_ELEMENT, BY_BLOCK) for stage in stages]
    return [pair for pair in (*of_matrices, *others) if pair[0] in names and pair != (BY_BLOCK, "offload")]


@pytest.mark.parametrize("how", HOW)
def test_two_processes_are_one(how: str, found: Callable[[str, int], Found]) -> None:
    """Blocks of 8 bits lie otherwise in what is cut, and round otherwise; bfloat16 is rounded by other random numbers,
    which comes to far less."""
    one, two = found(how, 1), found(how, 2)
    for name, stage in ran(how):
        wanted, shared = one[f"{name}/none"], two[f"{name}/{stage}"]
        is_rounded = name == BY_BLOCK and stage != "0"
        assert len(wanted) == 6 and wanted[-1] != wanted[0]
        assert shared == pytest.approx(wanted, rel=0.01 if is_rounded else 1e-4), (name, stage)


@pytest.mark.parametrize("how", HOW)
def test_restored_is_uninterrupted_bit_for_bit(how: str, found: Callable[[str, int], Found]) -> None:
    two = found(how, 2)
    for name, stage in ran(how):
        assert two[f"resumed/{name}/{stage}"] == two[f"{name}/{stage}"][3:], (name, stage)


@pytest.mark.parametrize("how", HOW)
def test_states_of_elements_are_cut_anew_and_those_of_blocks_are_not(
    how: str, found: Callable[[str, int], Found]
) -> None:
    """From the stage before it."""
    two, first = found(how, 2), RUNS[how][1][0]
    line = (
        "the checkpoint's optimizer keeps blocks of elements, which cannot be cut anew: go on with as many processes "
    )
    for name, stage in (pair for pair in ran(how) if pair[1] != first):
        again = two[f"cut anew/{name}/{stage}"]
        if name == BY_BLOCK:
            assert again == f"{line}and the distributed.zero that it was saved by", stage
        else:
            assert again == pytest.approx(two[f"{name}/{stage}"][3:], rel=1e-4), (name, stage)
