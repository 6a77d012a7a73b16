"""One process == two processes == ZeRO 0 == 1 == 2 == 3, ten steps of every method, and what is restored goes on."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

FEW, MANY = ("none", "3"), ("0", "1", "2", "3", "offload")
METHODS = ("sft", "reward", "dpo", "orpo", "simpo", "cpo", "cpo_hinge", "kto", "apo_zero_unpaired", "aot", "lora")
ALL = (*METHODS, "bfloat16", "bfloat16 lora")
SLOW = {  # another loss of the same pairs as DPO, or of the same rows as KTO; an adapter on a base that is not sharded
    **dict.fromkeys(("orpo", "simpo", "cpo", "cpo_hinge", "apo_zero_unpaired", "aot"), ("1", "2", "offload")),
    "bfloat16 lora": ("1", "2"),
}
REST = [f"{method}/{stage}" for method, stages in SLOW.items() for stage in stages]
TOLERANCE = 1e-5
Found = dict[str, Any]


def grid(methods: Iterable[str]) -> list[Any]:
    """Each method under each stage; those of SLOW with -m slow."""
    cases = [(method, stage) for method in methods for stage in MANY]
    return [pytest.param(*case, marks=pytest.mark.slow if "/".join(case) in REST else []) for case in cases]


def of(stages: tuple[str, ...]) -> list[str]:
    return [f"{name}/{stage}" for stage in stages for name in (*ALL, "held") if f"{name}/{stage}" not in REST]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, run_ranks: Callable[..., None]) -> Callable[..., Found]:
    """What is found of cases in so many processes."""
    folder = tmp_path_factory.mktemp("ranks")

    def call(name: str, cases: list[str], processes: int) -> Found:
        out = folder / f"{name}.json"
        run_ranks(Path(__file__).with_name("ranks.py"), [str(out), *cases], processes=processes)
        return json.loads(out.read_text())

    return call


@pytest.fixture(scope="module")
def one(found: Callable[..., Found]) -> Found:
    return found("one", of(FEW), 1)


@pytest.fixture(scope="module")
def two(one: Found, found: Callable[..., Found]) -> Found:
    return found("two", of(MANY), 2)


@pytest.fixture(scope="module")
def rest(found: Callable[..., Found]) -> Found:
    return found("rest", REST, 2)


@pytest.fixture
def shared(method: str, stage: str, request: pytest.FixtureRequest) -> Found:
    """Of a method under a stage, in two processes."""
    case = f"{method}/{stage}"
    return request.getfixturevalue("rest" if case in REST else "two")[case]


@pytest.mark.parametrize(("method", "stage"), grid(METHODS))
def test_two_processes_are_one(method: str, stage: str, one: Found, shared: Found) -> None:
    plain = one[f"{method}/none"]
    assert len(plain["loss"]) == 10 and max(plain["grad_norm"]) > 0.5  # it was clipped
    assert shared["loss"] == pytest.approx(plain["loss"], rel=TOLERANCE, abs=TOLERANCE)
    assert shared["grad_norm"] == pytest.approx(plain["grad_norm"], rel=1e-4, abs=TOLERANCE)
    assert shared["eval"] == pytest.approx(plain["eval"], rel=TOLERANCE, abs=TOLERANCE)


@pytest.mark.parametrize("method", ALL)
def test_deepspeed_in_one_process_is_torch(method: str, one: Found) -> None:
    assert one[f"{method}/3"]["loss"] == pytest.approx(one[f"{method}/none"]["loss"], rel=TOLERANCE, abs=TOLERANCE)


@pytest.mark.parametrize(("method", "stage"), grid(("bfloat16", "bfloat16 lora")))
def test_bfloat16_rounds_as_in_one_process(method: str, stage: str, one: Found, shared: Found) -> None:
    """The base of an adapter is held in it, beside weights in float32, in every stage."""
    plain, exact = one[f"{method}/none"]["loss"], {"bfloat16": "sft", "bfloat16 lora": "lora"}[method]
    assert plain != one[f"{exact}/none"]["loss"]
    assert shared["loss"] == pytest.approx(plain, rel=0.02)


@pytest.mark.parametrize("stage", MANY)
def test_restored_is_uninterrupted_bit_for_bit(stage: str, two: Found) -> None:
    assert two[f"resumed/{stage}"] is True


@pytest.mark.parametrize("stage", MANY)
def test_what_is_changed_as_a_run_goes_on_acts_in_every_stage(stage: str, one: Found, two: dict[str, Any]) -> None:
    plain = one["steered/none"]
    assert two[f"steered/{stage}"] == pytest.approx(plain, rel=TOLERANCE, abs=TOLERANCE)
    assert plain[1] == pytest.approx(one["dpo/none"]["loss"][4]) and plain[3] != one["dpo/none"]["loss"][5]


@pytest.mark.parametrize("stage", MANY)
def test_others_go_on_from_where_a_run_was(stage: str, one: Found, two: Found) -> None:
    """Two processes from one without ZeRO, and from another stage than their own."""
    whole = [
        number for step in zip(*(one["dpo/none"][n][4:] for n in ("loss", "grad_norm")), strict=True) for number in step
    ]
    found = {name: seen for name, seen in two.items() if name.startswith("on/") and name.endswith(f"/{stage}")}
    assert len(found) == 2
    for losses in found.values():
        assert losses == pytest.approx(whole, rel=TOLERANCE, abs=TOLERANCE)


@pytest.mark.parametrize("stage", MANY)
def test_what_the_ranks_save_makes_the_whole_model(stage: str, two: Found) -> None:
    assert two[f"exported/{stage}"] is True


@pytest.mark.parametrize("stage", MANY)
def test_a_step_without_a_number_is_left_out_whole(stage: str, two: Found) -> None:
    """Weights, moments and schedule go on as if it had not been; all ranks agree."""
    assert two[f"left out/{stage}"] is True


def test_zero_3_has_a_second_copy_of_the_weights(one: Found, two: Found) -> None:
    """As the plan of memory counts. DeepSpeed 0.19.8 would do without where weights are float32 and on the optimizer's
    device, but compares that device with its name; where it does not, the plan has one copy too many."""
    assert (one["copied/3"], two["copied/3"], two["copied/offload"]) == (True, True, True)


def test_roles_under_zero_3_read_as_one_plain_model(two: Found) -> None:
    for found in two["roles"]:
        assert found.pop("kept") == 0  # between forwards no process has the weights
        assert found == pytest.approx(dict.fromkeys(found, 0.0), abs=1e-6)


def test_a_model_that_is_whole_is_refused_under_zero_3(two: Found) -> None:
    """A method that forgot would train, and save empty weights."""
    for found in two["refused"]:
        assert len(found) == 2
        assert all("must be loaded with placement_of(config.distributed)" in said for said in found)
