"""Short pairs from a file to tokens: ours beside TRL's, by one process and by two, and what a rank then holds of them.

    python scripts/benchmark_rows.py --rows 1000000 --model FOLDER --out rows.json

The pairs are made from a seed, as dialogues, so that both sides lay them out by the same chat template. TRL's side is
`load_dataset` and what its DPOTrainer then does of the rows (`_prepare_dataset`), with `dataset_num_proc`. Every
measurement is a process of its own that has imported everything, in a cache of its own; sides take turns, and the
figures are of medians of several rounds; where others use the machine too, processor time tells more than seconds do.
Peak memory is above what the process had after its imports, of ours with all
rows and with a tenth of them. A second run maps what the first one has kept and does what a run does of all rows before
its first step: prompts held out by a seed, lengths, and the name of the reference's table.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmark_turns import resident
from datasets import disable_progress_bars, load_dataset
from rich.console import Console
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from trl import DPOConfig, DPOTrainer

from alignment.config.data import DataConfig, ExampleKind, Format, TrainSource
from alignment.data import load
from alignment.data.chat import ensure_template
from alignment.data.held_out import hold_out
from alignment.data.numbers import numbers
from alignment.toy import tokenizer_path

WORDS = [
    "the",
    "of",
    "and",
    "to",
    "in",
    "a",
    "is",
    "that",
    "for",
    "it",
    "as",
    "was",
    "with",
    "be",
    "by",
    "on",
    "not",
    "he",
    "his",
    "but",
    "at",
    "are",
    "this",
    "have",
    "from",
    "or",
    "had",
    "an",
]
WORDS += [
    "they",
    "which",
    "one",
    "you",
    "were",
    "all",
    "her",
    "she",
    "there",
    "would",
    "their",
    "we",
    "him",
    "been",
    "has",
    "when",
    "who",
    "will",
    "no",
    "more",
    "if",
    "out",
]
PROMPT, REPLY = (8, 30), (10, 40)  # words, at least and at most
Side = Callable[[PreTrainedTokenizerBase, int, Path], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--trl-rows", type=int, help="the first rows alone, for both sides' seconds; all without it")
    parser.add_argument("--model", type=Path, default=tokenizer_path(), help="where a tokenizer is")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("rows.json"))
    parser.add_argument("--play", nargs=3, metavar=("WHOSE", "PROCESSES", "FILE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.play:
        whose, processes, file = arguments.play
        return play(whose, int(processes), Path(file), arguments.model)
    with TemporaryDirectory() as folder:
        figures = measured(arguments, Path(folder))
    arguments.out.write_text(json.dumps(figures, indent=2))
    Console().print_json(data=figures)


def write_pairs(file: Path, rows: int, seed: int) -> Path:
    draw = random.Random(seed)

    def turn(role: str, words: tuple[int, int]) -> list[dict[str, str]]:
        return [{"role": role, "content": " ".join(draw.choices(WORDS, k=draw.randint(*words)))}]

    with file.open("w") as opened:
        for _ in range(rows):
            chosen, rejected = turn("assistant", REPLY), turn("assistant", REPLY)
            pair = {"prompt": turn("user", PROMPT), "chosen": chosen, "rejected": rejected}
            opened.write(json.dumps(pair) + "\n")
    return file


def measured(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    compared = arguments.trl_rows or arguments.rows
    timed = write_pairs(folder / "timed.jsonl", compared, arguments.seed)
    contenders = [(whose, processes) for whose in ("ours", "trl") for processes in (1, 2)]
    plays: dict[tuple[str, int], list[dict[str, float]]] = {contender: [] for contender in contenders}
    for number in range(arguments.rounds):
        for whose, processes in random.Random(number).sample(contenders, len(contenders)):
            plays[whose, processes].append(played(whose, processes, timed, arguments.model))
            print(whose, processes, plays[whose, processes][-1], file=sys.stderr)
    median, used = (
        {contender: statistics.median(play[what] for play in each) for contender, each in plays.items()}
        for what in ("seconds", "used")
    )
    figures: dict[str, Any] = {
        "versions": {name: version(name) for name in ("trl", "transformers", "tokenizers")},
        "rows timed": compared,
        "ours, of TRL's processor time, one process": used["ours", 1] / used["trl", 1],
        "ours, of TRL's processor time, two processes": used["ours", 2] / used["trl", 2],
        "ours, of TRL's seconds, one process": median["ours", 1] / median["trl", 1],
        "ours, of TRL's seconds, two processes": median["ours", 2] / median["trl", 2],
        "gain by two processes, ours": median["ours", 1] / median["ours", 2],
        "gain by two processes, TRL's": median["trl", 1] / median["trl", 2],
    }
    for rows in (arguments.rows // 10, arguments.rows):
        file = write_pairs(folder / f"{rows}.jsonl", rows, arguments.seed)
        time.sleep(3)  # a file that has just been written is read again, for it may change within a tick of the clock
        with TemporaryDirectory() as cache:
            first = played("ours", 2, file, arguments.model, cache)
            time.sleep(3)
            second = played("again", 2, file, arguments.model, cache)
        figures[f"{rows} rows"] = {
            "MB of the process that reads them": first["peak"] / 1e6,
            "MB of another rank": second["peak"] / 1e6,
            "MB of another rank, mapped pages aside": second["own"] / 1e6,
            "seconds until a second run has its rows": second["seconds"],
        }
    return figures


def played(whose: str, processes: int, file: Path, model: Path, cache: str | None = None) -> dict[str, float]:
    with TemporaryDirectory() as own:
        command = [sys.executable, __file__, "--model", model, "--play", whose, processes, file]
        variables = {"XDG_CACHE_HOME": cache or own, "HF_HOME": own, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        variables |= {"TOKENIZERS_PARALLELISM": "false"}  # a process is one thread
        done = subprocess.run(
            [str(part) for part in command], env=os.environ | variables, check=True, stdout=subprocess.PIPE
        )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def play(whose: str, processes: int, file: Path, model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    ensure_template(tokenizer)
    sides: dict[str, Side] = {"ours": ours, "again": again, "trl": trl}
    before, own = resident("VmRSS"), resident("RssAnon")
    start, used = time.perf_counter(), sum(os.times()[:4])
    kept = sides[whose](tokenizer, processes, file)
    found = {"seconds": time.perf_counter() - start, "used": sum(os.times()[:4]) - used}
    found["peak"] = resident("VmHWM") - before
    print(json.dumps(found | {"own": resident("RssAnon") - own}), flush=True)
    del kept


def ours(tokenizer: PreTrainedTokenizerBase, processes: int, file: Path) -> Any:
    load.cores = lambda: processes
    config = DataConfig(train=TrainSource(str(file)), format=Format.native)
    loaded = load.load_split("train", config, tokenizer, ExampleKind.pairs)
    assert loaded is not None
    return loaded


def again(tokenizer: PreTrainedTokenizerBase, processes: int, file: Path) -> Any:
    loaded = ours(tokenizer, processes, file)
    train, held_out = hold_out(loaded, 0.01, seed=1)
    whole = [numbers(train.examples, name) for name in ("row_length", "weight", "tokens_hash")]
    return [train, held_out, whole, [train.examples[row] for row in range(64)]]


def trl(tokenizer: PreTrainedTokenizerBase, processes: int, file: Path) -> Any:
    disable_progress_bars()
    rows = load_dataset("json", data_files=str(file), split="train")
    count = processes if processes > 1 else None
    with TemporaryDirectory() as folder:
        config = DPOConfig(output_dir=folder, dataset_num_proc=count, use_cpu=True, bf16=False, report_to="none")
        trainer = object.__new__(DPOTrainer)  # its preparation alone, without a model
        trainer._tokenizer = tokenizer
        return trainer._prepare_dataset(rows, tokenizer, config, "train")


if __name__ == "__main__":
    main()
