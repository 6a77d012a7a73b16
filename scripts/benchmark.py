"""Training steps side by side: ours, TRL's, and the floor, on the same weights, rows, batch and sequence limit.

    python scripts/benchmark.py --data PAIRS.jsonl.gz --out benchmark.json

The floor is a dense forward and backward of the same model over just the needed tokens (each prompt once, no padding,
the head on the tokens that the loss reads). The three are processes of their own, for one heap would be kept warm by
the others, and take turns at every step; the figures are ratios of medians. TRL plays twice, as it is, and with the C
library told to keep what a step frees, as our runs tell it. Where a process has its memory is chance and weighs on
every step it takes, so the steps are those of several rounds, each with new processes. Peak memory is above what each
had after its imports.
PPO is measured against TRL 1.12, for which an environment is made: see benchmark_ppo.py. A model of 1.1 billion weights
on a GPU: see benchmark_gpu.py. A pretrained model, such as the one that scripts/real_model.sh makes, for which four
contenders have room on 24 GB with few rows:

    python scripts/benchmark.py --data PAIRS.jsonl.gz --model FOLDER --size 2 --limit 512 --steps 9 --warmup 1 \
        --methods reward dpo orpo sft
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from benchmark_ppo import KEPT, REPLIES, TRL, measured_ppo
from benchmark_setting import LIMIT, PIECES, SETTINGS, SIZE, Setting, data_config, make_model, tokenizer_of
from benchmark_trl import trl_step
from benchmark_turns import KEEPS_MEMORY, Contender, Turns, play_in_turns
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedTokenizerBase

from alignment.config.batch import BatchConfig, Layout
from alignment.config.data import ExampleKind
from alignment.config.errors import UserError
from alignment.config.train import TrainConfig
from alignment.data.batches import Batches, Packer
from alignment.data.load import load_split
from alignment.data.loaded import Loaded
from alignment.data.pack import Batch
from alignment.data.tokenize import Example
from alignment.distributed.device import choose_kernels, keep_freed_memory
from alignment.distributed.engine import TorchEngine
from alignment.distributed.placement import WHOLE
from alignment.distributed.precision import autocast
from alignment.losses import CrossEntropyLoss, DPOLoss, MarginRankingLoss, ORPOLoss, ORPONll
from alignment.models.heads import LanguageModel, ScalarModel
from alignment.training.objectives import DPO, ORPO, SFT, Objective, RewardRanking
from alignment.training.optim import build_optimizer
from alignment.training.reference import reference_logprobs
from alignment.training.step import train_step

METHODS = ("reward", "dpo", "dpo, reference cached", "orpo", "orpo, TRL's loss", "sft", *REPLIES)
WHOSE = ("ours", "trl", "floor")
PPO_WARMUP = 1  # iteration of a round: after it its memory is as it will be
Step = Callable[[int], None]


def main() -> None:
    parser = parser_of(__doc__, METHODS, out=Path("benchmark.json"))
    parser.add_argument("--rounds", type=int, default=3, help="processes of each contender that share the steps")
    parser.add_argument("--model", type=Path, help="a pretrained model's folder, in the place of a random one; no PPO")
    parser.add_argument("--size", type=int, default=SIZE, help="pairs or demonstrations a step")
    parser.add_argument(
        "--limit", type=int, default=LIMIT, help="tokens of a prompt and a completion; others are left out"
    )
    parser.add_argument("--setting", choices=SETTINGS, default="tiny", help=argparse.SUPPRESS)
    parser.add_argument("--play", nargs=3, metavar=("WHOSE", "METHOD", "FIRST"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.play:
        whose, method, first = arguments.play
        steps = range(int(first), int(first) + arguments.warmup + arguments.steps)
        of = SETTINGS[arguments.setting]
        setting = replace(of, size=arguments.size, limit=arguments.limit, folder=arguments.model)
        return play(whose, method, steps, arguments.data, setting)
    if arguments.model is not None and set(arguments.methods) & set(REPLIES):
        parser.error("--model is for other methods than PPO: name them in --methods")
    for name, number in (("--steps", arguments.steps), ("--ppo-steps", arguments.ppo_steps)):
        if number % arguments.rounds:
            parser.error(f"{name} must be a multiple of --rounds, got {number} and {arguments.rounds}")
    versions = {name: version(name) for name in ("torch", "transformers", "trl")}
    rows: list[dict[str, Any]] = []
    result = {"versions": versions, "threads": torch.get_num_threads(), "rows": rows}
    for method in (method for method in arguments.methods if method not in REPLIES):
        rows.append(measured(method, arguments))
        arguments.out.write_text(json.dumps(result, indent=2))  # what is measured is kept if the next one fails
    ppo = [method for method in arguments.methods if method in REPLIES]
    if ppo:
        where = arguments.data, arguments.trl_environment
        turns = arguments.ppo_steps // arguments.rounds
        rows += measured_ppo(ppo, *where, turns=turns, warmup=PPO_WARMUP, rounds=arguments.rounds)
        versions["trl, for ppo"] = TRL.removeprefix("trl==")
        arguments.out.write_text(json.dumps(result, indent=2))
    show(result)


def parser_of(description: str, methods: Sequence[str], *, out: Path) -> argparse.ArgumentParser:
    """What is asked on a CPU and on a GPU."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="pairs in the form of HH-RLHF")
    parser.add_argument("--out", type=Path, default=out)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--methods", nargs="+", default=list(methods), choices=methods)
    parser.add_argument("--ppo-steps", type=int, default=9, help="PPO's iterations")
    parser.add_argument("--trl-environment", type=Path, default=Path(".venv-trl"), help=f"where {TRL} is, or is put")
    return parser


