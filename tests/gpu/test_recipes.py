"""The tiny recipes on a GPU: what only a second device can show, such as tensors left behind on the CPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU"),
]


@pytest.mark.parametrize("task", ["sft", "reward", "dpo", "orpo", "simpo", "cpo", "ppo"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_few_steps(task, precision, tmp_path):
    small = ["data.train.limit=96", "data.eval.limit=16", "train.max_steps=3", "train.eval_every=2"]
    where = ["distributed.device=cuda", f"distributed.precision={precision}", f"output_dir={tmp_path}"]
    command = [str(Path(sys.executable).with_name("alignment")), "run", f"tiny_{task}", *small, *where]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]
    if task == "ppo":
        assert abs(rows[0]["kl"]) < 1e-6
