"""The names of runs: `runs/RECIPE/TIME_MODEL`, where nobody asks for another folder.

`${asked:}` is the last part: the model that the run begins with, for a sweep the word sweep, for an evaluation the
names of what it compares.
"""

import re
from pathlib import PurePosixPath

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from alignment.runs.folder import RunFolder

LONGEST = 60
DATED = re.compile(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d(_.*)?")
OWN = {path.name for path in (RunFolder("").model, RunFolder("").model_ema, RunFolder("").best)}
TINY = "tiny"  # the preset of models


def register_names() -> None:
    OmegaConf.register_new_resolver("asked", asked, replace=True)


def asked(*, _root_: DictConfig) -> str:
    """What tells this run from others of its recipe, in safe signs and behind a `_`; nothing where nothing does."""
    if HydraConfig.initialized() and HydraConfig.get().mode is RunMode.MULTIRUN:
        return "_sweep"  # one folder for all its jobs, whatever models they have
    runs, model, reward = (OmegaConf.select(_root_, key) for key in ("runs", "model", "reward"))
    if isinstance(model, DictConfig):
        return _behind(_of_model(model))
    if isinstance(runs, DictConfig) and runs:
        return _behind("-".join(map(str, runs)))
    return _behind(short_name(reward)) if isinstance(reward, str) else ""


def _of_model(model: DictConfig) -> str:
    path = OmegaConf.select(model, "path")
    if path is not None:
        return short_name(str(path))
    if not OmegaConf.select(model, "init"):
        return ""  # as in `--cfg job` of a recipe whose model is yet to be named
    is_tiny = HydraConfig.initialized() and HydraConfig.get().runtime.choices.get("model") == TINY
    return TINY if is_tiny else "random"


def short_name(path: str) -> str:
    """Of a model's folder or of its name on the hub, without the revision; a run's own model has the run's name."""
    parts = [part for part in PurePosixPath(path.partition("@")[0]).parts if part not in ("/", ".", "..", "~")]
    while len(parts) > 1 and (parts[-1] in OWN or DATED.fullmatch(parts[-1])):
        parts.pop()  # a dated run goes by its recipe
    behind = ""
    if len(parts) > 1 and parts[-1].isdigit():  # a job of a sweep
        behind = f"-{parts.pop()}"
        while len(parts) > 1 and DATED.fullmatch(parts[-1]):
            parts.pop()
    return (parts[-1] if parts else "") + behind


def _behind(name: str) -> str:
    safe = re.sub(r"[^\w.+-]+", "-", name)[:LONGEST].strip("-.")
    return f"_{safe}" if safe else ""
