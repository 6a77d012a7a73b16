"""The model of a checkpoint in Hugging Face form, as a finished run leaves its own."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from alignment.config.errors import ConfigError
from alignment.config.folders import find_model
from alignment.config.fp8 import Fp8
from alignment.config.inputs import check_inputs
from alignment.config.model_kinds import run_without_model
from alignment.config.online import PPOConfig
from alignment.config.run import RunConfig, TrainingConfig
from alignment.config.supervised import ScalarConfig
from alignment.distributed.device import tell_deepspeed
from alignment.distributed.placement import WHOLE, Placement, Whole
from alignment.distributed.precision import compute_dtype
from alignment.distributed.reshard import whole_weights
from alignment.hub.pin import fetch_model
from alignment.models.files import dtype_in
from alignment.models.load import load_language_model, load_scalar_model, save_model
from alignment.models.reward_normalization import FILE as STATISTICS
from alignment.runs.folder import RunFolder, step_folder, steps_in
from alignment.runs.rows import read_rows
from alignment.runs.written import begin_folder, publish_folder
from alignment.tasks.card import write_card
from alignment.terminal import say
from alignment.training.manifest import Damaged, check_part, map_part, part_name, read_manifest
from alignment.training.merging import fill_base, merging_part
from alignment.training.parameter_groups import parameter_groups
from alignment.training.setup import prepare_tokenizer


def export(config: RunConfig, folder: Path, *, step: int | None, out: Path | None) -> Path:
    """Write the model that the run in `folder` trains as it was after `step` steps, the adapter merged into it.

    Args:
        step: of the checkpoint. None: the newest that is good.
        out: where. None: `exported/step-N` within the run's folder.

    Raises:
        ConfigError: the task trains no model, there is no such checkpoint or it is damaged, or `out` is there already.
        UserError: the checkpoint is of another model.
    """
    if not isinstance(config, TrainingConfig):
        raise ConfigError(f"RUN must be one that trains, got {str(folder)!r}, that of {run_without_model(folder)}")
    tell_deepspeed(torch.device("cpu"))
    fetch_model(config, config.model)
    check_inputs(config.model, "model.")
    if config.model.lora.rank and config.model.path is None:
        rule = "an adapter's checkpoint does not hold the weights under it, so they must come from model.path"
        raise ConfigError(f"{rule}, got null")
    step, states = _states(RunFolder(folder).checkpoints, step)
    part = "actor" if isinstance(config, PPOConfig) else "model"
    out = step_folder(RunFolder(folder).exported, step) if out is None else out
    if out.exists():
        raise ConfigError(f"--out must be a folder that is not there yet, got {str(out)!r}")
    tokenizer = prepare_tokenizer(config.model)
    load: Any = load_scalar_model if isinstance(config, ScalarConfig) else load_language_model
    model = load(replace(config.model, fp8=Fp8.none), tokenizer, _placement(config))  # whatever it multiplied in
    trained = model.trained()
    lora = config.model.lora
    found = parameter_groups(model, config.train, lora_plus=lora.plus, merges=lora.merge_every > 0)
    groups = [{name: p.shape for name, p in group.weights.items()} for group in found]
    weights = whole_weights([state[part] for state in states], groups)
    with torch.no_grad():
        for name, weight in weights.items():
            trained[name].copy_(weight)
    if lora.merge_every:
        fill_base(model, [state[merging_part(part)] for state in states])
    try:
        made = begin_folder(out)
    except OSError as error:
        rule = f"--out must be a folder that can be made and written ({error.strerror})"
        raise ConfigError(f"{rule}, got {str(out)!r}") from error
    save_model(model, tokenizer, made)
    rows = RunFolder(folder).metrics
    write_card(config, made, [row for row in read_rows(rows) if row["step"] <= step] if rows.exists() else [])
    publish_folder(out)
    say(f"the model after step {step} is in {out}")
    if isinstance(config, ScalarConfig):
        say(f"without {STATISTICS}, which reward.normalize needs: the model of a run that has ended has it")
    return out


def _placement(config: TrainingConfig) -> Placement:
    """A base under an adapter is held in what its folder has it in: the same numbers as in float32, in half the memory.
    What is put together from several folders, or made, is held as it is made; a base of which the adapter began as a
    part, as the run held it, for the rest was rounded to that."""
    model = config.model
    if model.lora.init.changes_base:
        return Whole(compute_dtype(config.distributed))
    if not model.keeps_base or model.path is None or model.resize_embeddings:
        return WHOLE
    folder = find_model(model.path, "model.path", trusted=model.trust_remote_code)
    return WHOLE if folder.adapters else Whole(dtype_in(folder.path, folder.key))


def _states(folder: Path, step: int | None) -> tuple[int, list[dict[str, Any]]]:
    """The step, and what each process had of each part."""
    steps = steps_in(folder)
    found = [step_folder(folder, each) for each in steps if step in (None, each)]
    if not steps:
        way = "checkpoint.every_minutes and checkpoint.every say when, and the same command goes on with the run"
        raise ConfigError(f"RUN must have a checkpoint, got none in {str(folder)!r}: {way}")
    if not found:
        there = ", ".join(step_folder(folder, each).name for each in steps)
        raise ConfigError(f"--step must be of a checkpoint in {str(folder)!r} ({there}), got {step}")
    why = ""
    for path in reversed(found):
        try:
            manifest = read_manifest(path)
            names = [part_name(rank) for rank in range(manifest.world_size)]
            for name in names:
                check_part(path / name, manifest.files[name])
        except Damaged as error:
            why = f"{path}: {error}"
            say(f"{path} is skipped: {error}")
            continue
        return manifest.step, [map_part(path / name)["parts"] for name in names]
    raise ConfigError(f"no checkpoint is good: {why}")
