"""Whether a run can be in the folder that it is asked for, before anything else is done."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from alignment.config.errors import ConfigError, require
from alignment.config.folders import ADAPTER_FILE, MODEL_FILE
from alignment.config.inputs import function_files
from alignment.config.run import RunConfig
from alignment.config.tasks import PipelineConfig
from alignment.process import is_ours
from alignment.runs.fingerprint import inputs
from alignment.runs.folder import RunFolder
from alignment.runs.lifecycle import is_of_run
from alignment.runs.written import PARTIAL

RULE = "output_dir must be a folder that can be made and written"
_recipe: ContextVar[Path | None] = ContextVar("recipe", default=None)


@contextmanager
def running_recipe(name: str, folders: Sequence[Path]) -> Iterator[None]:
    """Inside, the recipe that is run is the one of that name in the first of the user's folders that has it. It may lie
    in the run's own folder, where no run writes over it; of any other file that is not known."""
    before = _recipe.set(next((file for folder in folders if (file := folder / f"{name}.yaml").is_file()), None))
    try:
        yield
    finally:
        _recipe.reset(before)


def require_place(config: RunConfig) -> None:
    """Raises:
    ConfigError: there is no such folder and none can be made, something that is no run's stands where a run writes,
        the run would write where it reads, or the folder is one that other runs lie in, which would count as parts of
        this one, or that files of the user's lie in, among which those of the run would be.
    """
    if is_ours():  # whose launcher has looked, and alone knows which file the recipe is
        return
    rule = "output_dir must name a folder, of which '.' is the one that the command is given in"
    require(bool(config.output_dir.strip()), rule, config.output_dir)
    folder = RunFolder(config.output_dir)
    is_pipeline = isinstance(config, PipelineConfig)  # whose stages have folders of their own
    written = [folder.config] if is_pipeline else folder.names()
    try:
        _require_kinds(config, written)
        if not is_pipeline:
            _require_no_others(config, folder)
        _require_apart(config, written)
        _require_own(config, folder, written)
        _require_empty_or_run(config, folder)
    except OSError as error:  # of its name, or of who may look
        raise ConfigError(f"{RULE} ({error.strerror}), got {config.output_dir!r}") from error


def _require_kinds(config: RunConfig, written: Sequence[Path]) -> None:
    path = Path(config.output_dir)
    stands = next(each for each in (path, *path.absolute().parents) if each.exists())
    if not stands.is_dir():
        raise ConfigError(f"{RULE}, got {config.output_dir!r}, where {str(stands)!r} is a file")
    if not os.access(stands, os.W_OK | os.X_OK) and not RunFolder(path).started.exists():  # a finished one may be read
        where = "" if stands == path else f", where {str(stands)!r} may not be written"
        raise ConfigError(f"{RULE} (Permission denied), got {config.output_dir!r}{where}")
    strange = next((path for path in written if path.exists() and path.is_dir() == bool(path.suffix)), None)
    if strange is not None:
        kind = "folder" if strange.is_dir() else "file"
        raise ConfigError(f"{RULE}, got {config.output_dir!r}, where {str(strange)!r} is a {kind}")


def _require_no_others(config: RunConfig, folder: RunFolder) -> None:
    others = [] if folder.started.exists() else sorted(path.parent for path in folder.path.glob("*/started.json"))
    if others:
        own = Path(config.output_dir) / "NAME"
        rule = f"output_dir must not be a folder of other runs, as of {str(others[0])!r}; output_dir={own} is in it too"
        raise ConfigError(f"{rule}, got {config.output_dir!r}")


def _require_apart(config: RunConfig, written: Sequence[Path]) -> None:
    """Whatever links lead to, nothing that the run reads lies where it writes."""
    for key, path in [*inputs(config), *function_files(config)]:
        run = RunFolder(path)
        for read in (each.resolve() for each in (run.read_elsewhere() if run.is_run() else [path])):
            over = next((name for name in written if read.is_relative_to(name.resolve())), None)
            if over is not None:
                rule = f"output_dir must not be where the run would write {str(over)!r} over {key}={str(path)!r}"
                raise ConfigError(f"{rule}; another output_dir keeps both, got {config.output_dir!r}")


def _require_empty_or_run(config: RunConfig, folder: RunFolder) -> None:
    """What a submission, rows in memory or a run that was killed as it began have left does not count. A run may lie in
    the folder of its own base, where neither writes over a file of the other."""
    if not folder.path.exists() or is_of_run(folder) or _is_its_model(config, folder.path):
        return
    begun = {folder.owner, folder.script, folder.submitted, folder.logs, folder.exported, folder.rows, folder.config}
    is_pipeline = isinstance(config, PipelineConfig)
    if isinstance(config, PipelineConfig):  # whose stages look for themselves
        begun |= {folder.path / stage.name for stage in config.stages}
    require_new(
        folder.path,
        lambda path: path in begun or path.suffix == PARTIAL or (is_pipeline and is_of_run(RunFolder(path))),
    )


def _is_its_model(config: RunConfig, folder: Path) -> bool:
    """Whether the run reads a model from just that folder."""
    is_model = any((folder / name).is_file() for name in (MODEL_FILE, ADAPTER_FILE))
    return is_model and any(path.resolve() == folder.resolve() for _, path in inputs(config))


def require_sweep_place(folder: Path, file: str) -> None:
    """Of the folder in which each run of a sweep has one with its number; `file`: what Hydra writes there.

    Raises:
        ConfigError: something else lies in it, or such a file that Hydra has not written.
    """
    record, own = folder / file, RunFolder(folder)
    if record.is_file() and not record.read_bytes().startswith(b"hydra:"):
        rule = f"output_dir must not hold what no sweep has written and this one would replace, as {str(record)!r}"
        raise ConfigError(f"{rule}; another output_dir keeps it, got {str(folder)!r}")
    begun = {record, own.owner, own.script, own.submitted, own.logs, own.rows}
    if folder.is_dir():
        require_new(folder, lambda path: path in begun or (path.name.isdecimal() and path.is_dir()))


def require_new(folder: Path, is_ours: Callable[[Path], bool]) -> None:
    """Raises:
    ConfigError: something lies in the folder that is not ours, and is not the recipe itself.
    """
    recipe = _recipe.get()
    own = None if recipe is None else recipe.resolve()
    others = sorted(path.name for path in folder.iterdir() if not is_ours(path) and path.resolve() != own)
    if others:
        more = f" and {len(others) - 1} more" if others[1:] else ""
        rule = "output_dir must be a new or an empty folder, or that of a run, for a run writes many files there"
        way = f"output_dir={folder / 'NAME'} is a folder of its own in it"
        raise ConfigError(f"{rule}: it holds {others[0]!r}{more}; {way}, got {str(folder)!r}")


def _require_own(config: RunConfig, folder: RunFolder, written: Sequence[Path]) -> None:
    """What the run would replace was written by a run: a claim, a submission and an export look for themselves."""
    kept = (folder.owner, folder.script, folder.submitted, folder.logs, folder.exported)
    foreign = next((path for path in written if path not in kept and path.exists()), None)
    if foreign is not None and not is_of_run(folder):
        rule = f"output_dir must not hold what no run has written and this one would replace, as {str(foreign)!r}"
        raise ConfigError(f"{rule}; another output_dir keeps it, got {config.output_dir!r}")
