"""PPO iterations side by side: ours, and those of TRL 1.12, the last with PPO, in an environment of its own.

Both load the same policy and reward model (which is the critic's start, too) and draw 64 tokens for each of the same
16 prompts, on a GPU 256 for each of 64; temperature, end token, KL penalty, clips, rates and four inner epochs are the
same. An iteration is generation, scores, log-probs and values, and learning. The contenders are processes that take
turns, iteration by iteration, in several rounds with new processes each, and the figure is the ratio of replies a
second, by medians. Each tells its peak memory above what it had after its imports.

TRL draws one reply for a prompt, and this is what it is measured at, beside our four a prompt, too.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from benchmark_setting import SETTINGS, Setting, data_config, make_model, make_tokenizer
from benchmark_turns import KEEPS_MEMORY, Contender, Turns, play_in_turns

from alignment.config.batch import BatchConfig
from alignment.config.data import ExampleKind
from alignment.config.distributed import Device
from alignment.config.generation import GenerationConfig
from alignment.config.model import ModelConfig
from alignment.config.online import PPOConfig
from alignment.config.ppo import CriticConfig, KLConfig, PPOUpdateConfig
from alignment.config.reward import RewardShapingConfig
from alignment.config.train import TrainConfig
from alignment.data.batches import Batches, Packer
from alignment.data.load import load_split
from alignment.distributed.device import choose_kernels, keep_freed_memory
from alignment.tasks.ppo import build_trainer
from alignment.training.nonfinite import NonFiniteGuard

REPLIES = {"ppo": 1, "ppo, 4 replies a prompt": 4}
"""method -> replies that we draw for a prompt."""
TRL, KEPT = "trl==1.12.0", "trl, memory kept"
HERE = Path(__file__).parent


def measured_ppo(
    methods: list[str], data: Path, environment: Path, *, turns: int, warmup: int, rounds: int
) -> list[dict[str, Any]]:
    """The methods' rows: medians over `rounds`, each with new processes, of `turns` iterations after `warmup` of them,
    all contenders in turns."""
    with TemporaryDirectory() as name:
        commands = contenders(methods, Path(name), data, environment, setting="tiny", iterations=warmup + turns)
        started = ({whose: Contender(*command) for whose, command in commands.items()} for _ in range(rounds))
        seconds, peaks = play_in_turns(started, turns, warmup=warmup)
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


def contenders(
    methods: Sequence[str], folder: Path, data: Path, environment: Path, *, setting: str, iterations: int
) -> dict[str, tuple[object, ...]]:
    """The command of each: our methods, TRL, and on a CPU TRL with its memory kept. `folder` gets what they read."""
    python = trl_python(environment)
    write_setting(folder, data, setting, iterations=iterations)
    commands: dict[str, tuple[object, ...]] = {
        method: (sys.executable, __file__, folder, REPLIES[method]) for method in methods
    }
    commands[TRL] = (python, HERE / "benchmark_ppo_trl.py", folder)
    if SETTINGS[setting].device is Device.cpu:
        commands[KEPT] = (*KEEPS_MEMORY, *commands[TRL])
    return commands


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


def write_setting(folder: Path, data: Path, name: str, *, iterations: int) -> None:
    """What both sides read: the models, and for TRL the prompts of our steps and the constants of our config."""
    setting, tokenizer = SETTINGS[name], make_tokenizer(data)
    for kind in ("policy", "reward"):
        make_model(kind, tokenizer, setting).save_pretrained(folder / kind)
        tokenizer.save_pretrained(folder / kind)
    config = ppo_config(folder, data, setting, num_samples=1, iterations=iterations)
    asked = {"data": str(data.resolve()), "iterations": iterations, "setting": name}
    (folder / "data.json").write_text(json.dumps(asked))
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
    written = {"steps": steps, "device": setting.device.value, "config": theirs}
    (folder / "prompts.json").write_text(json.dumps(written))


def ppo_config(folder: Path, data: Path, setting: Setting, *, num_samples: int, iterations: int) -> PPOConfig:
    longest_prompt = setting.limit - setting.new_tokens
    return PPOConfig(
        model=ModelConfig(path=str(folder / "policy")),
        data=data_config(data, setting.prompts * iterations, max_prompt_length=longest_prompt),
        distributed=setting.distributed(),
        batch=BatchConfig(size=setting.prompts, max_tokens=4096),
        train=TrainConfig(max_steps=iterations, learning_rate=1e-6),
        reward=RewardShapingConfig(path=str(folder / "reward")),
        critic=CriticConfig(learning_rate=1e-6),
        num_samples=num_samples,
        ppo=PPOUpdateConfig(epochs=4),
        kl=KLConfig(weight=0.05),
        generation=GenerationConfig(max_new_tokens=setting.new_tokens, temperature=0.7),
    )


def play(folder: Path, num_samples: int) -> None:
    """Our side: what an iteration of the task `ppo` does."""
    asked = json.loads((folder / "data.json").read_text())
    setting, iterations = SETTINGS[asked["setting"]], asked["iterations"]
    turns = Turns(setting.device.value)
    config = ppo_config(folder, Path(asked["data"]), setting, num_samples=num_samples, iterations=iterations)
    device = torch.device(setting.device.value)
    keep_freed_memory(device)  # as every run does
    choose_kernels(device, deterministic=False)
    stage = build_trainer(config, folder)
    stage.begin(0)
    nonfinite = NonFiniteGuard(folder / "nonfinite.json", config.train.on_nonfinite, stage.train)
    for step in range(1, iterations + 1):
        turns.wait()
        measured, units = stage.collect(step)
        (measured | stage.update(step, units, nonfinite)).means()
    turns.wait()


if __name__ == "__main__":
    play(Path(sys.argv[1]), int(sys.argv[2]))
