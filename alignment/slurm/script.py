"""The script that sbatch gets: readable, complete, and the same text for the same config.

It can be handed to sbatch again by hand: the run goes on from its newest checkpoint.
"""

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from alignment.config.cluster import ClusterConfig
from alignment.config.errors import ConfigError
from alignment.runs.folder import RunFolder

FIRST_PORT, PORTS = 20000, 10000  # MASTER_PORT lies below what Linux hands out by itself (32768 and above)

# srun's names for a process become torchrun's, which is what the program reads.
PROCESS = """\
  export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS
  exec "$@"\
"""


@dataclass(frozen=True, slots=True)
class Job:
    """One script of sbatch."""

    title: str
    """What it runs, for a reader."""
    name: str
    workdir: Path
    """Where it was submitted; the config's own paths are relative to it. Absolute."""
    folder: Path
    """The run's folder, or that of an array, whose runs lie in its subfolders 0, 1, ... Absolute."""
    program: tuple[str, ...]
    """The words of the `alignment` that submits."""
    gpus_apart: int = 0
    """GPUs of its vLLM server, beside those of the processes."""
    num_array: int | None = None
    """The number of runs in the array; None: a single run."""


def script(job: Job, cluster: ClusterConfig) -> str:
    """Raises:
    ConfigError: a path cannot be written into an #SBATCH line.
    """
    again = "to go on by hand: sbatch " + shlex.quote(str(RunFolder(job.folder).script))
    options = [f"#SBATCH {_quoted(option)}" for option in _options(job, cluster)]
    parts = [
        ["#!/bin/bash", f"# {job.title}; {again}", *options],
        _preparation(cluster),
        [
            "# A signal to this shell must not end it before the processes have saved.",
            "trap : TERM USR1",
            'MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)',
            f"MASTER_PORT=$(({FIRST_PORT} + SLURM_JOB_ID % {PORTS}))",
            "export MASTER_ADDR MASTER_PORT PYTHONUNBUFFERED=1",
        ],
        [
            f"{_srun(job, cluster)} bash -c '",
            f"{PROCESS}' alignment \\",
            f"  {_command(job, cluster)}",
        ],
    ]
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


def _options(job: Job, cluster: ClusterConfig) -> Iterator[str]:
    """The options of sbatch, as `--name=value`."""
    folder = str(job.folder).replace("%", "%%")
    yield f"--job-name={cluster.job_name or job.name}"
    yield f"--chdir={job.workdir}"
    if job.num_array is None:
        yield f"--output={RunFolder(folder).logs}/%j.log"
    else:
        yield f"--array=0-{job.num_array - 1}"
        yield f"--output={RunFolder(Path(folder, '%a')).logs}/%A_%a.log"
    yield "--open-mode=append"
    yield f"--nodes={cluster.nodes}"
    yield f"--ntasks-per-node={cluster.num_tasks_per_node()}"
    if cluster.gpus_per_node:
        yield f"--gpus-per-node={cluster.gpus_per_node + job.gpus_apart}"
    wanted = {
        "cpus-per-task": cluster.cpus_per_task,
        "mem": cluster.mem,
        "time": cluster.time,
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "gres": cluster.gres,
        "constraint": cluster.constraint,
    }
    yield from (f"--{name}={value}" for name, value in wanted.items() if value is not None)
    yield "--requeue" if cluster.requeue else "--no-requeue"
    if cluster.signal_before_end:
        yield f"--signal=USR1@{cluster.signal_before_end}"
    yield from cluster.extra


def _quoted(option: str) -> str:
    """An option as one word of an #SBATCH line."""
    if set(option) & set('"\\\n'):
        raise ConfigError(f"a folder must have a name without double quote, backslash and line break, got {option!r}")
    return f'"{option}"' if set(option) & set(" \t'#") else option


def _preparation(cluster: ClusterConfig) -> list[str]:
    lines = ["set -eo pipefail"]
    if cluster.modules:
        lines.append(f"module load {shlex.join(cluster.modules)}")
    lines += [f"export {name}={shlex.quote(value)}" for name, value in cluster.environment.items()]
    return lines + cluster.setup


def _srun(job: Job, cluster: ClusterConfig) -> str:
    words = ["srun", "--kill-on-bad-exit=1", "--export=ALL"]
    if cluster.cpus_per_task is not None:
        words.append(f"--cpus-per-task={cluster.cpus_per_task}")  # since Slurm 22.05 srun does not take it from sbatch
    if cluster.num_tasks() > 1:
        words.append("--label")
    if cluster.container is not None:
        mounts = [*(f"{path}:{path}" for path in dict.fromkeys((job.workdir, job.folder))), *cluster.container_mounts]
        words.append(f"--container-image={cluster.container}")
        words.append(f"--container-mounts={','.join(mounts)}")
        words.append(f"--container-workdir={job.workdir}")
    return shlex.join(words)


def _command(job: Job, cluster: ClusterConfig) -> str:
    elsewhere = cluster.container is not None or cluster.prefix is not None
    there = "alignment" if elsewhere else shlex.join(job.program)
    folder = shlex.quote(str(job.folder))
    number, name = "" if job.num_array is None else '/"$SLURM_ARRAY_TASK_ID"', RunFolder(job.folder).config.name
    config = f"{folder}{number}/{name}"
    return " ".join([*([cluster.prefix] if cluster.prefix else []), cluster.command or there, "run", config])
