"""The plan of a run against the tensors that are alive in it, counted as the run makes and drops them.

The runs are those of the tables in recipes/memory.md, and some in which one pass is all of a step. A plan refuses runs
and promises that they fit: it may be a tenth above what is counted, and below it by no more than what rounding of rows
and metrics come to.
"""

from pathlib import Path

import pytest
from measured_runs import IN_TWO, REAL, RUNS, checkpointing, is_here, measured, write_inputs
from page_tables import rows_of
from write_measured import HEAD, HEAD_OF_TWO, PAGE, README, SHOWN, summary

from alignment.cli.plan import composed
from alignment.plan.estimate import planned
from alignment.plan.roles import Counts
from alignment.tasks.max_tokens import roles_of

COUNTS = Counts()  # of all tests: what two of them plan is counted once
OFTEN = (
    ("SFT", False),
    ("reward model", False),
    ("reward model", True),
    ("DPO", False),
    ("DPO", True),
    ("PPO, scored by a function", True),
    ("DPO, LoRA on int8", True),
)
ONE_PASS = {name: "batch.max_tokens=1024" for name in RUNS if "PPO" not in name}  # eight rows, four pairs
ONE_PASS |= {name: "batch.max_tokens=2176" for name in ONE_PASS if name.startswith("GRPO")}
OFTEN_IN_ONE = (("SFT", True), ("ORPO", True), ("DPO, LoRA", False), ("DPO, QLoRA", False))


def pairs(names: list[str], often: tuple[tuple[str, bool], ...]) -> list[object]:
    return [
        pytest.param(name, again, id=f"{name}{', made again' * again}", marks=() if known else pytest.mark.slow)
        for name in names
        for again in (False, True)
        for known in [(name, again) in often]
    ]


@pytest.fixture
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def require_alike(found: dict[str, float]) -> None:
    assert 0.97 < found["planned"] / found["alive"] < 1.1, found


def require_the_page_s(name: str, again: bool, found: dict[str, float]) -> None:
    """Kernels of other processors may want a little more or less."""
    shown = SHOWN.fullmatch(rows_of(PAGE.read_text(), HEAD)[name][again])
    assert shown is not None
    wanted = {"planned": float(shown[1]), "alive": float(shown[2])}
    assert {key: size / 1e6 for key, size in found.items()} == pytest.approx(wanted, rel=0.02), "write_measured.py"


@pytest.mark.usefixtures("_here")
@pytest.mark.parametrize(("name", "again"), pairs(list(RUNS), OFTEN))
def test_a_plan_is_what_is_alive_and_what_the_page_says(name: str, again: bool) -> None:
    write_inputs({name: RUNS[name]})
    found = measured(checkpointing(RUNS[name], is_on=again), "run", COUNTS)
    require_alike(found)
    require_the_page_s(name, again, found)


@pytest.mark.usefixtures("_here")
@pytest.mark.parametrize(("name", "again"), pairs(list(ONE_PASS), OFTEN_IN_ONE))
def test_of_a_step_of_one_pass_a_plan_is_what_is_alive(name: str, again: bool) -> None:
    write_inputs({name: RUNS[name]})
    words = [*checkpointing(RUNS[name], is_on=again), ONE_PASS[name]]
    require_alike(measured(words, "run", COUNTS))


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.usefixtures("_here")
@pytest.mark.parametrize(("name", "again"), pairs(list(REAL), ()))
def test_of_a_pretrained_model_a_plan_is_what_is_alive_and_what_the_page_says(name: str, again: bool) -> None:
    if not is_here(REAL[name]):
        pytest.skip("no pretrained model: bash scripts/real_model.sh makes it")
    write_inputs({name: REAL[name]})
    found = measured(checkpointing(REAL[name], is_on=again), "run", COUNTS)
    require_alike(found)
    require_the_page_s(name, again, found)


def test_the_page_has_each_run_and_no_plan_in_it_is_a_tenth_off() -> None:
    page = PAGE.read_text()
    alone, in_two = rows_of(page, HEAD), rows_of(page, HEAD_OF_TWO)
    own, real = list(alone)[: len(RUNS)], list(alone)[len(RUNS) :]
    assert own == [*RUNS] and real == [*REAL] and [*in_two] == [*IN_TWO], "python scripts/write_measured.py"
    for name, cells in [*alone.items(), *in_two.items()]:
        for cell in cells:
            shown = SHOWN.fullmatch(cell)
            assert shown is not None, (name, cell)
            require_alike({"planned": float(shown[1]), "alive": float(shown[2])})
            assert float(shown[3]) == pytest.approx(float(shown[1]) / float(shown[2]), abs=0.01), (name, cell)


def test_the_readme_has_the_page_s_figures() -> None:
    lines = summary(PAGE.read_text())
    assert "".join(f"{line}\n" for line in lines) in README.read_text(), "python scripts/write_measured.py"


def test_ppo_has_four_models() -> None:
    found = [role.key for role in roles_of(planned(composed("ppo", [], [], "llama-3-8b")))]
    assert found == ["model.path", "reference", "critic", "reward.path"]


LOMO = ["train.optimizer=lomo", "train.max_grad_norm=inf"]
OF_LOMO = [("SFT", True, 1024), ("DPO", False, 1024), ("PPO, scored by a function", True, 1536)]


@pytest.mark.usefixtures("_here")
@pytest.mark.parametrize(
    ("name", "again", "max_tokens"),
    [pytest.param(*each, marks=() if each[0] == "SFT" else pytest.mark.slow) for each in OF_LOMO],
)
def test_a_plan_of_lomo_has_no_gradients(name: str, again: bool, max_tokens: int) -> None:
    write_inputs({name: RUNS[name]})
    words = [*checkpointing(RUNS[name], is_on=again), f"batch.max_tokens={max_tokens}", *LOMO]
    require_alike(measured(words, "run", COUNTS))
