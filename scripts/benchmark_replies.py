"""Replies a second of our own engine and of a vLLM server on this machine's CPU, which take turns.

    python scripts/benchmark_replies.py --model MODEL --data PAIRS.jsonl.gz --python VLLM/bin/python

Both reply to the same prompts with as many tokens each, in float32, drawn at temperature 1, and hold the same weights.
A turn is one call as a rollout makes it: vLLM's begins with the push of the weights, which is told apart. The figures
are ratios of medians, and how far single turns lie from theirs.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from benchmark_setting import data_config
from rich.console import Console
from rich.table import Table

from alignment.config.data import ExampleKind
from alignment.config.distributed import DistributedConfig
from alignment.config.generation import Generation, GenerationConfig, VLLMConfig
from alignment.config.model import ModelConfig
from alignment.data.load import load_split
from alignment.distributed.device import keep_freed_memory
from alignment.distributed.placement import WHOLE
from alignment.generation.generate import Generator, TransformersGenerator
from alignment.generation.launched import Asked, launched
from alignment.generation.vllm import build_vllm
from alignment.models.load import load_language_model
from alignment.models.tokenizer import prepare_tokenizer

SHAPES = ((1, 1), (8, 1), (8, 4))  # prompts, and replies to each
PROMPT = 128  # tokens; of a longer one the beginning is cut off


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="pairs in the form of HH-RLHF, for their prompts")
    parser.add_argument("--python", required=True, help="the Python that has vLLM")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("replies.json"))
    arguments = parser.parse_args()
    keep_freed_memory(torch.device("cpu"))  # as every run does
    config = ModelConfig(path=str(arguments.model))
    tokenizer = prepare_tokenizer(config)
    most = max(count for count, _ in SHAPES)
    data = data_config(arguments.data, most, max_prompt_length=PROMPT)
    loaded = load_split("train", data, tokenizer, ExampleKind.prompts)
    assert loaded is not None
    prompts = [example.prompt_ids for example in loaded.examples]
    asked = Asked(
        model=arguments.model.absolute(),
        tokenizer=arguments.model.absolute(),
        trusted=False,
        dtype="float32",
        longest=PROMPT + arguments.tokens,
        gpus=(),
    )
    length = GenerationConfig(max_new_tokens=arguments.tokens, min_new_tokens=arguments.tokens)
    with (
        TemporaryDirectory() as logs,
        launched(VLLMConfig(python=arguments.python), asked, Path(logs, "vllm.txt")) as server,
    ):
        model = load_language_model(config, tokenizer, WHOLE)
        own = TransformersGenerator(model, tokenizer, length)
        through = replace(length, engine=Generation.vllm, vllm=server)
        theirs = build_vllm(model, tokenizer, through, DistributedConfig())
        push = median([timed(partial(theirs.transfer.push, model)) for _ in range(arguments.turns)])
        rows = []
        for count, replies in SHAPES:
            asks = [partial(rollout, each, prompts[:count], replies) for each in (own, theirs)]
            figures = compared(asks, arguments.turns, push)
            rows.append({"prompts": count, "replies": replies, **figures})
            print(rows[-1], flush=True)
    arguments.out.write_text(json.dumps(rows, indent=2))
    table = Table("prompts", "replies to each", "vLLM / ours, replies a second", "without the push", "noise")
    for row in rows:
        shown = [f"{row[name]:.2f}" for name in ("vllm_over_ours", "without_push")]
        table.add_row(str(row["prompts"]), str(row["replies"]), *shown, f"{row['noise']:.0%}")
    Console().print(table)


def rollout(generator: Generator, prompts: Sequence[np.ndarray], replies: int) -> None:
    """As after a step, which has changed the weights."""
    generator.model.changed()
    generator.generate(prompts, keys=range(len(prompts)), replies=replies, seed=0)


def compared(asks: Sequence[Callable[[], object]], turns: int, push: float) -> dict[str, float]:
    """Of two that take turns, after one of each: how many times as fast the second is; of a single turn, the mean
    distance from its median."""
    seconds: list[list[float]] = [[], []]
    for turn in range(turns + 1):
        for ask, taken in zip(asks, seconds, strict=True):
            one = timed(ask)
            if turn:
                taken.append(one)
    own, theirs = (median(taken) for taken in seconds)
    noise = [abs(one / median(taken) - 1) for taken in seconds for one in taken]
    return {
        "vllm_over_ours": own / theirs,
        "without_push": own / (theirs - push),
        "push_s": push,
        "noise": sum(noise) / len(noise),
    }


def timed(ask: Callable[[], object]) -> float:
    start = time.perf_counter()
    ask()
    return time.perf_counter() - start


def median(taken: list[float]) -> float:
    return float(statistics.median(taken))


if __name__ == "__main__":
    main()
