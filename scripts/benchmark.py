"""Training steps side by side: ours, TRL's, and the floor, on the same weights, rows, batch and sequence limit.

    python scripts/benchmark.py --data PAIRS.jsonl.gz --out benchmark.json

The floor is a dense forward and backward of the same model over just the needed tokens (each prompt once, no padding,
the head on completion tokens only). The three take turns at every step; the figures are ratios of medians. Peak memory
is measured in processes of their own, above what each had after its imports.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from copy import deepcopy
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from benchmark_trl import trl_step
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

from alignment.config.parts import BatchConfig, DataConfig, DistributedConfig, SourceConfig, TrainConfig
from alignment.config.vocabulary import BadRow, Format, Layout, Need
from alignment.data.batches import Batches
from alignment.data.chat import ensure_template
from alignment.data.load import Loaded, load_split
from alignment.data.read import read_rows
from alignment.data.tokenize import Example
from alignment.distributed.engine import TorchEngine
from alignment.losses import CrossEntropyLoss, DPOLoss, MarginRankingLoss, ORPOLoss, ORPONll
from alignment.models.heads import LanguageModel, ScalarModel
from alignment.training.objectives import DPO, ORPO, SFT, RewardRanking
from alignment.training.optim import build_optimizer
from alignment.training.reference import reference_logprobs
from alignment.training.step import train_step

METHODS = ("reward", "dpo", "dpo, reference cached", "orpo", "sft")
SIZE, LIMIT, PIECES = 8, 1024, 8192
Step = Callable[[int], None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="pairs in the form of HH-RLHF")
    parser.add_argument("--out", type=Path, default=Path("benchmark.json"))
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--memory", nargs=2, metavar=("WHOSE", "METHOD"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory:
        print(json.dumps(peak_memory(arguments, *arguments.memory)))
        return
    rows = [measured(method, arguments) for method in arguments.methods]
    packages = ("torch", "transformers", "trl")
    result = {"versions": {name: version(name) for name in packages}, "threads": torch.get_num_threads(), "rows": rows}
    arguments.out.write_text(json.dumps(result, indent=2))
    show(result)


def measured(method: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """One method's medians and their ratios."""
    with TemporaryDirectory() as folder:
        steps = {whose: build(whose, method, arguments, folder) for whose in ("ours", "trl", "floor")}
        times: dict[str, list[float]] = {whose: [] for whose in steps}
        for index in range(arguments.warmup + arguments.steps):
            for whose, step in steps.items():
                start = time.perf_counter()
                step(index)
                times[whose].append(time.perf_counter() - start)
    medians = {whose: statistics.median(taken[arguments.warmup :]) for whose, taken in times.items()}
    memory = {whose: memory_of(whose, method, arguments) for whose in ("ours", "trl")}
    return {
        "method": method,
        "times_faster_than_trl": medians["trl"] / medians["ours"],
        "times_the_floor": medians["ours"] / medians["floor"],
        "share_of_trl_memory": memory["ours"] / memory["trl"],
    }


def build(whose: str, method: str, arguments: argparse.Namespace, folder: str) -> Step:
    """A function that takes optimizer step `index`."""
    tokenizer = make_tokenizer(arguments.data)
    need = Need.demonstrations if method == "sft" else Need.pairs
    rows = SIZE * (arguments.warmup + arguments.steps)
    loaded = load(arguments.data, tokenizer, need, rows)
    hf = make_model(method, tokenizer)
    if whose == "ours":
        return our_step(method, hf, loaded, tokenizer, arguments)
    if whose == "floor":
        return floor_step(method, hf, loaded.examples)
    return trl_step(method, hf, loaded, tokenizer, folder, size=SIZE, limit=LIMIT)


