"""Whether a run can be in the folder that it is asked for, before anything else is done."""

from collections.abc import Sequence
from pathlib import Path

from alignment.config.errors import ConfigError, require
from alignment.config.inputs import function_files
from alignment.config.run import RunConfig
from alignment.config.tasks import PipelineConfig
from alignment.runs.fingerprint import inputs
from alignment.runs.folder import RunFolder
from alignment.runs.lifecycle import is_of_run

RULE = "output_dir must be a folder that can be made and written"


def require_place(config: RunConfig) -> None:
    """Raises:
    ConfigError: there is no such folder and none can be made, something that is no run's stands where a run writes,
        the run would write where it reads, or the folder is one that other runs lie in, which would count as parts of
        this one.
    """
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
    except OSError as error:  # of its name, or of who may look
        raise ConfigError(f"{RULE} ({error.strerror}), got {config.output_dir!r}") from error


def _require_kinds(config: RunConfig, written: Sequence[Path]) -> None:
    path = Path(config.output_dir)
    stands = next(each for each in (path, *path.absolute().parents) if each.exists())
    if not stands.is_dir():
        raise ConfigError(f"{RULE}, got {config.output_dir!r}, where {str(stands)!r} is a file")
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


def _require_own(config: RunConfig, folder: RunFolder, written: Sequence[Path]) -> None:
    """What the run would replace was written by a run: a claim, a submission and an export look for themselves."""
    kept = (folder.owner, folder.script, folder.submitted, folder.logs, folder.exported)
    foreign = next((path for path in written if path not in kept and path.exists()), None)
    if foreign is not None and not is_of_run(folder):
        rule = f"output_dir must not hold what no run has written and this one would replace, as {str(foreign)!r}"
        raise ConfigError(f"{rule}; another output_dir keeps it, got {config.output_dir!r}")
