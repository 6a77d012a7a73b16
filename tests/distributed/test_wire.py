"""What processes send each other in a step: bounds on collectives and bytes, counted in two of them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import count_collectives
import pytest
from count_collectives import STAGES

WIDE = 0.47  # of this model's weights its embeddings and norms, which no product casts


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, run_ranks: Callable[..., None]) -> Path:
    folder = tmp_path_factory.mktemp("wire")
    run_ranks(Path(count_collectives.__file__), [f"--in={folder}", "sft", "kto"], processes=2)
    return folder


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "found.json").read_text()))


def sent(counted: dict[str, Any], *dtypes: str) -> float:
    """Of the bytes of the weights that train, in float32."""
    return sum(counted["sent"].get(dtype, 0) for dtype in dtypes) / counted["weights"]


def same_on_both(folder: Path) -> None:
    first, others = (json.loads((folder / name).read_text()) for name in ("found.json", "others.json"))
    assert others == [first]
    assert all(counted["calls"] > 0 for each in first.values() for counted in each.values())


def test_processes_call_and_send_alike_whatever_rows_they_have(folder: Path) -> None:
    """As many modules and collectives, in bytes too: one more or fewer, and they would wait for each other for ever."""
    same_on_both(folder)


@pytest.mark.slow
def test_so_they_do_for_every_method(tmp_path: Path, run_ranks: Callable[..., None]) -> None:
    run_ranks(Path(count_collectives.__file__), [f"--in={tmp_path}"], processes=2)
    same_on_both(tmp_path)


def test_a_step_waits_a_few_times_at_its_end_and_for_no_micro_batch(found: dict[str, Any]) -> None:
    """Of shared rows: this package once, and under ZeRO once more, beside DeepSpeed's own looks at the norm."""
    shared = {name: counted for name, counted in found.items() if name.endswith("/shared")}
    assert len(shared) == 2 * 2 * len(STAGES)
    for name, counted in shared.items():
        most = {0: 1, 1: 4, 2: 4, 3: 3}[int(name.split("/")[1])]
        assert counted["two"]["waits"] == counted["one"]["waits"] <= most, name


@pytest.mark.parametrize("stage", STAGES)
def test_gradients_cross_once_a_step_or_once_a_micro_batch(stage: int, found: dict[str, Any]) -> None:
    """And weights once a step under ZeRO 1 and 2, and once a pass under 3, where all of them fit between two passes."""
    one, two = (found[f"sft/{stage}/float32/shared"][number] for number in ("one", "two"))
    wanted = {0: (1, 1), 1: (2, 2), 2: (2, 3), 3: (2, 4)}[stage]
    assert (sent(one, "float32"), sent(two, "float32")) == pytest.approx(wanted, rel=0.03)
    assert one["collectives"] <= 6 and two["collectives"] - one["collectives"] <= (0, 0, 1, 2)[stage]


@pytest.mark.parametrize("stage", STAGES)
def test_in_bfloat16_gradients_cross_in_it_and_what_zero_3_gathers_for_its_products(
    stage: int, found: dict[str, Any]
) -> None:
    wide, narrow = (found[f"sft/{stage}/{precision}/shared"]["two"] for precision in ("float32", "bfloat16"))
    kept = {0: 0.0, 1: 1.0, 2: 1.0, 3: 4 * WIDE}[stage]  # the weights, after a step
    assert sent(narrow, "float32") == pytest.approx(kept, rel=0.05, abs=0.01)
    assert sent(narrow, "bfloat16") == pytest.approx((sent(wide, "float32") - kept) / 2, rel=0.05)


@pytest.mark.parametrize("stage", STAGES)
def test_passes_without_gradients_before_a_step_have_none_of_its_weights_gathered_again(
    stage: int, found: dict[str, Any]
) -> None:
    """Nor one by one: as of a reference, which all read first here, and of KTO's replies to others in each step."""
    own, plain = (found[f"{name}/{stage}/float32/shared"]["one"] for name in ("kto", "sft"))
    assert sent(own, "float32") == pytest.approx(sent(plain, "float32"), abs=0.01)
    assert own["collectives"] == plain["collectives"] + 1  # the sum of the baseline


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("method", ["sft", "kto"])
def test_the_layout_sends_nothing(method: str, stage: int, found: dict[str, Any]) -> None:
    shared, separate = (found[f"{method}/{stage}/float32/{layout}"] for layout in ("shared", "separate"))
    for number in ("one", "two"):
        assert shared[number] == {**separate[number], "waits": shared[number]["waits"]}
