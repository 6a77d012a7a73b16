"""Methods on the toy task, whole, through the installed command: each raises the gold score of the SFT model's
replies to held-out prompts."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

COMMAND = str(Path(sys.executable).with_name("alignment"))
WITHOUT_CRITIC = ("grpo", "rloo", "reinforce_pp")
METHODS = (*WITHOUT_CRITIC, "online_dpo", "kto", "simpo")
ROUNDS = ("round_1", "round_2")
pytestmark = pytest.mark.slow  # README has the table
STAGE = """
  - name: {name}
    recipe: tiny_{name}
    set: {{model.path: "@sft/model"}}
"""


def pipeline() -> str:
    begin = "defaults:\n  - task: pipeline\n  - _self_\n\nstages:\n  - name: sft\n    recipe: tiny_sft\n"
    runs = ", ".join(f'{name}: "@{name}"' for name in ("sft", *METHODS))
    end = f"\n  - name: evaluate\n    recipe: tiny_evaluate\n    set: {{runs: {{{runs}}}, baseline: sft}}\n"
    return begin + "".join(STAGE.format(name=name) for name in METHODS) + end


def run(recipe: str, folder: Path) -> dict[str, Any]:
    """The pipeline's methods as its evaluation has them, by name; `pytest -s` shows the figures."""
    command = [COMMAND, "run", recipe, f"output_dir={folder}", "log.progress=false"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    methods = json.loads((folder / "evaluate" / "summary.json").read_text())["methods"]
    for method in methods:
        figures = (method.get(key) for key in ("gold", "gold_difference", "kl"))
        spelled = (f"{each['mean']:.3f} [{each['low']:.3f}, {each['high']:.3f}]" for each in figures if each)
        print(method["name"], *spelled, sep=" | ")
    return {method["name"]: method for method in methods}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("methods")
    (folder / "methods.yaml").write_text("# SFT, and what is trained from it\n" + pipeline())
    return folder


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, Any]:
    return run(str(folder / "methods.yaml"), folder / "out")


@pytest.fixture(scope="module")
def rounds(folder: Path) -> dict[str, Any]:
    return run("tiny_iterative_dpo", folder / "rounds")


@pytest.mark.parametrize("name", METHODS)
def test_it_beats_sft_on_held_out_prompts(name: str, found: dict[str, Any]) -> None:
    assert found["sft"]["gold"]["high"] < 0.7, "SFT leaves room"
    assert found[name]["gold_difference"]["low"] > 0


def test_each_round_of_pairs_of_the_newest_policy_adds_to_it(rounds: dict[str, Any]) -> None:
    assert all(rounds[name]["gold_difference"]["low"] > 0 for name in ROUNDS)
    assert rounds["round_2"]["gold"]["mean"] > rounds["round_1"]["gold"]["mean"]


@pytest.mark.parametrize("name", WITHOUT_CRITIC)
def test_there_is_no_critic_and_an_iteration_begins_where_its_replies_were_drawn(
    name: str, folder: Path, found: dict[str, Any]
) -> None:
    rows = [json.loads(line) for line in (folder / "out" / name / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["kl"] == 0 and len(rows) == 40
    assert not any(key.startswith("value/") for row in rows for key in row)
