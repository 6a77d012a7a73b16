"""A planned submission becomes folders with frozen configs and jobs of Slurm."""

import shlex
from contextlib import ExitStack
from pathlib import Path

from alignment.config.errors import ConfigError
from alignment.config.run import RunConfig
from alignment.config.tasks import PipelineConfig
from alignment.runs.claim import require_free
from alignment.runs.fingerprint import fingerprint
from alignment.runs.folder import RunFolder
from alignment.runs.lifecycle import belongs_to, is_finished, is_steered, require_goes_on, why_other, write_config
from alignment.slurm import commands
from alignment.slurm.folder import job_of, restore_on_error, write_record
from alignment.slurm.jobs import Planned, frozen
from alignment.tasks.pipeline import put_aside
from alignment.terminal import say


def hand_over(planned: list[Planned], *, whole: RunConfig) -> None:
    """Submit what is not done; where one job is refused, none is left and neither is a file.

    Raises:
        UserError: a folder is in use, or sbatch refuses.
    """
    commands.require_sbatch()
    _require_idle(planned)
    jobs: dict[Planned, str] = {}
    with ExitStack() as undo:
        for job in planned:
            if not _is_to_run(job, jobs, undo):
                say(f"{job.folder}: finished already, nothing to do (another output_dir runs it again)")
                continue
            restore_on_error(job.folders(), undo)
            _write(job)
            jobs[job] = commands.submit(
                RunFolder(job.folder).script, [jobs[other] for other in job.after if other in jobs]
            )
            undo.callback(commands.cancel, [jobs[job]])
            _record(job, jobs[job])
            say(f"submitted job {jobs[job]}: {job.title}")
        if jobs and isinstance(whole, PipelineConfig):
            write_config(RunFolder(whole.output_dir), frozen(whole))
        undo.pop_all()
    if jobs:
        folder = shlex.quote(whole.output_dir)
        say(f"  alignment status {folder}\n  alignment logs {folder} -f\n  scancel {' '.join(jobs.values())}")


def _require_idle(planned: list[Planned]) -> None:
    """No process writes the same folders, and no job of an earlier submission may be about to."""
    for folder in (folder for job in planned for folder in job.folders()):
        require_free(folder)
        earlier = job_of(folder)
        script = RunFolder(folder).script
        if earlier is None and script.exists():
            rule = f"output_dir must not hold what no submission has written, as {str(script)!r}"
            raise ConfigError(f"{rule}; another output_dir keeps it, got {str(folder)!r}")
        state = None if earlier is None else commands.find(earlier)
        if state is not None and not state.is_over():
            rule = f"output_dir holds job {earlier}, which is {state.state} (scancel {earlier} ends it)"
            raise ConfigError(f"{rule}, got {str(folder)!r}")


def _is_to_run(job: Planned, jobs: dict[Planned, str], undo: ExitStack) -> bool:
    """Whether some run of it is not finished; makes room for it.

    A stage after one that runs again will find other inputs than it had, so what it made from the old ones is put
    aside. A folder that is not a stage's must be free, as for `alignment run`.
    """
    if any(other in jobs for other in job.after):
        is_other = any(RunFolder(run.output_dir).started.exists() for run in job.runs)
        why = "a stage that it reads is run again"
    else:
        marks = [(RunFolder(run.output_dir), run, fingerprint(run)) for run in job.runs]
        if all(is_finished(folder, mark) for folder, _, mark in marks):
            return False
        others = [each for each in marks if not belongs_to(each[0], each[2]) and not is_steered(each[1])]
        is_other, why = bool(others), "; ".join(why_other(folder, mark) for folder, _, mark in others)
        if not job.is_stage:
            for folder, run, mark in marks:
                require_goes_on(folder, run, mark)
    if is_other and job.is_stage:
        undo.callback(put_aside(job.folder, why).rename, job.folder)
    return True


def _write(job: Planned) -> None:
    for run in job.runs:
        folder = RunFolder(run.output_dir)
        write_config(folder, run)
        folder.logs.mkdir(exist_ok=True)
    RunFolder(job.folder).script.write_text(job.script)


def _record(job: Planned, identity: str) -> None:
    write_record(job.folder, identity)
    if job.is_array:
        for number, run in enumerate(job.runs):
            write_record(Path(run.output_dir), f"{identity}_{number}")
