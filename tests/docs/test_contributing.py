"""CONTRIBUTING.md shows how to add a method; here it is added, from the page alone, and run."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"```(?:python|yaml)\n# (\S+?)(, appended)?\n(.*?)```", flags=re.DOTALL)


def test_the_example_trains(tmp_path):
    for part in ("alignment", "conf", "recipes"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    blocks = BLOCK.findall((ROOT / "CONTRIBUTING.md").read_text())
    assert len(blocks) == 5
    for path, appended, text in blocks:
        with (tmp_path / path).open("a" if appended else "x") as file:
            file.write(text)
    recipe = yaml.safe_load((tmp_path / "recipes" / "tiny_simpo.yaml").read_text())
    assert recipe["train"]["max_steps"] == 100

    small = ["train.max_steps=20", "data.train.limit=400", "data.eval.limit=40", f"output_dir={tmp_path / 'run'}"]
    ran = subprocess.run(
        [sys.executable, "-m", "alignment", "run", "tiny_simpo", *small],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 20
    assert rows[-1]["eval/rewards/margin"] > 0
    assert rows[-1]["loss"] < rows[0]["loss"]
