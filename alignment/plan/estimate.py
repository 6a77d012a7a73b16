"""The plan of a run: what it holds in one process, what each of its phases takes beside that, and the most of it."""

from dataclasses import dataclass, replace

from alignment.config.adapter import settled
from alignment.config.distributed import Precision
from alignment.config.errors import ConfigError
from alignment.config.fp8 import Fp8
from alignment.config.online import PPOConfig
from alignment.config.run import RunConfig, TrainingConfig
from alignment.config.tasks import RejectionConfig, task_name
from alignment.distributed.precision import compute_dtype, precision_of
from alignment.models.counted import Part, Phase, Role
from alignment.models.footprint import config_and_trust
from alignment.models.sequence import require_heads
from alignment.plan.buffers import buckets, casts, gathered, laid_together, left_whole
from alignment.plan.hardware import Hardware, placed_on, require_fp8_there
from alignment.plan.passes import is_one_pass
from alignment.plan.replies import while_drawing, while_gathering
from alignment.plan.roles import Counts, Planned, PlannedRole, planned_roles, widest_rows
from alignment.plan.saving import while_saving
from alignment.tasks.max_tokens import LEAST, MOST_CPU, MOST_GPU, SHARE, roles_of
from alignment.tasks.rows import require_one_pass, whole_step

NAMES = {
    Part.copies: "weights in half precision",
    Part.attention: "attention",
    Part.layers: "layers",
    Part.logits: "logits",
    Part.gradients: "gradients",
}
EXCHANGED = "queries, keys and values sent"
BUCKETS, LAID_TOGETHER = "buckets of gradients", "gradients laid together"
SMALL_WEIGHTS, PAGES = "small weights, whole", "pages of the largest weight"


@dataclass(frozen=True, slots=True)
class PlannedPhase:
    """A time of the run, and what it takes in one process beside what is held."""

    name: str
    parts: dict[str, float]
    """Bytes, by what they are for."""
    held: float
    """Bytes of weights, gradients and optimizers on the device meanwhile."""

    @property
    def total(self) -> float:
        return self.held + sum(self.parts.values())


@dataclass(frozen=True, slots=True)
class Plan:
    config: Planned
    hardware: Hardware
    roles: list[PlannedRole]
    phases: list[PlannedPhase]
    max_tokens: int

    @property
    def highest(self) -> PlannedPhase:
        return max(self.phases, key=lambda phase: phase.total)

    @property
    def total(self) -> float:
        """Bytes on the device of one process, at the most."""
        return self.highest.total

    @property
    def least(self) -> float:
        """Bytes without which there is no step: weights, gradients and optimizer of what is there together."""
        return max(phase.held for phase in self.phases)

    @property
    def fits(self) -> bool:
        """With what is left to kernels' own needs, to fragments, and to what else is at work."""
        return self.total <= SHARE * self.hardware.memory

    @property
    def is_tight(self) -> bool:
        return not self.fits and self.total <= self.hardware.memory


def planned(config: RunConfig) -> Planned:
    """Raises:
    ConfigError: the run is of a task that has no plan; and as `settled`.
    """
    if not isinstance(config, TrainingConfig | RejectionConfig):
        what = "a run that trains a model or draws replies of one, as a stage of a pipeline does by its own recipe"
        way = "alignment plan dpo model.path=MODEL data.train.path=ROWS, say"
        raise ConfigError(f"plan takes {what} ({way}), got the task {task_name(config)}")
    return settled(config)


