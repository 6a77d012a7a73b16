"""What a submission will write and hand to sbatch: one job, an array for a sweep, or a job for each stage."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from alignment.config.cluster import ClusterConfig, Scheduler, require_scheduler
from alignment.config.errors import ConfigError, require
from alignment.config.inputs import input_paths
from alignment.config.packages import generation_of
from alignment.config.run import RunConfig
from alignment.config.tasks import PipelineConfig, StageConfig
from alignment.slurm.script import Job, script


@dataclass(slots=True, eq=False)
class Planned:
    """One call of sbatch."""

    title: str
    folder: Path
    script: str
    runs: list[RunConfig]
    """Whose configs are frozen: the job's, or each task's of an array."""
    is_array: bool = False
    is_stage: bool = False
    after: list["Planned"] = field(default_factory=list)
    """What must end well before it starts."""

    def folders(self) -> list[Path]:
        """Everything that it writes to."""
        return list(dict.fromkeys([self.folder, *(Path(run.output_dir) for run in self.runs)]))


def plan_run(recipe: str, config: RunConfig) -> list[Planned]:
    require_scheduler(config.cluster, Scheduler.slurm)
    return [_planned(recipe, recipe, Path(config.output_dir), config.cluster, [config])]


def plan_sweep(recipe: str, configs: list[RunConfig]) -> list[Planned]:
    """Raises:
    ConfigError: the jobs cannot be one array.
    """
    require(bool(configs), "submit sweeps with Hydra's basic sweeper; with another one use its launcher", None)
    first = configs[0]
    for config in configs:
        require_scheduler(config.cluster, Scheduler.slurm)
        require(config.cluster == first.cluster, "cluster must be the same in all jobs of a sweep", config.cluster)
        rule = "launch.vllm and generation.vllm.sleep must be the same in all jobs of a sweep, of as many GPUs each"
        require(_gpus_apart(config) == _gpus_apart(first), rule, config.launch.vllm)
        rule = "output_dir must be the same in all jobs of a sweep, which have subfolders"
        require(config.output_dir == first.output_dir, rule, config.output_dir)
        if isinstance(config, PipelineConfig):
            raise ConfigError("submit takes a sweep or a pipeline, got a sweep of pipelines")
    runs = [replace(config, output_dir=f"{config.output_dir}/{number}") for number, config in enumerate(configs)]
    return [_planned(recipe, f"{recipe}, {len(runs)} runs", Path(first.output_dir), first.cluster, runs, is_array=True)]


def plan_pipeline(recipe: str, stages: list[tuple[StageConfig, RunConfig]]) -> list[Planned]:
    """A job for each stage, after those whose folders it names.

    Stages that do not name each other may run at the same time.
    """
    planned: dict[str, Planned] = {}
    for stage, config in stages:
        require_scheduler(config.cluster, Scheduler.slurm)
        rule = f"stage {stage.name}: cluster.extra must not set the dependencies of a pipeline's stages"
        extra = config.cluster.extra
        require(not any(option.startswith("--dependency") for option in extra), rule, extra)
        title = f"{recipe}, stage {stage.name}"
        job = _planned(f"{recipe}-{stage.name}", title, Path(config.output_dir), config.cluster, [config])
        job.is_stage = True
        job.after = [other for name, other in planned.items() if _uses(stage, config, name, other)]
        planned[stage.name] = job
    return list(planned.values())


def _uses(stage: StageConfig, config: RunConfig, name: str, other: Planned) -> bool:
    """Whether a stage refers to another one by `@name`, or reads in its folder."""
    named = any(word == f"@{name}" or word.startswith(f"@{name}/") for word in _words(stage.set))
    return named or any(Path(path).is_relative_to(other.folder) for _, path in input_paths(config))


def _words(value: object) -> Iterator[str]:
    """Every text in nested settings."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _words(inner)


def _planned(
    name: str, title: str, folder: Path, cluster: ClusterConfig, runs: list[RunConfig], *, is_array: bool = False
) -> Planned:
    num_array = len(runs) if is_array else None
    job = Job(title, name, Path.cwd(), folder.absolute(), program(), _gpus_apart(runs[0]), num_array)
    return Planned(title, folder, script(job, cluster), [frozen(run) for run in runs], is_array)


def _gpus_apart(config: RunConfig) -> int:
    """Those of its vLLM server, unless it sleeps on the processes' own."""
    generation = generation_of(config)
    return 0 if generation is None or generation.vllm.sleep else config.launch.vllm


def frozen(config: RunConfig) -> RunConfig:
    """As the job finds it: `alignment run` starts it wherever it is, and the script says how it got there."""
    return replace(config, cluster=ClusterConfig())


def program() -> tuple[str, ...]:
    """The command of this environment, as a node calls it."""
    command = Path(sys.executable).with_name("alignment")
    return (str(command),) if command.is_file() else (sys.executable, "-m", "alignment")
