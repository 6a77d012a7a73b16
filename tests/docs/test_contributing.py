"""CONTRIBUTING.md shows how to add a method; here it is added, from the page alone, and run: in one process, and in two
that share its weights out."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoConfig, AutoModelForCausalLM

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"```(?:python|yaml)\n# (\S+?)(, appended)?\n(.*?)```", flags=re.DOTALL)
ZERO_3 = ["distributed=zero3", "launch.processes=2"]


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """The package with the page's method in it."""
    for part in ("alignment", "conf", "recipes"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    blocks = BLOCK.findall((ROOT / "CONTRIBUTING.md").read_text())
    assert len(blocks) == 5
    for path, appended, text in blocks:
        with (tmp_path / path).open("a" if appended else "x") as file:
            file.write(text)
    return tmp_path


def run(package: Path, name: str, *how: str) -> None:
    small = ["train.max_steps=10", "data.train.limit=400", "data.eval.limit=40", "log.progress=false"]
    ran = subprocess.run(
        [sys.executable, "-m", "alignment", "run", "tiny_rrhf", *small, f"output_dir={name}", *how],
        cwd=package,
        env={**os.environ, "PYTHONPATH": str(package)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr


def rows(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_example_trains_in_one_process_and_shared_out_in_two(package: Path) -> None:
    """The losses are the same, and both save a whole model, which transformers reads."""
    recipe = yaml.safe_load((package / "recipes" / "tiny_rrhf.yaml").read_text())
    assert recipe["train"]["max_steps"] == 100
    models = []
    for name, how in {"one": [], "two": ZERO_3}.items():
        run(package, name, *how)
        folder = package / name / "model"
        with torch.device("meta"):
            wanted = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)).state_dict()
        model, found = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
        assert {key: w.shape for key, w in model.state_dict().items()} == {key: w.shape for key, w in wanted.items()}
        assert not any(found.values())
        models.append(model)
    one, two = rows(package / "one"), rows(package / "two")
    assert len(one) == 10
    assert one[-1]["eval/rewards/margin"] > 0
    assert one[-1]["loss"] < one[0]["loss"]
    for name in ("loss", "grad_norm"):
        assert [row[name] for row in two] == pytest.approx([row[name] for row in one], rel=1e-4)
    for own, other in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-3, atol=1e-4)