def make_tokenizer(data: Path) -> PreTrainedTokenizerFast:
    """A byte-level BPE of the data's own text."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet, special = pre_tokenizers.ByteLevel.alphabet(), ["<pad>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=PIECES, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    bpe.train_from_iterator((row["chosen"] for _, row in read_rows(data)), trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="<pad>", eos_token="</s>")
    ensure_template(tokenizer)
    return tokenizer


def load(data: Path, tokenizer: PreTrainedTokenizerFast, need: Need, rows: int) -> Loaded:
    config = DataConfig(
        format=Format.hh,
        train=SourceConfig(str(data), rows + 50),
        max_length=LIMIT,
        max_prompt_length=LIMIT - 1,
        on_bad_row=BadRow.skip,
    )
    loaded = load_split("train", config, tokenizer, need)
    assert loaded is not None
    whole = [i for i, example in enumerate(loaded.examples) if all(example.finished)][:rows]  # TRL drops what is cut
    assert len(whole) == rows, f"the data give {len(whole)} rows within {LIMIT} tokens, {rows} are needed"
    kept = ([loaded.records[i] for i in whole], [loaded.examples[i] for i in whole])
    return Loaded(*kept, loaded.skipped, loaded.truncation)


def make_model(method: str, tokenizer: PreTrainedTokenizerFast) -> Any:
    """Four layers, 256 wide, random, the same for everybody."""
    torch.manual_seed(0)
    size = {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4, "num_attention_heads": 4}
    pad = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = LlamaConfig(vocab_size=PIECES, max_position_embeddings=2048, num_labels=1, **size, **pad)
    return LlamaForSequenceClassification(config) if method == "reward" else LlamaForCausalLM(config)


def our_step(
    method: str, hf: Any, loaded: Loaded, tokenizer: PreTrainedTokenizerFast, arguments: argparse.Namespace
) -> Step:
    model = ScalarModel(hf) if method == "reward" else LanguageModel(hf)
    train = TrainConfig(max_steps=10_000, learning_rate=1e-6)
    optimizer, scheduler = build_optimizer(model, train, num_steps=10_000, learning_rate=1e-6)
    engine = TorchEngine(model, optimizer, scheduler, config=DistributedConfig(), max_grad_norm=1.0)
    batches = InOrder(loaded.examples, BatchConfig(size=SIZE, layout=Layout.shared), 0, tokenizer.pad_token_id)
    if method.startswith("dpo"):
        frozen = TorchEngine(deepcopy(model), optimizer, scheduler, config=DistributedConfig(), max_grad_norm=1.0)
        cached = reference_logprobs(frozen, batches, range(len(loaded.examples))) if "cached" in method else None

        def dpo(index: int) -> None:
            table = reference_logprobs(frozen, batches, batches.step_rows(index)) if cached is None else cached
            train_step(engine, DPO(DPOLoss(), table), batches.step(index))

        return dpo
    objective = {
        "reward": RewardRanking(MarginRankingLoss()),
        "orpo": ORPO(ORPOLoss(nll=ORPONll.sequence)),
        "sft": SFT(CrossEntropyLoss()),
    }[method]
    return lambda index: train_step(engine, objective, batches.step(index)) and None


class InOrder(Batches):
    """Rows as they come, as TRL is given them."""

    def step_rows(self, index: int) -> list[int]:
        return list(range(index * SIZE, (index + 1) * SIZE))


def floor_step(method: str, hf: Any, examples: list[Example]) -> Step:
    """Dense rows of the needed tokens and nothing else."""
    optimizer = torch.optim.AdamW(hf.parameters(), lr=1e-6)
    frozen = deepcopy(hf).requires_grad_(False) if method == "dpo" else None

    def step(index: int) -> None:
        needed = examples[index * SIZE : (index + 1) * SIZE]
        completion = sum(len(ids) for example in needed for ids in example.completion_ids)
        total = completion + sum(len(example.prompt_ids) for example in needed)
        read = total if method == "orpo" else completion  # its NLL reads the prompts too
        ids = torch.arange(total).remainder(PIECES)[None]
        rows = torch.nn.functional.pad(ids, (0, -total % SIZE)).view(SIZE, -1)
        if frozen is not None:
            with torch.no_grad():
                dense(frozen, method, rows, read)
        dense(hf, method, rows, read).backward()
        torch.nn.utils.clip_grad_norm_(hf.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def dense(hf: Any, method: str, rows: torch.Tensor, read: int) -> torch.Tensor:
    hidden = hf.model(rows, use_cache=False).last_hidden_state.flatten(0, 1)
    if method == "reward":
        return hf.score(hidden[: 2 * SIZE]).sum()
    return torch.nn.functional.cross_entropy(hf.lm_head(hidden[:read]), rows.flatten()[:read])


def memory_of(whose: str, method: str, arguments: argparse.Namespace) -> float:
    """Peak bytes of a process that takes a few steps, above its bytes after the imports."""
    command = [sys.executable, __file__, "--data", str(arguments.data), "--steps", "5", "--warmup", "0"]
    printed = subprocess.run([*command, "--memory", whose, method], capture_output=True, text=True, check=True).stdout
    return float(json.loads(printed.splitlines()[-1]))


def peak_memory(arguments: argparse.Namespace, whose: str, method: str) -> float:
    before = resident("VmRSS")
    with TemporaryDirectory() as folder:
        step = build(whose, method, arguments, folder)
        for index in range(arguments.steps):
            step(index)
    return resident("VmHWM") - before


def resident(field: str) -> float:
    """Bytes now (VmRSS) or at the most (VmHWM); getrusage's maximum would begin with the parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024.0 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def show(result: dict[str, Any]) -> None:
    table = Table("method", "times as fast as TRL", "times the floor", "share of TRL's peak memory")
    for row in result["rows"]:
        ratios = (row["times_faster_than_trl"], row["times_the_floor"], row["share_of_trl_memory"])
        table.add_row(row["method"], *(f"{ratio:.2f}" for ratio in ratios))
    Console().print(table, result["versions"])


if __name__ == "__main__":
    main()
