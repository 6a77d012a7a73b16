"""The command in this process: as fast as a function, and every line it would print."""

import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from transformers import PreTrainedTokenizerBase

from alignment.cli.main import main
from alignment.config.model import ModelConfig
from alignment.distributed.placement import WHOLE
from alignment.models.load import load_language_model, load_scalar_model, save_model
from alignment.tasks import ppo


@dataclass
class Ended:
    """How a command ended; a warning counts as a line on stderr."""

    code: int
    out: str
    err: list[str]


@pytest.fixture
def alignment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., Ended]]:
    """`alignment("run", "tiny_sft")` in the empty folder `tmp_path`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    handlers = list(logging.root.handlers)

    def call(*words: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["alignment", *words])
        capsys.readouterr()
        code = 0
        with warnings.catch_warnings(record=True) as warned:
            try:
                main()
            except SystemExit as end:
                code = end.code
            finally:
                GlobalHydra.instance().clear()
        said = capsys.readouterr()
        return Ended(code, said.out, said.err.splitlines() + [str(warning.message) for warning in warned])

    yield call
    logging.root.handlers = handlers


@pytest.fixture(scope="session")
def families(
    tmp_path_factory: pytest.TempPathFactory,
    family: Callable[[str], PreTrainedTokenizerBase],
    tokenizer: PreTrainedTokenizerBase,
    tiny_init: dict[str, Any],
) -> Path:
    """A folder that no test changes, with random models: two language models of two families, `small` and `qwen`, and a
    reward model of a third, `judge`."""
    folder = tmp_path_factory.mktemp("families")
    for name, own in (("small", tokenizer), ("qwen", family("qwen")), ("judge", family("gemma"))):
        torch.manual_seed(0)
        load: Any = load_scalar_model if name == "judge" else load_language_model
        save_model(load(ModelConfig(init={**tiny_init, "vocab_size": len(own)}), own, WHOLE), own, folder / name)
    return folder


@pytest.fixture
def own(tmp_path: Path) -> Callable[[str, str], str]:
    """`own("mine", "...")` writes the user's recipe `mine.yaml` and returns its path."""

    def write(name: str, text: str) -> str:
        folder = tmp_path / "own"
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.yaml").write_text(text)
        return f"own/{name}.yaml"

    return write


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of fake commands in PATH: sbatch counts from 11 and refuses the job of `refuse`; `state` is any job's.

    `calls` holds a line for each command.
    """
    folder = tmp_path.parent / f"{tmp_path.name}-slurm"
    folder.mkdir()
    (folder / "state").write_text("COMPLETED")
    body = {
        "sbatch": 'n=$(($(grep -c ^sbatch calls) + 10)); [ "$n" != "$(cat refuse)" ] || {\n'
        'echo "sbatch: error: invalid partition specified: nope" >&2; exit 1; }\necho $n',
        "scontrol": 'echo "JobId=1 JobState=$(cat state) Reason=Resources"',
        "scancel": "",
    }
    for name, text in body.items():
        (folder / name).write_text(f'#!/bin/bash\ncd "${{0%/*}}"\necho "{name} $*" >> calls\n{text}\n')
        (folder / name).chmod(0o755)
    (folder / "refuse").write_text("")
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return folder


@pytest.fixture
def ppo_interrupted(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], AbstractContextManager[None]]:
    """`with ppo_interrupted(n)`: PPO is interrupted, as by the user, in its iteration n + 1, before it learns."""

    @contextmanager
    def inside(steps: int) -> Iterator[None]:
        update, done = ppo.update_actor_and_critic, []

        def counted(*arguments: Any, **named: Any) -> Any:
            if len(done) == steps:
                raise KeyboardInterrupt
            done.append(1)
            return update(*arguments, **named)

        with monkeypatch.context() as patched:
            patched.setattr(ppo, "update_actor_and_critic", counted)
            yield

    return inside
