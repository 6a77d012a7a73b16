"""Whether a run can be in the folder that it is asked for, before anything else is done."""

from pathlib import Path

from alignment.config.run import RunConfig
from alignment.config.sections import ConfigError, require
from alignment.config.tasks import PipelineConfig
from alignment.runs.folder import RunFolder

RULE = "output_dir must be a folder that can be made and written"


def require_place(config: RunConfig) -> None:
    """Raises:
    ConfigError: there is no such folder and none can be made, something that is no run's stands where a run writes, or
        the folder is one that other runs lie in, which would count as parts of this one.
    """
    rule = "output_dir must name a folder, of which '.' is the one that the command is given in"
    require(bool(config.output_dir.strip()), rule, config.output_dir)
    folder = RunFolder(config.output_dir)
    files = (folder.config, folder.started, folder.finished, folder.history, folder.owner, folder.metrics)
    folders = (folder.checkpoints, folder.best, folder.model)
    try:
        strange = [path for path in files if path.is_dir()] + [path for path in folders if path.is_file()]
        others = [] if folder.started.exists() else sorted(path.parent for path in folder.path.glob("*/started.json"))
    except OSError as error:  # of its name, or of who may look
        raise ConfigError(f"{RULE} ({error.strerror}), got {config.output_dir!r}") from error
    if strange:
        kind = "folder" if strange[0].is_dir() else "file"
        raise ConfigError(f"{RULE}, got {config.output_dir!r}, where {str(strange[0])!r} is a {kind}")
    if others and not isinstance(config, PipelineConfig):
        own = Path(config.output_dir) / "NAME"
        rule = f"output_dir must not be a folder of other runs, as of {str(others[0])!r}; output_dir={own} is in it too"
        raise ConfigError(f"{rule}, got {config.output_dir!r}")
