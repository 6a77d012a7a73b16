"""PPO iterations side by side: ours, and those of TRL 1.12, the last with PPO, in an environment of its own.

Both load the same policy and reward model (which is the critic's start, too) and draw 64 tokens for each of the same
16 prompts; temperature, end token, KL penalty, clips, rates and four inner epochs are the same. An iteration is
generation, scores, log-probs and values, and learning. The contenders are processes that take turns, iteration by
iteration, and the figure is the ratio of replies a second, by medians. Each tells its peak memory above what it had
after its imports.

TRL draws one reply for a prompt, and this is what it is measured at, beside our four a prompt, too.
"""

import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from benchmark_setting import LIMIT, data_config, make_model, make_tokenizer
from benchmark_turns import KEEPS_MEMORY, Contender, Turns, play_in_turns

from alignment.config.batch import BatchConfig
from alignment.config.data import ExampleKind
from alignment.config.generation import GenerationConfig
from alignment.config.model import ModelConfig
from alignment.config.online import PPOConfig
from alignment.config.ppo import CriticConfig, KLConfig, PPOUpdateConfig
from alignment.config.reward import RewardShapingConfig
from alignment.config.train import TrainConfig
from alignment.data.batches import Batches, Packer
from alignment.data.load import load_split
from alignment.distributed.device import keep_freed_memory
from alignment.tasks.ppo import build_trainer
from alignment.training.nonfinite import NonFiniteGuard

REPLIES = {"ppo": 1, "ppo, 4 replies a prompt": 4}
"""method -> replies that we draw for a prompt."""
TRL, KEPT, PROMPTS, TOKENS = "trl==1.12.0", "trl, memory kept", 16, 64
HERE = Path(__file__).parent


def measured_ppo(methods: list[str], data: Path, environment: Path, *, turns: int, warmup: int) -> list[dict[str, Any]]:
    """The methods' rows: medians of `turns` iterations after `warmup` of them."""
    python = trl_python(environment)
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_setting(folder, data, iterations=warmup + turns)
        contenders = {method: Contender(sys.executable, __file__, folder, REPLIES[method]) for method in methods}
        theirs = python, HERE / "benchmark_ppo_trl.py", folder
        contenders |= {TRL: Contender(*theirs), KEPT: Contender(*KEEPS_MEMORY, *theirs)}
        seconds, peaks = play_in_turns([contenders], turns, warmup=warmup)
    return [
        {
            "method": method,
            "times_faster_than_trl": REPLIES[method] * seconds[TRL] / seconds[method],
            "times_faster_than_trl_memory_kept": REPLIES[method] * seconds[KEPT] / seconds[method],
            "times_the_floor": None,
            "share_of_trl_memory": peaks[method] / peaks[TRL],
        }
        for method in methods
    ]


def trl_python(environment: Path) -> Path:
    """The interpreter of an environment with TRL 1.12 and all else as requirements.lock has it; made once."""
    python, made = environment / "bin" / "python", environment / "installed.lock"
    lock = (HERE.parent / "requirements.lock").read_text().splitlines()
    pins = [line for line in lock if "==" in line and not line.startswith(("#", "trl=="))]
    wanted = "\n".join([TRL, *pins])
    if not made.is_file() or made.read_text() != wanted:
        subprocess.run([sys.executable, "-m", "venv", "--clear", environment], check=True)
        (environment / "constraints.txt").write_text("\n".join(pins))
        pip: list[str | Path] = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        torch = next(pin for pin in pins if pin.startswith("torch=="))
        subprocess.run([*pip, torch], check=True)  # alone and first, as in environment.sh
        subprocess.run([*pip, "--constraint", environment / "constraints.txt", TRL], check=True)
        made.write_text(wanted)
    return python


def write_setting(folder: Path, data: Path, *, iterations: int) -> None:
    """What both sides read: the models, and for TRL the prompts of our steps and the constants of our config."""
    tokenizer = make_tokenizer(data)
    for kind in ("policy", "reward"):
        make_model(kind, tokenizer).save_pretrained(folder / kind)
        tokenizer.save_pretrained(folder / kind)
    config = ppo_config(folder, data, num_samples=1, iterations=iterations)
    (folder / "data.json").write_text(json.dumps({"data": str(data.resolve()), "iterations": iterations}))
    loaded = load_split("train", config.data, tokenizer, ExampleKind.prompts)
    assert loaded is not None
    prompts = Batches(loaded.examples, Packer(config.batch, tokenizer.pad_token_id), config.seed)
    steps = [[loaded.examples[row].prompt_ids.tolist() for row in prompts.step_rows(i)] for i in range(iterations)]
    theirs = {
        "response_length": config.generation.max_new_tokens,
        "temperature": config.generation.temperature,
        "num_ppo_epochs": config.ppo.epochs,
        "num_mini_batches": config.ppo.mini_batches,
        "kl_coef": config.kl.weight,
        "kl_estimator": config.kl.estimator.value,
        "cliprange": config.loss.policy.clip,
        "cliprange_value": config.loss.value.clip,
        "gamma": config.advantage.gamma,
        "lam": config.advantage.lam,
        "learning_rate": config.train.learning_rate,
    }
    (folder / "prompts.json").write_text(json.dumps({"steps": steps, "config": theirs}))


def ppo_config(folder: Path, data: Path, *, num_samples: int, iterations: int) -> PPOConfig:
    return PPOConfig(
        model=ModelConfig(path=str(folder / "policy")),
        data=data_config(data, PROMPTS * iterations, max_prompt_length=LIMIT - TOKENS),
        batch=BatchConfig(size=PROMPTS, max_tokens=4096),
        train=TrainConfig(max_steps=iterations, learning_rate=1e-6),
        reward=RewardShapingConfig(path=str(folder / "reward")),
        critic=CriticConfig(learning_rate=1e-6),
        num_samples=num_samples,
        ppo=PPOUpdateConfig(epochs=4),
        kl=KLConfig(weight=0.05),
        generation=GenerationConfig(max_new_tokens=TOKENS, temperature=0.7),
    )


def play(folder: Path, num_samples: int) -> None:
    """Our side: what an iteration of the task `ppo` does."""
    turns = Turns()
    setting = json.loads((folder / "data.json").read_text())
    config = ppo_config(folder, Path(setting["data"]), num_samples=num_samples, iterations=setting["iterations"])
    keep_freed_memory(torch.device("cpu"))  # as every run does
    stage = build_trainer(config, folder)
    stage.begin(0)
    nonfinite = NonFiniteGuard(folder / "nonfinite.json", config.train.on_nonfinite, stage.train)
    for step in range(1, setting["iterations"] + 1):
        turns.wait()
        measured, units = stage.collect(step)
        (measured | stage.update(step, units, nonfinite)).means()
    turns.wait()


if __name__ == "__main__":
    play(Path(sys.argv[1]), int(sys.argv[2]))
