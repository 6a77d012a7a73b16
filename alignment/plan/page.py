"""A plan in lines."""

from collections.abc import Iterator

from alignment.config.cluster import Scheduler
from alignment.config.distributed import Offload
from alignment.config.errors import ConfigError
from alignment.config.run import TrainingConfig
from alignment.config.supervised import DPOConfig, KTOConfig
from alignment.plan.changes import words
from alignment.plan.estimate import Plan, PlannedPhase
from alignment.plan.hardware import GB, Hardware
from alignment.plan.host import host_of
from alignment.plan.rate import rate_line
from alignment.plan.roles import Planned, PlannedRole, widest_rows
from alignment.plan.search import Way
from alignment.plan.work import rate_here, work_of

LEAST = 1e-4  # of a phase, of what is told
COLUMNS = ("weights", "gradients", "masters", "moments", "in CPU memory")


def lines_of(recipe: str, plan: Plan, mfu: float) -> Iterator[str]:
    yield heading(recipe, plan)
    yield from _longer_than_a_pass(plan)
    yield ""
    yield from _held(plan)
    if isinstance(plan.config, DPOConfig | KTOConfig) and plan.config.reference.path is None:
        yield "  reference: the policy before its first step, whose log-probs are kept as a table"
    yield ""
    yield from _phases(plan)
    yield ""
    yield verdict(plan)
    yield from _host(plan)
    yield from _work(plan, mfu)
    yield from rate_line(plan)


def ways_of(ways: list[Way], config: Planned) -> Iterator[str]:
    """What can be typed behind the recipe, each with its costs. config: as the recipe has it."""
    if not ways:
        yield "no setting makes it fit on these"
        return
    yield "with these it fits, the cheapest first:"
    for way in ways:
        yield f"  {' '.join([*words(way.changes), *processes_of(way.plan.hardware, config)])}"
        yield f"    {_taken(way)}; costs: {'; '.join(change.cost for change in way.changes)}"


def processes_of(hardware: Hardware, config: Planned) -> Iterator[str]:
    """Overrides that have a run take so many devices, where the config does not say so already: here, or on several
    machines by Slurm."""
    number, is_here = hardware.processes, config.cluster.scheduler is Scheduler.local
    if number == config.processes():
        return
    if is_here and number <= hardware.local:
        yield f"launch.processes={number}"
        return
    on_each = max(each for each in range(1, hardware.local + 1) if number % each == 0)
    yield from (["cluster=slurm"] if is_here else [])
    yield from (f"cluster.nodes={number // on_each}", f"cluster.gpus_per_node={on_each}")


def fewest_of(way: Way | None, name: str, config: Planned) -> str:
    """On the fewest devices of that name. config: as the recipe has it."""
    if way is None:
        return f"it fits on no number of them ({name})"
    more = " ".join([*words(way.changes), *processes_of(way.plan.hardware, config)])
    how = f"with {more}" if more else "as it is"
    return f"the fewest that it fits on, {how}: {_taken(way)}"


def _taken(way: Way) -> str:
    asked = way.plan.config.batch.max_tokens
    chosen = f", batch.max_tokens={way.plan.max_tokens}" if asked is None else ""
    host = host_of(way.plan)
    elsewhere = host.offloaded + host.activations
    beside = f" and {gb(elsewhere)} GB of CPU memory of a machine" if elsewhere else ""
    return f"{gb(way.plan.total)} of {gb(way.plan.hardware.memory)} GB on {_number(way.plan.hardware)}{beside}{chosen}"


def _number(hardware: Hardware) -> str:
    return f"1 {hardware.name}" if hardware.processes == 1 else f"each of {hardware.processes} x {hardware.name}"


def another_number_of(config: Planned, taken: Hardware) -> Iterator[str]:
    """Where the config asks for several processes, and devices are named that are not as many. config: as the recipe
    has it."""
    if not taken.is_here and 1 != config.processes() != taken.processes:
        own = f"launch.processes={config.launch.processes}"
        if config.cluster.scheduler is not Scheduler.local:
            own = f"cluster.nodes={config.cluster.nodes} of {config.cluster.num_tasks_per_node()} GPUs"
        yield f"planned for the {taken.processes} of --for, not for {own}"


def unused_of(plan: Plan, asked: Hardware) -> Iterator[str]:
    """Of devices that are named and not taken by the run as it is."""
    if plan.hardware.processes >= asked.processes:
        return
    taken = f"of {asked.processes} x {asked.name} the run as it is takes {plan.hardware.processes}"
    number = next(each for each in range(asked.local, 0, -1) if _can_be(each, plan.config))
    if number > plan.hardware.processes:
        most = f"as many as batch.size={plan.config.batch.size} can"
        how_many = "all of a machine's" if number == asked.local else most
        yield f"{taken}: distributed.zero=2 launch.processes={number} takes {how_many}"
    else:
        yield f"{taken}: batch.size={plan.config.batch.size} can be dealt to no more of them"


def _can_be(processes: int, config: Planned) -> bool:
    """Whether what a step learns from can be dealt out to them."""
    try:
        if isinstance(config, TrainingConfig):
            config.check_processes(processes)
    except ConfigError:
        return processes == 1
    else:
        return True


