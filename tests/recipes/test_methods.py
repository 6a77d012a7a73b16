"""Methods on the embedded world, whole, through the installed command: each raises the gold score of the SFT model's
replies to held-out prompts."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = str(Path(sys.executable).with_name("alignment"))
WITHOUT_CRITIC = ("grpo", "rloo", "reinforce_pp")
METHODS = (*WITHOUT_CRITIC, "online_dpo", "kto")
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


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("methods")
    (folder / "methods.yaml").write_text("# SFT, and what is trained from it\n" + pipeline())
    command = [COMMAND, "run", str(folder / "methods.yaml"), f"output_dir={folder}/out", "log.progress=false"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return folder / "out"


@pytest.mark.parametrize("name", METHODS)
def test_it_beats_sft_on_held_out_prompts(name: str, folder: Path) -> None:
    methods = {
        method["name"]: method for method in json.loads((folder / "evaluate" / "summary.json").read_text())["methods"]
    }
    assert methods["sft"]["gold"]["high"] < 0.7, "SFT leaves room"
    assert methods[name]["gold_difference"]["low"] > 0


@pytest.mark.parametrize("name", WITHOUT_CRITIC)
def test_there_is_no_critic_and_an_iteration_begins_where_its_replies_were_drawn(name: str, folder: Path) -> None:
    rows = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["kl"] == 0 and len(rows) == 40
    assert not any(key.startswith("value/") for row in rows for key in row)
