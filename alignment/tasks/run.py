"""A run and its folder: written once, finished once.

A folder holds `config.yaml`, `metrics.jsonl`, `checkpoints/`, `model/`, and `finished.json` when all is done. The
fingerprint in it is of the config and of the files that the run read; the same command on an unfinished folder goes on
from the newest checkpoint, on a finished one it has nothing to do.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from alignment.config.inputs import check_inputs, input_paths
from alignment.config.parts import ConfigError, UserError
from alignment.config.tasks import TASKS, PipelineConfig, RunConfig
from alignment.distributed.world import pick_device
from alignment.tasks import dpo, evaluate, orpo, ppo, rejection, reward, sft
from alignment.terminal import say
from alignment.training.checkpoint import seed_everything
from alignment.training.log import check_trackers

UNMARKED = ("output_dir", "log", "checkpoint", "reference", "cluster")
SUBMITTED = {"job.sbatch", "submitted.json", "logs"}
RUN: dict[str, Callable[[Any, Path], None]] = {
    "sft": sft.run,
    "reward": reward.run,
    "dpo": dpo.run,
    "orpo": orpo.run,
    "ppo": ppo.run,
    "rejection": rejection.run,
    "evaluate": evaluate.run,
}


def task_name(config: RunConfig) -> str:
    return next(name for name, root in TASKS.items() if type(config) is root)


def execute(config: RunConfig) -> None:
    """Run one task in its folder.

    Raises:
        ConfigError: an input is missing, or the folder holds a run of another config.
    """
    assert not isinstance(config, PipelineConfig)
    check_inputs(config)
    check_trackers(config.log.trackers)
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise ConfigError(f"a run is one process so far, got WORLD_SIZE={os.environ['WORLD_SIZE']}")
    pick_device(config.distributed.device)
    folder = Path(config.output_dir)
    mark = fingerprint(config)
    if is_finished(folder, mark):
        say(f"{folder}: finished already, nothing to do (another output_dir runs it again)")
        return
    start(folder, config, mark)
    seed_everything(config.seed)
    try:
        RUN[task_name(config)](config, folder)
    except UserError:
        give_up(folder)
        raise
    finish(folder, mark)


def start(folder: Path, config: RunConfig, mark: str) -> None:
    """Claim the folder and write the resolved config into it."""
    if not belongs_to(folder, mark):
        raise ConfigError(f"output_dir holds a run of another config or other inputs, got {str(folder)!r}")
    write_config(folder, config)
    _write_mark(folder / "started.json", mark)


def write_config(folder: Path, config: RunConfig) -> None:
    """The resolved config, as a recipe: `alignment run FOLDER/config.yaml` runs it again."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"output_dir must be a folder that can be made ({error.strerror}), got {str(folder)!r}"
        ) from error
    task = f"defaults:\n  - task: {task_name(config)}\n  - _self_\n\n"
    text = task + OmegaConf.to_yaml(OmegaConf.structured(config))
    path = folder / "config.yaml"
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def give_up(folder: Path) -> None:
    """Leave nothing behind of a run that a user's mistake ended before it had done anything.

    What a submission to a cluster wrote stays, for the mistake is told in its log; the claim on the folder goes.
    """
    left = {path.name for path in folder.iterdir()}
    own = {"config.yaml", "started.json", "checkpoints"}
    if left <= own | SUBMITTED and not any(folder.glob("checkpoints/*")):
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        (folder / "started.json").unlink()
        if left <= own:
            shutil.rmtree(folder)


def belongs_to(folder: Path, mark: str) -> bool:
    """No run has claimed the folder, or one with this fingerprint has."""
    claim = folder / "started.json"
    return not claim.exists() or json.loads(claim.read_text())["fingerprint"] == mark


def finish(folder: Path, mark: str) -> None:
    _write_mark(folder / "finished.json", mark)


def _write_mark(path: Path, mark: str) -> None:
    beside = path.with_suffix(".partial")
    beside.write_text(json.dumps({"fingerprint": mark}))
    beside.replace(path)


def is_finished(folder: Path, mark: str) -> bool:
    path = folder / "finished.json"
    return path.exists() and json.loads(path.read_text())["fingerprint"] == mark


def fingerprint(config: RunConfig) -> str:
    """Of the package, the config, but for what does not change its outcome, and the state of every file it reads."""
    settings = {name: value for name, value in asdict(config).items() if name not in UNMARKED}
    inputs = {key: _state(Path(path)) for key, path in input_paths(config)}
    return hashlib.sha256(
        json.dumps([version("preference-alignment"), settings, inputs], sort_keys=True, default=str).encode()
    ).hexdigest()


def _state(path: Path) -> list[tuple[str, int, int]]:
    """Name, size and time of change of each file of an input; of a run's folder, its finish stands for all of it."""
    finished = path / "finished.json"
    if finished.exists():
        files = [finished]
    else:
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return [(str(file.relative_to(path.parent)), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
