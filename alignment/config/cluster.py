"""Where and how `alignment submit` runs a job.  Nothing here changes what the run computes."""

import re
from dataclasses import MISSING, dataclass, field, fields
from enum import Enum
from typing import Any

from alignment.config.base import Config
from alignment.config.errors import require

TIME = re.compile(r"\d+-\d+(:\d+){0,2}|\d+(:\d+){1,2}")
MEMORY = re.compile(r"\d+[KMGT]?")
NAME = re.compile(r"[A-Za-z_]\w*")
RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # set by the script, for each process
KEYED = (  # sbatch's options that have a key here
    *("job-name", "nodes", "ntasks-per-node", "gpus-per-node", "cpus-per-task", "mem", "partition", "account", "qos"),
    *("time", "gres", "constraint", "signal", "requeue", "no-requeue"),
)
SET = ("array", "chdir", "output", "error", "open-mode", "ntasks", "wrap", "parsable", "wait")  # the script's own


class Scheduler(str, Enum):
    local = "local"
    """`alignment run` starts it here."""
    slurm = "slurm"
    """`alignment submit` writes a script and hands it to sbatch."""


@dataclass(slots=True)
class ClusterConfig(Config):
    scheduler: Scheduler = Scheduler.local
    """Who starts the run."""
    nodes: int = 1
    """Machines that the job gets."""
    tasks_per_node: int | None = None
    """Processes on each node. Null: one for each of `gpus_per_node`; where there is none, one."""
    gpus_per_node: int = 0
    """GPUs that it gets on each; one process runs on each of them. Those of launch.vllm come on top."""
    cpus_per_task: int | None = None
    """CPU cores of each process. Null: the cluster's default."""
    mem: str | None = None
    """Memory of each node, as 64G; a bare number is MiB."""
    partition: str | None = None
    """The queue, sbatch's --partition. Null: the cluster's default."""
    account: str | None = None
    """Who is charged, sbatch's --account."""
    qos: str | None = None
    """sbatch's --qos."""
    time: str | None = None
    """The time limit, D-HH:MM:SS, HH:MM:SS or MM:SS; in YAML in quotes, for there 12:00:00 is a number."""
    gres: str | None = None
    """Further resources, sbatch's --gres."""
    constraint: str | None = None
    """Features that the nodes must have, sbatch's --constraint."""
    container: str | None = None
    """An image, for srun --container-image (pyxis); the image brings bash and `alignment`."""
    container_mounts: list[str] = field(default_factory=list)
    """HOST:INSIDE of srun --container-mounts, beside the folder of submission and output_dir, mounted as they are."""
    prefix: str | None = None
    """Put before the command of each process, such as `apptainer exec --nv image.sif`."""
    command: str | None = None
    """What stands for `alignment`. Null: the one that submits; with `container` or `prefix`, the one in PATH there."""
    modules: list[str] = field(default_factory=list)
    """For `module load`."""
    environment: dict[str, str] = field(default_factory=dict)
    """Variables, taken as they are written."""
    setup: list[str] = field(default_factory=list)
    """Lines of shell before the run, on the first node."""
    extra: list[str] = field(default_factory=list)
    """Further options of sbatch: [--exclusive, '--nodelist=a[1-4]']."""
    signal_before_end: int = 120
    """Seconds before the time limit at which every process gets SIGUSR1; 0: never."""
    requeue: bool = True
    """Whether Slurm may start the job again after a preemption or a node's failure."""
    job_name: str | None = None
    """Null: the recipe's name, in a pipeline with the stage's."""

    def __post_init__(self) -> None:
        if self.scheduler is Scheduler.local:
            self._require_defaults()
        for name in ("nodes", "tasks_per_node", "cpus_per_task"):
            value = getattr(self, name)
            require(value is None or value > 0, f"cluster.{name} must be > 0", value)
        require(self.gpus_per_node >= 0, "cluster.gpus_per_node must be >= 0", self.gpus_per_node)
        rule = "cluster.time must be D-HH:MM:SS, HH:MM:SS or MM:SS (in YAML in quotes)"
        require(self.time is None or bool(TIME.fullmatch(self.time)), rule, self.time)
        rule = "cluster.mem must be a number with K, M, G or T behind it"
        require(self.mem is None or bool(MEMORY.fullmatch(self.mem)), rule, self.mem)
        rule = "cluster.signal_before_end must be in [0, 65535]"
        require(0 <= self.signal_before_end <= 65535, rule, self.signal_before_end)
        both = self.container is not None and self.prefix is not None
        require(not both, "one of cluster.container and cluster.prefix may be set", (self.container, self.prefix))
        rule = "cluster.container_mounts needs cluster.container"
        require(self.container is not None or not self.container_mounts, rule, self.container_mounts)
        self._require_words()

    def _require_defaults(self) -> None:
        for each in fields(self):
            value, default = getattr(self, each.name), _default(each)
            require(value == default, f"cluster.{each.name} needs cluster=slurm", value)

    def _require_words(self) -> None:
        """What goes into the script stays one word or one line there."""
        for name in ("partition", "account", "qos", "gres", "constraint", "container", "prefix", "command", "job_name"):
            value = getattr(self, name)
            rule = f"cluster.{name} must be one line without double quotes"
            require(value is None or (bool(value.strip()) and not set(value) & set('\n"')), rule, value)
        for name in self.environment:
            require(bool(NAME.fullmatch(name)), "cluster.environment must have the names of variables", name)
            require(name not in RANKS, f"cluster.environment must not set {', '.join(RANKS)}: the script does", name)
        for option in self.extra:
            rule = "cluster.extra must hold options as --name or --name=value, on one line without double quotes"
            require(option.startswith("--") and not set(option) & set('\n"'), rule, option)
            name = option.removeprefix("--").partition("=")[0]
            require(name not in KEYED, "cluster.extra must not hold what has a key of its own", option)
            require(name not in SET, "cluster.extra must not hold what the script sets", option)

    def num_tasks_per_node(self) -> int:
        return self.tasks_per_node or self.gpus_per_node or 1

    def num_tasks(self) -> int:
        """Processes of the whole job: WORLD_SIZE."""
        return self.nodes * self.num_tasks_per_node()


def require_scheduler(cluster: ClusterConfig, scheduler: Scheduler) -> None:
    """Raises:
    ConfigError: the config is for the other verb, `run` or `submit`.
    """
    rule = {
        Scheduler.local: "cluster must be local for `alignment run` (`alignment submit` queues it)",
        Scheduler.slurm: "cluster must be slurm for `alignment submit`: add cluster=slurm",
    }[scheduler]
    require(cluster.scheduler is scheduler, rule, cluster.scheduler.value)


def _default(each: Any) -> Any:
    return each.default if each.default_factory is MISSING else each.default_factory()
