"""500 iterations of PPO under ZeRO 3 on two processes: memory, open files and threads stay what they were after 50.

ZeRO 3 has leaked under RLHF before (DeepSpeed's issues 3590 and 7670).
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import psutil
import pytest

WORDS = [
    *("tiny_ppo", "model.init.hidden_size=32", "model.init.intermediate_size=48", "data.train.limit=64"),
    *("data.eval.limit=4", "batch.size=4", "train.max_steps=500", "generation.max_new_tokens=8", "log.progress=false"),
    *("checkpoint.every=50", "ppo.epochs=1", "launch.processes=2", "distributed=zero3", "output_dir=run"),
]
SETTLED = 50


@pytest.mark.slow
def test_nothing_grows(tmp_path: Path, environment: Callable[..., dict[str, str]]) -> None:
    command = [sys.executable, "-m", "alignment", "run", *WORDS]
    running = subprocess.Popen(command, cwd=tmp_path, env=environment(), stdout=subprocess.DEVNULL)
    held: list[list[tuple[int, int]]] = []
    log = tmp_path / "run" / "metrics.jsonl"
    while running.poll() is None:
        time.sleep(1)
        if log.exists() and len(log.read_text().splitlines()) > SETTLED:
            try:
                ranks = psutil.Process(running.pid).children()
                held.append([(rank.num_fds(), rank.num_threads()) for rank in ranks])
            except psutil.NoSuchProcess:
                break
    assert running.wait() == 0
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(rows) == 500 and len(held) > 10
    for rank in range(2):
        memory = [row[f"time/memory_gb/rank_{rank}"] for row in rows]
        settled, end = memory[SETTLED : 2 * SETTLED], memory[-SETTLED:]
        print(f"rank {rank}: {max(settled):.4g} GB after {SETTLED} iterations, {max(end):.4g} GB after {len(rows)}")
        assert max(end) < 1.02 * max(settled)
    whole = [sample for sample in held if len(sample) == 2]
    for rank in range(2):  # a checkpoint opens files for a moment
        for what in range(2):
            counts = [sample[rank][what] for sample in whole]
            assert median(counts[-10:]) == median(counts[:10])
