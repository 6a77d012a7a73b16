"""On one GPU: steps of a random Llama of 1.1 billion weights under bfloat16 autocast, ours, TRL's and the floor.

    python scripts/benchmark_gpu.py --data PAIRS.jsonl.gz --out benchmark_gpu.json

Same weights, rows, batch and sequence limit, as in benchmark.py; one contender after the other, for a GPU does not hold
three. Seconds are medians of steps; a token is one that is needed (each prompt once, no padding), whoever computes
more; MFU counts the operations for those alone, so recomputation and padding lower it.
"""

import argparse
import gc
import json
import statistics
import time
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from benchmark import METHODS, REPLIES, WHOSE, build, load, parser_of
from benchmark_setting import LARGE, SIZE, Setting, make_model, make_tokenizer
from rich.console import Console
from rich.table import Table

from alignment.config.data import ExampleKind
from alignment.distributed.device import peak_flops
from alignment.distributed.engine import counts
from alignment.training.timer import GB, step_flops


def main() -> None:
    methods = [method for method in METHODS if method not in REPLIES]
    parser = parser_of(__doc__, methods, out=Path("benchmark_gpu.json"))
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("there is no GPU here; scripts/benchmark.py measures on a CPU")
    rows = [measured(method, arguments, LARGE) for method in arguments.methods]
    versions = {name: version(name) for name in ("torch", "transformers", "trl")}
    result = {"device": torch.cuda.get_device_name(), "versions": versions, "rows": rows}
    arguments.out.write_text(json.dumps(result, indent=2))
    show(result)


def measured(method: str, arguments: argparse.Namespace, setting: Setting) -> dict[str, Any]:
    """One method's ratios, tokens a second, MFU and peak memory."""
    tokens = needed(method, arguments)
    seconds, memory = zip(*(contender(whose, method, arguments, setting) for whose in WHOSE), strict=True)
    peak = peak_flops(torch.device(setting.device.value))
    num_weights, num_trained = counts(make_model(method, make_tokenizer(arguments.data), setting))
    flops = step_flops(num_weights, num_trained) + (2 * num_weights if method == "dpo" else 0)  # the reference's
    ours, trl, floor = seconds
    return {
        "method": method,
        "times_faster_than_trl": trl / ours,
        "times_the_floor": ours / floor,
        "share_of_trl_memory": memory[0] / memory[1],
        "tokens_per_s": {whose: tokens / taken for whose, taken in zip(WHOSE, seconds, strict=True)},
        "mfu": None if peak is None else {w: tokens / t * flops / peak for w, t in zip(WHOSE, seconds, strict=True)},
        "peak_memory_gb": {whose: most / GB for whose, most in zip(WHOSE, memory, strict=True)},
    }


def needed(method: str, arguments: argparse.Namespace) -> float:
    """Tokens of the median step."""
    need = ExampleKind.demonstrations if method == "sft" else ExampleKind.pairs
    loaded = load(arguments.data, make_tokenizer(arguments.data), need, SIZE * (arguments.warmup + arguments.steps))
    lengths = [len(e.prompt_ids) + sum(len(ids) for ids in e.completion_ids) for e in loaded.examples]
    steps = [sum(lengths[start : start + SIZE]) for start in range(SIZE * arguments.warmup, len(lengths), SIZE)]
    return statistics.median(steps)


def contender(whose: str, method: str, arguments: argparse.Namespace, setting: Setting) -> tuple[float, float]:
    """The median seconds of a step, and the most bytes that were allocated. What it leaves is given back."""
    torch.cuda.reset_peak_memory_stats()
    with TemporaryDirectory() as folder:
        steps = arguments.warmup + arguments.steps
        step = build(whose, method, arguments.data, steps, folder, setting)
        times = []
        for index in range(steps):
            torch.cuda.synchronize()
            start = time.perf_counter()
            step(index)
            torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
    most = float(torch.cuda.max_memory_allocated())
    del step
    gc.collect()
    torch.cuda.empty_cache()
    return statistics.median(times[arguments.warmup :]), most


def show(result: dict[str, Any]) -> None:
    table = Table("method", "times as fast as TRL", "times the floor", "tokens a second", "MFU", "peak GB", "TRL's GB")
    for row in result["rows"]:
        mfu = "–" if row["mfu"] is None else f"{row['mfu']['ours']:.1%}"
        table.add_row(
            row["method"],
            f"{row['times_faster_than_trl']:.2f}",
            f"{row['times_the_floor']:.2f}",
            f"{row['tokens_per_s']['ours']:,.0f}",
            mfu,
            f"{row['peak_memory_gb']['ours']:.1f}",
            f"{row['peak_memory_gb']['trl']:.1f}",
        )
    Console().print(table, result["device"], result["versions"])


if __name__ == "__main__":
    main()
