"""How the cost of a step grows with the prompt's length and with the number of its completions.

    python scripts/benchmark_growth.py --out growth.json

Forward and backward of summed log-probs over groups `[prompt | c_1 | ... | c_n]`, in the shared layout and with a copy
of the prompt for each completion. The figures are ratios of medians: to the shortest prompt, and of the two layouts.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM

from alignment.config.batch import Layout
from alignment.data.pack import pack
from alignment.data.records import Source
from alignment.data.tokenize import Example
from alignment.distributed.device import keep_freed_memory
from alignment.distributed.placement import WHOLE
from alignment.models.heads import LanguageModel
from alignment.models.readout import token_logprobs

PROMPTS = (64, 128, 256, 512, 1024, 2048)
COMPLETIONS = (1, 2, 4, 8)
GROUPS, LENGTH, PIECES = 4, 64, 8192


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("growth.json"))
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    keep_freed_memory(torch.device("cpu"))  # as every run does
    size: dict[str, Any] = {
        "hidden_size": 256,
        "intermediate_size": 688,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
    }
    model = LanguageModel(LlamaForCausalLM(LlamaConfig(vocab_size=PIECES, max_position_embeddings=4096, **size)), WHOLE)
    rows = [growth(model, prompt, n, arguments.repeats) for n in COMPLETIONS for prompt in PROMPTS]
    for row in rows:
        shortest = next(r for r in rows if r["completions"] == row["completions"])
        row["times_the_shortest"] = row["shared_s"] / shortest["shared_s"]
        row["tokens_times_the_shortest"] = row["tokens"] / shortest["tokens"]
    for row in rows:
        row.pop("shared_s")
    arguments.out.write_text(json.dumps(rows, indent=2))
    table = Table("completions", "prompt", "tokens, ratio", "time, ratio", "separate / shared")
    for row in rows:
        ratios = (row["tokens_times_the_shortest"], row["times_the_shortest"], row["separate_over_shared"])
        table.add_row(str(row["completions"]), str(row["prompt"]), *(f"{ratio:.2f}" for ratio in ratios))
    Console().print(table)


def growth(model: LanguageModel, prompt: int, completions: int, repeats: int) -> dict[str, float]:
    """Medians of one cell, the two layouts taking turns."""
    rng = np.random.default_rng(0)

    def ids(length: int) -> np.ndarray:
        return rng.integers(0, PIECES, length).astype(np.int32)

    examples = [
        Example(ids(prompt), tuple(ids(LENGTH) for _ in range(completions)), None, Source("made", i), ())
        for i in range(GROUPS)
    ]
    taken: dict[Layout, list[float]] = {Layout.shared: [], Layout.separate: []}
    for _ in range(repeats + 1):
        for layout, times in taken.items():
            start = time.perf_counter()
            for example in examples:
                batch = pack([example], [0], layout=layout, pad_id=0)
                token_logprobs(model, batch).sum().backward()
            times.append(time.perf_counter() - start)
            model.zero_grad()
    shared, separate = (statistics.median(times[1:]) for times in taken.values())
    tokens = prompt + completions * LENGTH
    return {
        "completions": completions,
        "prompt": prompt,
        "tokens": tokens,
        "shared_s": shared,
        "separate_over_shared": separate / shared,
    }


if __name__ == "__main__":
    main()
