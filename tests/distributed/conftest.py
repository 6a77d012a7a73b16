"""Processes that the tests start: ranks with gloo between them, and whole runs of the command."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

REPOSITORY = Path(__file__).parents[2]
SMALL = [
    *("model.init.hidden_size=32", "model.init.intermediate_size=48", "data.train.limit=24", "data.eval.limit=4"),
    *("batch.size=4", "batch.max_tokens=400", "checkpoint.every=1", "checkpoint.keep=12", "train.max_steps=12"),
    *("train.eval_every=5", "log.every=2", "log.progress=false", "output_dir=run"),
]
REPLIES = [*SMALL, "generation.max_new_tokens=6"]
RUNS = {
    "dpo": ["tiny_dpo", *SMALL, "reference.cache=false", "seed=1"],
    "ppo": ["tiny_ppo", *REPLIES, "ppo.epochs=2", "ppo.ema=0.8"],
    "grpo": ["tiny_grpo", *REPLIES, "ppo.epochs=2", "advantage.redraws=1", "reward.function=coarse.parity"],
    "online_dpo": ["tiny_online_dpo", *REPLIES, "reward.function=coarse.parity"],
    "kto": ["tiny_kto", *SMALL, "reference.cache=false"],
    "rloo": ["tiny_rloo", *REPLIES, "ppo.mini_batches=2", "reward.function=coarse.parity"],
    "simpo": ["tiny_simpo", *SMALL],
}
ZERO = {"dpo": 2, "ppo": 3, "grpo": 3, "online_dpo": 2, "kto": 3, "rloo": 2, "simpo": 3}
TWO = {name: ("launch.processes=2", f"distributed.zero={zero}") for name, zero in ZERO.items()}
RANK, GUARD = Path(__file__).with_name("rank.py"), Path(__file__).with_name("two_devices.py")
Start = Callable[..., "subprocess.Popen[str]"]


def _environment(**more: str) -> dict[str, str]:
    """This process's, but for what a launcher would have set, with the checkout to import from."""
    kept = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    path = os.pathsep.join([*more.pop("PYTHONPATH", "").split(os.pathsep), str(REPOSITORY)]).strip(os.pathsep)
    return {**kept, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": path, **more}


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _run_ranks(
    script: Path, arguments: list[str], *, processes: int, two_devices: bool = False, timeout_s: float = 600
) -> None:
    """Run a script in as many processes; raises where one of them fails. With `two_devices`, or RANKS=cuda:gloo in the
    environment, as on a machine with GPUs: see two_devices.py."""
    port = str(_free_port())
    is_guarded = two_devices or os.environ.get("RANKS") == "cuda:gloo"
    if is_guarded:
        timeout_s *= 5  # each operation is looked at
    started = [
        subprocess.Popen(
            [sys.executable, str(GUARD if is_guarded else RANK), str(script), *arguments],
            env=_environment(
                RANK=str(rank),
                LOCAL_RANK=str(rank),
                WORLD_SIZE=str(processes),
                MASTER_ADDR="127.0.0.1",
                MASTER_PORT=port,
            ),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(processes)
    ]
    try:
        said = [process.communicate(timeout=timeout_s)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * processes, "\n".join(said)[-4000:]


@pytest.fixture(scope="session")
def run_ranks() -> Callable[..., None]:
    return _run_ranks


@pytest.fixture(scope="session")
def environment() -> Callable[..., dict[str, str]]:
    return _environment


@pytest.fixture(scope="session")
def start(environment: Callable[..., dict[str, str]]) -> Start:
    """`start("dpo", folder)` starts the run in two processes under its ZeRO stage, or as the words that follow say."""

    def call(name: str, folder: Path, *how: str) -> "subprocess.Popen[str]":
        folder.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "alignment", "run", *RUNS[name], *(how or TWO[name])]
        return subprocess.Popen(
            command,
            cwd=folder,
            env=environment(PYTHONPATH=str(Path(__file__).parent)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored in a shell's background
        )

    return call


@pytest.fixture(scope="session")
def whole(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of an unbroken run, made once. All its checkpoints are there."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            running = start(name, folder)
            _, said = running.communicate(timeout=300)
            assert running.returncode == 0, said
            norms = [row["grad_norm"] for row in _rows(folder / "run") if "grad_norm" in row]
            assert norms and min(norms) > 0, "what learns nothing goes on from anywhere"
            made[name] = folder / "run"
        return made[name]

    return make


def _rows(folder: Path) -> list[dict[str, float]]:
    """Of the log, without the times that things took."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if not name.startswith("time/")} for row in rows]


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    """Of the model, and of its moving average where it has one."""
    files = [folder / name / "model.safetensors" for name in ("model", "model_ema")]
    return {f"{file.parent.name} {key}": w for file in files if file.exists() for key, w in load_file(file).items()}


def _assert_same(one: Path, other: Path) -> None:
    assert _rows(one) == _rows(other) != []
    first, second = _weights(one), _weights(other)
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.fixture(scope="session")
def assert_same() -> Callable[[Path, Path], None]:
    """Two runs' metrics and weights, to the last bit."""
    return _assert_same


@pytest.fixture(scope="session")
def rows() -> Callable[[Path], list[dict[str, Any]]]:
    return _rows


@pytest.fixture(scope="session")
def weights() -> Callable[[Path], dict[str, torch.Tensor]]:
    return _weights


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """The numbers and words of a JSON value, each with where it is."""
    if not isinstance(value, dict | list):
        yield key, value
        return
    for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
        yield from _leaves(inner, f"{key}.{name}")


def _assert_close(found: Any, wanted: Any, *, tolerance: float) -> None:
    """JSON values with the same words, and numbers that differ by no more than this, of themselves or of one."""
    found, wanted = dict(_leaves(found)), dict(_leaves(wanted))
    numbers = {key: value for key, value in wanted.items() if isinstance(value, float)}
    others = {key: value for key, value in wanted.items() if key not in numbers}
    assert {key: value for key, value in found.items() if key not in numbers} == others
    assert {key: found[key] for key in numbers} == pytest.approx(numbers, rel=tolerance, abs=tolerance)


@pytest.fixture(scope="session")
def assert_close() -> Callable[..., None]:
    return _assert_close
