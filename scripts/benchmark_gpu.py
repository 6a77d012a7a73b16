"""On one GPU: steps of a random Llama of 1.1 billion weights under bfloat16 autocast, ours, TRL's and the floor.

    python scripts/benchmark_gpu.py --data PAIRS.jsonl.gz --out benchmark_gpu.json

Same weights, rows, batch and sequence limit, as in benchmark.py, and PPO as in benchmark_ppo.py; one contender after
the other, for a GPU does not hold three. Seconds are medians of steps; a token is one that is needed (each prompt once,
no padding), whoever computes more; MFU counts the operations for those alone, so recomputation and padding lower it.
`--device cpu` tries the script itself, with a tiny model: its figures say nothing.
"""

import json
import statistics
import sys
from argparse import Namespace
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from benchmark import METHODS, WHOSE, load, parser_of
from benchmark_ppo import REPLIES, TRL, contenders
from benchmark_setting import LIMIT, SETTINGS, SIZE, make_model, make_tokenizer
from benchmark_turns import Contender, play_in_turns
from rich.console import Console
from rich.table import Table

from alignment.config.data import ExampleKind
from alignment.distributed.device import peak_flops
from alignment.distributed.engine import counts
from alignment.training.timer import GB, step_flops

SETTING = {"cuda": "large", "cpu": "stand-in"}
COLUMNS = ("method", "times as fast as TRL", "times the floor", "tokens/s", "MFU", "peak GB", "TRL's GB")


def main() -> None:
    parser = parser_of(__doc__, METHODS, out=Path("benchmark_gpu.json"))
    parser.add_argument("--device", choices=SETTING, default="cuda")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU here; scripts/benchmark.py measures on a CPU")
    versions = {name: version(name) for name in ("torch", "transformers", "trl")}
    device = torch.cuda.get_device_name() if arguments.device == "cuda" else "no GPU: a trial of the script"
    rows: list[dict[str, Any]] = []
    result = {"device": device, "versions": versions, "rows": rows}
    ppo = [method for method in arguments.methods if method in REPLIES]
    for method in (method for method in arguments.methods if method not in REPLIES):
        rows.append(measured(method, arguments))
        arguments.out.write_text(json.dumps(result, indent=2))  # what is measured is kept if the next one fails
    if ppo:
        rows += measured_ppo(ppo, arguments)
        arguments.out.write_text(json.dumps(result, indent=2))
    table = Table(*COLUMNS)
    for row in rows:
        table.add_row(*cells(row))
    Console().print(table, result["device"], result["versions"])


def measured(method: str, arguments: Namespace) -> dict[str, Any]:
    """One method's ratios, tokens a second, MFU and peak memory."""
    setting, steps, warmup = SETTING[arguments.device], arguments.steps, arguments.warmup
    command: list[object] = [sys.executable, Path(__file__).with_name("benchmark.py"), "--data", arguments.data]
    command += ["--setting", setting, "--size", SIZE, "--limit", LIMIT, "--warmup", warmup, "--steps", steps]
    seconds, peaks = alone({whose: [*command, "--play", whose, method, 0] for whose in WHOSE}, steps, warmup)
    tokens = needed(method, arguments)
    peak = peak_flops(torch.device(arguments.device))
    num_weights, num_trained = counts(make_model(method, make_tokenizer(arguments.data), SETTINGS[setting]))
    flops = step_flops(num_weights, num_trained) + (2 * num_weights if method == "dpo" else 0)  # the reference's
    return {
        "method": method,
        "times_faster_than_trl": seconds["trl"] / seconds["ours"],
        "times_the_floor": seconds["ours"] / seconds["floor"],
        "share_of_trl_memory": peaks["ours"] / peaks["trl"],
        "tokens_per_s": {whose: tokens / taken for whose, taken in seconds.items()},
        "mfu": None if peak is None else {whose: tokens / t * flops / peak for whose, t in seconds.items()},
        "peak_memory_gb": {whose: most / GB for whose, most in peaks.items()},
    }


def measured_ppo(methods: list[str], arguments: Namespace) -> list[dict[str, Any]]:
    """PPO's ratios: replies a second beside TRL's, which draws one for a prompt, and the peak memory of four roles."""
    turns, warmup, setting = arguments.ppo_steps, arguments.warmup, SETTING[arguments.device]
    where = arguments.data, arguments.trl_environment
    with TemporaryDirectory() as name:
        commands = contenders(methods, Path(name), *where, setting=setting, iterations=warmup + turns)
        seconds, peaks = alone({whose: commands[whose] for whose in (*methods, TRL)}, turns, warmup)
    return [
        {
            "method": method,
            "times_faster_than_trl": REPLIES[method] * seconds[TRL] / seconds[method],
            "times_the_floor": None,
            "share_of_trl_memory": peaks[method] / peaks[TRL],
            "tokens_per_s": None,
            "mfu": None,
            "peak_memory_gb": {"ours": peaks[method] / GB, "trl": peaks[TRL] / GB},
        }
        for method in methods
    ]


def alone(commands: dict[str, Any], turns: int, warmup: int) -> tuple[dict[str, float], dict[str, float]]:
    """Each contender's median seconds of a turn and its peak memory in bytes; one ends before the next begins."""
    seconds: dict[str, float] = {}
    peaks: dict[str, float] = {}
    for whose, command in commands.items():
        taken, most = play_in_turns([{whose: Contender(*command)}], turns, warmup=warmup)
        seconds |= taken
        peaks |= most
    return seconds, peaks


def needed(method: str, arguments: Namespace) -> float:
    """Tokens of the median step."""
    need = ExampleKind.demonstrations if method == "sft" else ExampleKind.pairs
    loaded = load(arguments.data, make_tokenizer(arguments.data), need, SIZE * (arguments.warmup + arguments.steps))
    lengths = [len(e.prompt_ids) + sum(len(ids) for ids in e.completion_ids) for e in loaded.examples]
    steps = [sum(lengths[start : start + SIZE]) for start in range(SIZE * arguments.warmup, len(lengths), SIZE)]
    return statistics.median(steps)


def cells(row: dict[str, Any]) -> list[str]:
    """A row of the table."""

    def shown(value: float | None, form: str) -> str:
        return "–" if value is None else format(value, form)

    speed, mfu, memory = row["tokens_per_s"], row["mfu"], row["peak_memory_gb"]
    return [
        row["method"],
        shown(row["times_faster_than_trl"], ".2f"),
        shown(row["times_the_floor"], ".2f"),
        shown(speed and speed["ours"], ",.0f"),
        shown(mfu and mfu["ours"], ".1%"),
        shown(memory["ours"], ".1f"),
        shown(memory["trl"], ".1f"),
    ]


if __name__ == "__main__":
    main()
