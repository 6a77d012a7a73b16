"""One process == two processes == ZeRO 0 == 1 == 2 == 3, ten steps of every method, and what is restored goes on."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

FEW, MANY = ("none", "3"), ("0", "1", "2", "3", "offload")
METHODS = ("sft", "reward", "dpo", "orpo", "simpo", "cpo", "cpo_hinge", "kto", "apo_zero_unpaired", "aot", "lora")
TOLERANCE = 1e-5


def results(run_ranks: Callable[..., None], folder: Path, stages: tuple[str, ...], processes: int) -> dict[str, Any]:
    out = folder / f"{processes}.json"
    run_ranks(Path(__file__).with_name("ranks.py"), [str(out), *stages], processes=processes)
    return json.loads(out.read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def one(folder: Path, run_ranks: Callable[..., None]) -> dict[str, Any]:
    return results(run_ranks, folder, FEW, 1)


@pytest.fixture(scope="module")
def two(folder: Path, one: dict[str, Any], run_ranks: Callable[..., None]) -> dict[str, Any]:
    return results(run_ranks, folder, MANY, 2)


@pytest.mark.parametrize("stage", MANY)
@pytest.mark.parametrize("method", METHODS)
def test_two_processes_are_one(method: str, stage: str, one: dict[str, Any], two: dict[str, Any]) -> None:
    plain, shared = one[f"{method}/none"], two[f"{method}/{stage}"]
    assert len(plain["loss"]) == 10 and max(plain["grad_norm"]) > 0.5  # it was clipped
    assert shared["loss"] == pytest.approx(plain["loss"], rel=TOLERANCE, abs=TOLERANCE)
    assert shared["grad_norm"] == pytest.approx(plain["grad_norm"], rel=1e-4, abs=TOLERANCE)
    assert shared["eval"] == pytest.approx(plain["eval"], rel=TOLERANCE, abs=TOLERANCE)


@pytest.mark.parametrize("method", [*METHODS, "bfloat16", "bfloat16 lora"])
def test_deepspeed_in_one_process_is_torch(method: str, one: dict[str, Any]) -> None:
    assert one[f"{method}/3"]["loss"] == pytest.approx(one[f"{method}/none"]["loss"], rel=TOLERANCE, abs=TOLERANCE)


@pytest.mark.parametrize("stage", MANY)
@pytest.mark.parametrize(("method", "exact"), [("bfloat16", "sft"), ("bfloat16 lora", "lora")])
def test_bfloat16_rounds_as_in_one_process(
    method: str, exact: str, stage: str, one: dict[str, Any], two: dict[str, Any]
) -> None:
    """The base of an adapter is held in it, beside weights in float32, in every stage."""
    plain = one[f"{method}/none"]["loss"]
    assert plain != one[f"{exact}/none"]["loss"]
    assert two[f"{method}/{stage}"]["loss"] == pytest.approx(plain, rel=0.02)


@pytest.mark.parametrize("stage", MANY)
def test_restored_is_uninterrupted_bit_for_bit(stage: str, two: dict[str, Any]) -> None:
    assert two[f"resumed/{stage}"] is True


@pytest.mark.parametrize("stage", MANY)
def test_what_is_changed_as_a_run_goes_on_acts_in_every_stage(
    stage: str, one: dict[str, Any], two: dict[str, Any]
) -> None:
    plain = one["steered/none"]
    assert two[f"steered/{stage}"] == pytest.approx(plain, rel=TOLERANCE, abs=TOLERANCE)
    assert plain[1] == pytest.approx(one["dpo/none"]["loss"][4]) and plain[3] != one["dpo/none"]["loss"][5]


@pytest.mark.parametrize("stage", MANY)
def test_others_go_on_from_where_a_run_was(stage: str, one: dict[str, Any], two: dict[str, Any]) -> None:
    """Two processes from one without ZeRO, and from another stage than their own."""
    whole = [
        number for step in zip(*(one["dpo/none"][n][4:] for n in ("loss", "grad_norm")), strict=True) for number in step
    ]
    found = {name: seen for name, seen in two.items() if name.startswith("on/") and name.endswith(f"/{stage}")}
    assert len(found) == 2
    for losses in found.values():
        assert losses == pytest.approx(whole, rel=TOLERANCE, abs=TOLERANCE)


@pytest.mark.parametrize("stage", MANY)
def test_what_the_ranks_save_makes_the_whole_model(stage: str, two: dict[str, Any]) -> None:
    assert two[f"exported/{stage}"] is True


@pytest.mark.parametrize("stage", MANY)
def test_a_step_without_a_number_is_left_out_whole(stage: str, two: dict[str, Any]) -> None:
    """Weights, moments and schedule go on as if it had not been; all ranks agree."""
    assert two[f"left out/{stage}"] is True


def test_zero_3_has_a_second_copy_of_the_weights(one: dict[str, Any], two: dict[str, Any]) -> None:
    """As the plan of memory counts. DeepSpeed 0.19.8 would do without where weights are float32 and on the optimizer's
    device, but compares that device with its name; where it does not, the plan has one copy too many."""
    assert (one["copied/3"], two["copied/3"], two["copied/offload"]) == (True, True, True)


def test_roles_under_zero_3_read_as_one_plain_model(two: dict[str, Any]) -> None:
    for found in two["roles"]:
        assert found.pop("kept") == 0  # between forwards no process has the weights
        assert found == pytest.approx(dict.fromkeys(found, 0.0), abs=1e-6)


def test_a_model_that_is_whole_is_refused_under_zero_3(two: dict[str, Any]) -> None:
    """A method that forgot would train, and save empty weights."""
    for found in two["refused"]:
        assert len(found) == 2
        assert all("must be loaded with placement_of(config.distributed)" in said for said in found)
