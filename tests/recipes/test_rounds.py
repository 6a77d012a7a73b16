"""Two rounds of rejection sampling, whole, through the installed command: each round's policy is better."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = str(Path(sys.executable).with_name("alignment"))


@pytest.mark.slow
def test_each_round_is_better_than_the_one_before(tmp_path: Path) -> None:
    command = [COMMAND, "run", "tiny_rejection_rounds", f"output_dir={tmp_path}", "log.progress=false"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    summary = json.loads((tmp_path / "evaluate" / "summary.json").read_text())
    gold = {method["name"]: method["gold"]["mean"] for method in summary["methods"]}
    assert gold["round2"] > gold["round1"] + 0.02 > gold["sft"] + 0.07
    for name in ("round1", "round2"):
        (row,) = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        assert row["reward/best"] > row["reward"] + 0.1
        assert row["reward/temperature_0.7"] > row["reward/temperature_1.3"]
