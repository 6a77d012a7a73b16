"""tiny_ppo from tiny_sft, whole, through the installed command, for three seeds: better than SFT, and near it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

COMMAND = str(Path(sys.executable).with_name("alignment"))
PIPELINE = """# tiny_ppo from tiny_sft, and both on held-out prompts
defaults:
  - task: pipeline
  - _self_

stages:
  - name: sft
    recipe: tiny_sft

  - name: ppo
    recipe: tiny_ppo
    set: {model.path: "@sft/model"}

  - name: evaluate
    recipe: tiny_evaluate
    set: {runs: {sft: "@sft", ppo: "@ppo"}, baseline: sft}
"""


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ppo_raises_the_gold_score_with_its_kl_under_its_target(seed: int, tmp_path: Path) -> None:
    (tmp_path / "seeds.yaml").write_text(PIPELINE)
    command = [COMMAND, "run", str(tmp_path / "seeds.yaml"), f"seed={seed}", f"output_dir={tmp_path}/out"]
    ran = subprocess.run([*command, "log.progress=false"], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    target = OmegaConf.load(tmp_path / "out" / "ppo" / "config.yaml").kl.target
    summary = json.loads((tmp_path / "out" / "evaluate" / "summary.json").read_text())
    methods = {method["name"]: method for method in summary["methods"]}
    assert methods["sft"]["gold"]["high"] < 0.7, "SFT leaves room"
    assert methods["ppo"]["gold_difference"]["low"] > 0.05
    assert methods["ppo"]["kl"]["high"] < target
    rows = [json.loads(line) for line in (tmp_path / "out" / "ppo" / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 40 and 0 == rows[0]["kl"] < max(row["kl"] for row in rows) < target
    assert rows[-1]["eval/gold"] > methods["sft"]["gold"]["mean"] + 0.1
    assert rows[-1]["alarm/over_optimisation"] == 0