def heading(recipe: str, plan: Plan) -> str:
    hardware, config = plan.hardware, plan.config
    where = f"1 {hardware.name}" if hardware.processes == 1 else f"{hardware.processes} x {hardware.name}"
    zero = "without ZeRO" if config.distributed.zero is None else f"distributed.zero={config.distributed.zero}"
    number = f"batch.max_tokens={plan.max_tokens}" + (" (as chosen)" if config.batch.max_tokens is None else "")
    return f"{recipe} on {where}: {zero}, {config.distributed.precision.value}, {number}"


def _longer_than_a_pass(plan: Plan) -> Iterator[str]:
    """What goes into one pass together, where that is more than it is to have."""
    row, count = max(each.counted.row for each in plan.roles), widest_rows(plan.config).count
    if row > plan.max_tokens:
        is_drawn = plan.config.replies or not isinstance(plan.config, TrainingConfig)
        what = {1: "a row", 2: "a pair"}.get(count, "") if not is_drawn else f"a prompt and its replies ({count})"
        keys = "num_samples, generation.max_new_tokens, data.max_prompt_length" if is_drawn else "data.max_length"
        yield f"a pass has {row:,} tokens all the same, which go into it together: {what}; fewer by a lower {keys}"


def verdict(plan: Plan) -> str:
    what = f"{gb(plan.total)} of {gb(plan.hardware.memory)} GB at the most, {plan.highest.name}"
    left = plan.hardware.memory - plan.total
    if plan.fits:
        return f"fits: {what}; {gb(left)} GB to spare"
    if plan.is_tight:
        return f"tight: {what}; {gb(left)} GB to spare, less than kernels and fragments may take"
    return f"does not fit: {what}; {gb(-left)} GB too much"


def _held(plan: Plan) -> Iterator[str]:
    each_of = "each GPU" if plan.hardware.is_gpu else "each process"
    yield f"{f'GB on {each_of}':<34}" + "".join(f"{name:>14}" for name in COLUMNS)
    for each in plan.roles:
        held, here = each.held, Offload.none
        numbers = [
            held.averages + held.scales + (held.weights if held.weights_in is here else 0.0),
            held.gradients_at(here),
            held.masters if held.optimizer_in is here else 0.0,
            held.moments if held.optimizer_in is here else 0.0,
            held.in_cpu_memory,
        ]
        yield f"{_name(each):<34}" + "".join(f"{gb(number) if number else '-':>14}" for number in numbers)


def _name(each: PlannedRole) -> str:
    number = each.counted.num_trained or each.counted.num_frozen
    return f"  {each.role.key}, {count(number)} {'trained' if each.role.is_trained else 'frozen'}"


def _phases(plan: Plan) -> Iterator[str]:
    for phase in plan.phases:
        yield f"  {phase.name}: {sum_of(phase)} = {gb(phase.total)}"


def sum_of(phase: PlannedPhase) -> str:
    """What it is planned to take, in GB, by what it is for, without what is next to nothing of it."""
    parts = {name: size for name, size in phase.parts.items() if size > LEAST * phase.total}
    return " + ".join(f"{gb(size)} {name}" for name, size in [("held", phase.held), *parts.items()])


def _host(plan: Plan) -> Iterator[str]:
    host = host_of(plan)
    memory = [
        f"{gb(size)} GB {what}"
        for size, what in (
            (host.offloaded, "offloaded"),
            (host.activations, "of what layers keep for their backward pass"),
            (host.loading, f"while {_readers(plan.hardware.local)}"),
            (host.saving, "in the main process while it saves its model"),
            (host.copied, "of a checkpoint while it is written (checkpoint.background)"),
        )
        if size
    ]
    if memory:
        yield f"CPU memory of a machine: {', '.join(memory)}"
    if host.checkpoint:
        keep = host.kept - 1
        yield (
            f"disk: {gb(host.checkpoint)} GB a checkpoint, {gb(host.kept * host.checkpoint)} GB while one is written "
            f"beside the {keep} that are kept (checkpoint.keep); {gb(host.model)} GB a model"
        )


def _readers(processes: int) -> str:
    return "1 process reads its models" if processes == 1 else f"{processes} processes read their models"


def _seconds(seconds: float) -> str:
    """Three digits, or whole seconds where these would be a power of ten."""
    return f"{seconds:.3g} s" if seconds < 999.5 else f"{seconds:.0f} s"


def _work(plan: Plan, mfu: float) -> Iterator[str]:
    work = work_of(plan)
    if work is None:
        return
    line = f"a step of the longest rows: {work.tokens:,} tokens, {work.flops:.2g} FLOPs"
    line += f", {work.flops_fp8 / work.flops:.0%} of them in 8 bits" if work.flops_fp8 else ""
    seconds, rate = work.seconds(plan, mfu), rate_here(plan)
    line += "" if seconds is None else f", {_seconds(seconds)} at {mfu:.0%} of the peak"
    if seconds is None and rate is None:
        line += ", no seconds: of this card no peak is known (--for 8xA100-80GB names one)"
    if rate is not None:
        line += f", {_seconds(work.flops / rate)} at the {rate:.2g} FLOPs a second that products were timed at here"
        line += " in bfloat16" if work.flops_fp8 else ""
    yield line


def gb(size: float) -> str:
    number = size / GB
    if abs(number) < 10:
        return f"{number:.2g}"
    return f"{number:.1f}" if abs(number) < 1000 else f"{number:,.0f}"


def count(number: int) -> str:
    for unit, name in ((10**9, "billion"), (10**6, "million")):
        if number >= unit:
            return f"{number / unit:.3g} {name}"
    return str(number)
