"""What a submission leaves in a run's folder, beside what the run itself writes there.

`job.sbatch` is the script, `submitted.json` names the job, `logs/` holds what its processes print. An array has one
script for all its runs, in the folder above theirs.
"""

import json
from contextlib import ExitStack
from pathlib import Path

from alignment.config.errors import UserError
from alignment.runs.folder import RunFolder


def write_record(folder: Path, job: str) -> None:
    """`job`: as Slurm writes it, 12, or 12_0 for a task of an array."""
    RunFolder(folder).submitted.write_text(json.dumps({"job": job}) + "\n")


def job_of(folder: Path) -> str | None:
    """The job that was last submitted for this folder, if any was.

    Raises:
        UserError: the record of it is damaged.
    """
    path = RunFolder(folder).submitted
    try:
        return str(json.loads(path.read_bytes())["job"]) if path.exists() else None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}); without it, no job counts as submitted") from error


def restore_on_error(folders: list[Path], undo: ExitStack) -> None:
    """What a submission is about to write goes, and what was there comes back, when `undo` is run."""
    for folder in folders:
        for path in reversed([RunFolder(folder).logs, folder, *folder.parents]):
            if not path.exists():
                undo.callback(_remove_if_empty, path)
    written = [path for run in map(RunFolder, folders) for path in (run.config, run.script, run.submitted)]
    for path in written:
        undo.callback(_put_back, path, path.read_bytes() if path.exists() else None)


def _put_back(path: Path, content: bytes | None) -> None:
    if content is None:
        path.unlink(missing_ok=True)
    else:
        path.write_bytes(content)


def _remove_if_empty(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