def measured(method: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """One method's medians and their ratios."""
    warmup, steps = arguments.warmup, arguments.steps // arguments.rounds
    command = [sys.executable, __file__, "--data", arguments.data, "--warmup", warmup, "--steps", steps]
    command += ["--size", arguments.size, "--limit", arguments.limit]
    command += [] if arguments.model is None else ["--model", arguments.model]

    def contenders(first: int) -> dict[str, Contender]:
        kept = Contender(*KEEPS_MEMORY, *command, "--play", "trl", method, first)
        return {whose: Contender(*command, "--play", whose, method, first) for whose in WHOSE} | {KEPT: kept}

    rounds = (contenders(index * (warmup + steps)) for index in range(arguments.rounds))
    seconds, peaks = play_in_turns(rounds, steps, warmup=warmup)
    return {
        "method": method,
        "times_faster_than_trl": seconds["trl"] / seconds["ours"],
        "times_faster_than_trl_memory_kept": seconds[KEPT] / seconds["ours"],
        "times_the_floor": seconds["ours"] / seconds["floor"],
        "share_of_trl_memory": peaks["ours"] / peaks["trl"],
    }


def play(whose: str, method: str, steps: range, data: Path, setting: Setting) -> None:
    """One contender's side of a round: a turn is an optimizer step."""
    turns = Turns(setting.device.value)
    with TemporaryDirectory() as folder:
        step = build(whose, method, data, steps.stop, folder, setting)
        for index in steps:
            turns.wait()
            step(index)
        turns.wait()


def build(whose: str, method: str, data: Path, steps: int, folder: str, setting: Setting) -> Step:
    """A function that takes optimizer step `index` of `steps`."""
    if whose != "trl":
        device = torch.device(setting.device.value)
        keep_freed_memory(device)  # as every run does
        choose_kernels(device, deterministic=False)
    tokenizer = tokenizer_of(setting, data)
    need = ExampleKind.demonstrations if method == "sft" else ExampleKind.pairs
    loaded = load(data, tokenizer, need, setting.size * steps, setting.limit)
    hf = make_model(method, tokenizer, setting)
    if whose == "ours":
        return our_step(method, hf, loaded, tokenizer, setting)
    if whose == "floor":
        return floor_step(method, hf.to(setting.device.value), loaded.examples, setting)
    return trl_step(method, hf, loaded, tokenizer, folder, size=setting.size, limit=setting.limit)


def load(data: Path, tokenizer: PreTrainedTokenizerBase, need: ExampleKind, rows: int, limit: int = LIMIT) -> Loaded:
    config = data_config(data, 50 + 4 * rows, max_prompt_length=limit - 1, limit=limit)  # many may be too long
    loaded = load_split("train", config, tokenizer, need)
    assert loaded is not None
    whole = [i for i, example in enumerate(loaded.examples) if all(example.finished)][:rows]  # TRL drops what is cut
    if len(whole) < rows:
        raise UserError(f"{data} must have {rows} rows of at most {limit} tokens, got {len(whole)}")
    kept = ([loaded.records[i] for i in whole], [loaded.examples[i] for i in whole])
    return Loaded(*kept, loaded.skipped, loaded.truncation)


def our_step(method: str, hf: Any, loaded: Loaded, tokenizer: PreTrainedTokenizerBase, setting: Setting) -> Step:
    model = ScalarModel(hf, WHOLE) if method == "reward" else LanguageModel(hf, WHOLE)
    train = TrainConfig(max_steps=10_000, learning_rate=1e-6)
    optimizer, scheduler = build_optimizer(model, train, num_steps=10_000, learning_rate=1e-6)
    config = setting.distributed()
    engine = TorchEngine(model, optimizer, scheduler, config=config, max_grad_norm=1.0)
    packer = Packer(BatchConfig(size=setting.size, max_tokens=8192, layout=Layout.shared), tokenizer.pad_token_id)
    batches = InOrder(loaded.examples, packer, 0)
    if method.startswith("dpo"):
        frozen = TorchEngine(deepcopy(model), optimizer, scheduler, config=config, max_grad_norm=1.0)
        cached = reference_logprobs(frozen, batches, range(len(loaded.examples))) if "cached" in method else None

        def dpo(index: int) -> None:
            table = reference_logprobs(frozen, batches, batches.step_rows(index)) if cached is None else cached
            train_step(engine, DPO(DPOLoss(), table), batches.step(index))

        return dpo
    objectives: dict[str, Objective[Batch]] = {
        "reward": RewardRanking(MarginRankingLoss()),
        "orpo": ORPO(ORPOLoss()),
        "orpo, TRL's loss": ORPO(ORPOLoss(nll=ORPONll.sequence)),
        "sft": SFT(CrossEntropyLoss()),
    }
    objective = objectives[method]

    def step(index: int) -> None:
        train_step(engine, objective, batches.step(index))

    return step


class InOrder(Batches):
    """Rows as they come, as TRL is given them."""

    def step_rows(self, index: int) -> list[int]:
        return list(range(index * self.packer.config.size, (index + 1) * self.packer.config.size))


def floor_step(method: str, hf: Any, examples: Sequence[Example], setting: Setting) -> Step:
    """Dense rows of the needed tokens and nothing else."""
    optimizer = torch.optim.AdamW(hf.parameters(), lr=1e-6, fused=True)
    frozen = deepcopy(hf).requires_grad_(False) if method == "dpo" else None
    size = setting.size

    def step(index: int) -> None:
        needed = examples[index * size : (index + 1) * size]
        completion = sum(len(ids) for example in needed for ids in example.completion_ids)
        total = completion + sum(len(example.prompt_ids) for example in needed)
        read = total if method == "orpo, TRL's loss" else completion  # it reads the prompts too
        ids = torch.arange(total, device=setting.device.value).remainder(PIECES)[None]
        rows = torch.nn.functional.pad(ids, (0, -total % size)).view(size, -1)
        with autocast(setting.distributed()):
            if frozen is not None:
                with torch.no_grad():
                    dense(frozen, method, rows, read)
            loss = dense(hf, method, rows, read)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(hf.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def dense(hf: Any, method: str, rows: torch.Tensor, read: int) -> torch.Tensor:
    hidden = hf.model(rows, use_cache=False).last_hidden_state.flatten(0, 1)
    if method == "reward":
        return hf.score(hidden[: 2 * len(rows)]).sum()
    return torch.nn.functional.cross_entropy(hf.lm_head(hidden[:read]), rows.flatten()[:read])


def show(result: dict[str, Any]) -> None:
    table = Table(
        "method", "times as fast as TRL", "as TRL with its memory kept", "times the floor", "share of TRL's peak memory"
    )
    for row in result["rows"]:
        ratios = [value for name, value in row.items() if name != "method"]
        table.add_row(row["method"], *("–" if ratio is None else f"{ratio:.2f}" for ratio in ratios))
    Console().print(table, result["versions"])


if __name__ == "__main__":
    main()
