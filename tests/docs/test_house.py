"""alignment/README.md shows how to add a method; two are added here from the page alone and outside of the package, and
run in one process, and in two that share their weights out."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

PAGE = (Path(__file__).parents[2] / "alignment" / "README.md").read_text()
BLOCK = re.compile(r"```(?:python|yaml)\n# (\S+)\n(.*?)```", flags=re.DOTALL)
SHOWN = re.compile(r"^    alignment run (\S+)\.yaml(.*)$", flags=re.MULTILINE)
COMMAND = str(Path(sys.executable).with_name("alignment"))
SMALL = ["train.max_steps=10", "data.train.limit=400", "data.eval.limit=40", "log.progress=false"]
ZERO_3 = ["distributed=zero3", "launch.processes=2"]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with the page's methods and recipes, and nothing of this package."""
    blocks = BLOCK.findall(PAGE)
    assert [path for path, _ in blocks] == ["my_methods/rrhf.py", "rrhf.yaml", "my_methods/raft.py", "raft.yaml"]
    for path, text in blocks:
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text)
    return tmp_path


def run(project: Path, name: str, *how: str) -> Path:
    folder = project / "-".join([name, *how])
    command = [COMMAND, "run", f"{name}.yaml", *SMALL, f"output_dir={folder}", *how]
    ran = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return folder


def rows(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def saved(folder: Path) -> nn.Module:
    """The run's model as transformers reads it: no weight lacks, is left over, or is of another shape."""
    with torch.device("meta"):
        wanted = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder / "model")).state_dict()
    model, found = AutoModelForCausalLM.from_pretrained(folder / "model", output_loading_info=True)
    assert {key: w.shape for key, w in model.state_dict().items()} == {key: w.shape for key, w in wanted.items()}
    assert not any(found.values())
    return model


def test_the_commands_shown_name_the_recipes() -> None:
    assert SHOWN.findall(PAGE) == [("rrhf", ""), ("raft", f" {' '.join(ZERO_3)}")]


@pytest.mark.parametrize("name", ["rrhf", "raft"])
def test_a_method_of_ones_own_trains_in_one_process_and_shared_out_in_two(name: str, project: Path) -> None:
    """The losses are the same, and both save a whole model, which transformers reads."""
    one, two = run(project, name), run(project, name, *ZERO_3)
    alone, together = rows(one), rows(two)
    assert len(alone) == 10 and alone[-1]["loss"] < alone[0]["loss"]
    for metric in ("loss", "grad_norm"):
        assert [row[metric] for row in together] == pytest.approx([row[metric] for row in alone], rel=1e-4)
    for own, other in zip(saved(one).parameters(), saved(two).parameters(), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["rrhf", "raft"])
def test_a_method_of_ones_own_can_be_checked_before_it_runs(name: str, project: Path) -> None:
    rows = ["data.train.limit=40", "data.eval.limit=4"]
    command = [COMMAND, "check", f"{name}.yaml", *rows]
    ran = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "") and ", 0 FAIL; " in ran.stdout
    assert ("overfits a few rows" if name == "rrhf" else "a reply stops") in ran.stdout


def test_its_keys_are_checked_and_shown_as_all_are(project: Path) -> None:
    def said(*words: str) -> tuple[int, str]:
        ran = subprocess.run([COMMAND, *words], cwd=project, capture_output=True, text=True, check=False)
        return ran.returncode, ran.stdout + ran.stderr

    code, text = said("run", "rrhf.yaml", "loss.alhpa=2")
    assert code == 2 and "no such key 'loss.alhpa' (did you mean 'loss.alpha'?)" in text and text.count("\n") == 1
    code, text = said("run", "rrhf.yaml", "loss.alpha=-1")
    assert code == 2 and "loss.alpha must be >= 0, got -1.0" in text and text.count("\n") == 1
    code, text = said("run", "raft.yaml", "--help")
    assert code == 0 and "num_samples" in text and "Replies sampled for each prompt." in text
    (project / "my_methods" / "rrhf.py").unlink()
    code, text = said("run", "rrhf.yaml")
    assert code == 2 and "no module 'my_methods.rrhf'" in text and text.count("\n") == 1


def test_the_table_of_rooms_is_that_of_the_package() -> None:
    rooms = re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)
    package = Path(__file__).parents[2] / "alignment"
    assert sorted(rooms) == sorted(path.parent.name for path in package.glob("[a-z]*/__init__.py"))