def on_host(plan: Plan) -> float:
    """Bytes that one process has beside its device while a pass waits for its backward pass, at the most."""
    sharing = plan.config.distributed.sequence_parallel
    tokens = [-(-max(plan.max_tokens, each.counted.row) // sharing) for each in plan.roles]
    passes = (each.counted.during(own)[Part.on_host] for own, each in zip(tokens, plan.roles, strict=True))
    return float(max(passes, default=0.0))


def plan_of(config: Planned, hardware: Hardware, counts: Counts) -> Plan:
    """Raises:
    ConfigError: there is no such model, the rows cannot be dealt out to so many processes, or its heads to those that
        share rows, or the devices do not multiply in 8 bits.
    RuntimeError, and others: a model's code asks for the numbers in a tensor, of which there are none.
    """
    require_fp8_there(config.model.fp8, config.distributed, hardware)
    config = placed_on(config, hardware)
    processes = config.processes()
    if isinstance(config, TrainingConfig):
        config.check_processes(processes)
    hardware = replace(hardware, processes=processes, local=min(hardware.local, processes))
    if config.distributed.sequence_parallel > 1:
        require_heads(config_and_trust(next(roles_of(config)))[0], config.distributed.sequence_parallel)
    roles = planned_roles(config, processes, is_gpu=hardware.is_gpu, counts=counts)
    require_one_pass(config)
    ends = [] if hardware.is_gpu else _saving(config, roles, processes)

    def of_passes(number: int) -> Plan:
        phases = phases_of(config, roles, processes, number, counts) + ends
        return Plan(config, hardware, roles, phases, number)

    number = whole_step(config) if config.batch.max_tokens is None else config.batch.max_tokens
    if number is not None:
        return of_passes(number)
    number = MOST_GPU if hardware.is_gpu else MOST_CPU
    while True:
        plan = of_passes(number)
        if plan.fits or number <= LEAST:
            break
        number //= 2
    return of_passes(max(number, widest_rows(config).longest))


def phases_of(
    config: Planned, roles: list[PlannedRole], processes: int, max_tokens: int, counts: Counts
) -> list[PlannedPhase]:
    """Of passes over so many tokens, or over the longest rows, where these are longer."""
    together = [each for each in roles if not each.is_alone]
    held = sum(each.held.between_steps for each in together)
    moved = sum(each.held.between_steps for each in together if each.is_moved)
    found = []
    for each in roles:
        if not each.counted.passes.any():
            continue
        own = each.held.on_device if each.is_alone else held
        if each.role.is_trained:
            own += each.held.on_device - each.held.between_steps - moved
            own += _waiting(config, together, each)
        stays = _staying(config, [each] if each.is_alone else together, processes)
        found += _passes(config, each, own, processes, max_tokens, stays)
    stays = _staying(config, together[1:], processes) | _buckets(config, together)
    for name, parts in (
        ("gathering the weights that draw", while_gathering(config, roles[0], processes)),
        ("drawing replies", _drawing(config, roles[0], processes, counts)),
    ):
        if parts:
            found.append(PlannedPhase(name, parts | stays, held))
    return found


def _saving(config: Planned, roles: list[PlannedRole], processes: int) -> list[PlannedPhase]:
    parts = while_saving(config, roles[0], processes)
    together = [each for each in roles if not each.is_alone]
    held = sum(each.held.between_steps for each in together)
    stays = _staying(config, together, processes)
    return [PlannedPhase("saving the model", parts | stays, held)] if parts else []


def _waiting(config: Planned, together: list[PlannedRole], learner: PlannedRole) -> float:
    """Bytes of the gradients of the actor while the critic learns: in float16 neither steps before both have theirs."""
    if not isinstance(config, PPOConfig) or precision_of(config.distributed) is not Precision.float16:
        return 0.0
    trained = [each for each in together if each.role.is_trained]
    before = trained[: trained.index(learner)] if learner in trained else []
    return sum(each.held.on_device - each.held.between_steps for each in before)


def _staying(config: Planned, roles: list[PlannedRole], processes: int) -> dict[str, float]:
    """What DeepSpeed has of these roles at all times beside what is held."""
    small = sum(left_whole(each.counted, config.distributed, processes) for each in roles)
    return ({SMALL_WEIGHTS: small} if small else {}) | _buckets(config, roles)


def _buckets(config: Planned, roles: list[PlannedRole]) -> dict[str, float]:
    kept = sum(buckets(config.distributed, each.counted) for each in roles if each.role.is_trained)
    return {BUCKETS: kept} if kept and config.distributed.zero == 3 else {}


def _passes(
    config: Planned, each: PlannedRole, held: float, processes: int, max_tokens: int, stays: dict[str, float]
) -> list[PlannedPhase]:
    """A role's pass when it has most, beside what is `held` with its gradients and `stays`; its backward pass, where
    ZeRO shares gradients out as they come; and the end of a step's last pass, where that may have more."""
    key, is_trained, distributed = each.role.key, each.role.is_trained, config.distributed
    if not is_trained:
        return [PlannedPhase(f"reading, {key}", _parts(config, each, processes, max_tokens) | stays, held)]
    is_only = is_one_pass(config, each, processes, max_tokens)
    before = held - each.held.on_device + each.held.between_steps if is_only else held
    beside = {LAID_TOGETHER: size} if (size := laid_together(each.held, distributed, processes)) else {}
    is_cut = bool(beside) and distributed.zero == 2
    parts = _parts(config, each, processes, max_tokens, is_only=is_only and not is_cut) | stays
    found = [PlannedPhase(f"learning, {key}", parts, before)]
    if is_cut:
        parts = _parts(config, each, processes, max_tokens, begins=Phase.backward) | stays | beside
        found.append(PlannedPhase(f"the backward pass, {key}", parts, before))
    if is_only or beside:
        ends = {name: parts[name] for name in (BUCKETS, SMALL_WEIGHTS) if name in parts}
        found.append(PlannedPhase(f"the end of a step's last pass, {key}", ends | beside, held))
    if each.held.page:
        found.append(PlannedPhase(f"an update, {key}", {PAGES: each.held.page, **stays}, held))
    return found


def _parts(
    config: Planned,
    each: PlannedRole,
    processes: int,
    max_tokens: int,
    *,
    is_only: bool = False,
    begins: Phase = Phase.forward,
) -> dict[str, float]:
    """Bytes, by what they are for, of a role's pass in the phase that has most, of those from `begins` on.

    Args:
        is_only: whether it is all of a step, and the gradients that it has made by then are to be in it.
    """
    distributed, sharing = config.distributed, config.distributed.sequence_parallel
    own = -(-max(max_tokens, each.counted.row) // sharing)  # tokens, of those of a pass
    sizes = each.counted.during(own, is_only=is_only, begins=begins)
    sizes[Part.copies] = casts(float(sizes[Part.copies]), each.counted.layer, distributed)
    parts = {NAMES[part]: float(sizes[part]) for part in NAMES}
    parts[EXCHANGED] = own * each.counted.exchanged(sharing, compute_dtype(distributed).itemsize)
    parts[BUCKETS] = buckets(distributed, each.counted) * each.role.is_trained
    parts["gathered weights"] = gathered(each.counted, distributed, processes)
    return {name: size for name, size in parts.items() if size > 0}


def _drawing(config: Planned, actor: PlannedRole, processes: int, counts: Counts) -> dict[str, float]:
    if not config.replies:
        return {}
    role = Role(actor.role.key, replace(actor.role.settings, gradient_checkpointing=False, fp8=Fp8.none))
    reading = counts.of(role, widest_rows(config), compute_dtype(config.distributed), config.batch.layout)
    return while_drawing(config, actor, reading, processes)
