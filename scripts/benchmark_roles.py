"""Peak memory of a PPO run with its roles apart and on one backbone, beside what the run says that its roles hold.

    python scripts/benchmark_roles.py --out roles.json

A Llama of 4 layers and width 256 with 8,192 pieces, as in benchmark.py; two iterations of 8 prompts of the toy
task with two replies each, in micro-batches of 256 tokens. Each run is a process of its own; its peak is taken above
what it had after its imports, so activations, the replies' cache and what the allocator keeps are in it.
"""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from rich.table import Table

MODEL = ["vocab_size=8192", "hidden_size=256", "intermediate_size=688", "num_hidden_layers=4"]
INIT = [f"model.init.{field}" for field in MODEL]
SMALL = ["log.progress=false", "data.train.limit=64", "data.eval.limit=8", "batch.size=8", "batch.max_tokens=256"]
PPO = ["run", "tiny_ppo", *SMALL, "train.max_steps=2", "log.samples=0", "model.path=sft/model", "reward.function=null"]
LORA = ["model.lora.rank=8"]
GROUPS = ["advantage.estimator=grpo", "~critic"]
RUNS = {  # what the table calls it: words of the command
    "four models, all weights trained": ["reward.path=full/model"],
    "GRPO, three models, all weights trained: no critic": [*GROUPS, "reward.path=full/model"],
    "LoRA, three models: the reference is the actor's base": [*LORA, "reward.path=lora/model"],
    "LoRA, GRPO: two models": [*LORA, *GROUPS, "reward.path=lora/model"],
    "LoRA, one backbone: roles.share=lora": [*LORA, "reward.path=lora/model/adapter", "roles.share=lora"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("roles.json"))
    parser.add_argument("--measure", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps({"peak_mb": peak_mb(arguments.measure)}))
        return
    with TemporaryDirectory() as folder:
        one = [*SMALL, "train.max_steps=1"]
        measured(["run", "tiny_sft", *INIT, *one, "output_dir=sft"], folder)
        for name, words in (("full", []), ("lora", LORA)):
            measured(["run", "tiny_reward", "model.path=sft/model", *words, *one, f"output_dir={name}"], folder)
        rows = [
            {"roles": name, **measured([*PPO, *words, f"output_dir=ppo{number}"], folder)}
            for number, (name, words) in enumerate(RUNS.items())
        ]
    arguments.out.write_text(json.dumps(rows, indent=2))
    show(rows)


def measured(words: list[str], folder: str) -> dict[str, Any]:
    """Runs the command; what a PPO run says of its roles, and the peak."""
    command = [sys.executable, str(Path(__file__).resolve()), "--measure", *words]
    said = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder).stdout.splitlines()
    peak = json.loads(said[-1])
    line = next((line for line in said if line.startswith("roles: ")), None)
    if line is None:
        return peak
    weights, trained, *_, held = (float(number) for number in re.findall(r"\d+\.\d+", line))
    return {"million_weights": weights, "million_trained": trained, "held_mb": held, **peak}


def peak_mb(words: list[str]) -> float:
    """MB at the most, above those after the imports."""
    import alignment.cli.run
    import alignment.models.lora
    import alignment.tasks.pipeline
    from alignment.cli.main import main as command

    assert alignment.cli.run and alignment.models.lora and alignment.tasks.pipeline  # imported for their imports
    before = resident_mb("VmRSS")
    sys.argv = ["alignment", *words]
    command()
    return resident_mb("VmHWM") - before


def resident_mb(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1e6


def show(rows: list[dict[str, Any]]) -> None:
    table = Table("roles", "million weights", "of them trained", "held, MB", "peak of the process, MB")
    for row in rows:
        numbers = (row["million_weights"], row["million_trained"])
        held = (row["held_mb"], row["peak_mb"])
        table.add_row(row["roles"], *(f"{n:.2f}" for n in numbers), *(f"{mb:.0f}" for mb in held))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
