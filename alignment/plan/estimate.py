"""The plan of a run: what it holds in one process, what each of its phases takes beside that, and the most of it."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from alignment.config.adapter import settled
from alignment.config.distributed import Precision
from alignment.config.errors import ConfigError
from alignment.config.fp8 import Fp8
from alignment.config.online import PPOConfig
from alignment.config.run import RunConfig, TrainingConfig
from alignment.config.tasks import RejectionConfig, task_name
from alignment.distributed.precision import compute_dtype, precision_of
from alignment.models.counted import Counted, Part, Role
from alignment.models.footprint import config_and_trust
from alignment.models.sequence import require_heads
from alignment.plan.buffers import buckets, left_whole
from alignment.plan.hardware import Hardware, placed_on, require_fp8_there
from alignment.plan.passes import PassTokens, pass_tokens
from alignment.plan.phases import BUCKETS, SMALL_WEIGHTS, PlannedPhase, learning, reading
from alignment.plan.replies import while_drawing, while_gathering
from alignment.plan.roles import (
    Counts,
    Planned,
    PlannedRole,
    planned_roles,
    rows_of_role,
    widest_rows,
    without_gradients,
)
from alignment.plan.saving import copied, while_saving
from alignment.tasks.max_tokens import LEAST, MOST_CPU, MOST_GPU, SHARE, roles_of
from alignment.tasks.rows import require_one_pass, rows_of, whole_step

WRITTEN = "a checkpoint that is being written"
TokensOf = Callable[[PlannedRole, int], PassTokens]


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
    config, sharing = plan.config, plan.config.distributed.sequence_parallel
    passes = [(each, pass_tokens(config, each, plan.hardware.processes, plan.max_tokens)) for each in plan.roles]
    kinds = [(each.counted, tokens.learned) for each, tokens in passes]
    kinds += [(each.texts, tokens.texts) for each, tokens in passes if each.texts is not None]
    learned = (counted.during(-(-number // sharing)) for counted, number in kinds if number)
    return float(max((sizes[Part.on_host] for sizes in learned), default=0.0))


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
    beside = 0.0 if hardware.is_gpu else copied(config, roles, processes, "cpu")

    def of_passes(number: int, tokens_of: TokensOf) -> Plan:
        phases = phases_of(config, roles, processes, [tokens_of(each, number) for each in roles], counts)
        written = {WRITTEN: beside} if beside else {}
        phases = [replace(phase, parts=phase.parts | written) for phase in phases]
        return Plan(config, hardware, roles, phases + ends, number)

    def of_step(each: PlannedRole, number: int) -> PassTokens:
        return pass_tokens(config, each, processes, number)

    def full(each: PlannedRole, number: int) -> PassTokens:
        """As the run looks at them, which chooses a number by passes of so many tokens."""
        tokens, most = of_step(each, number), max(number, each.counted.row)
        texts = 0 if each.texts is None else max(number, each.texts.row)
        return replace(tokens, learned=most, read=0, texts=texts) if tokens.learned else replace(tokens, read=most)

    number = whole_step(config) if config.batch.max_tokens is None else config.batch.max_tokens
    if number is None:
        number = MOST_GPU if hardware.is_gpu else MOST_CPU
        while number > LEAST and not of_passes(number, full).fits:
            number //= 2
        number = max(number, widest_rows(config).longest)
    return of_passes(number, of_step)


def phases_of(
    config: Planned, roles: list[PlannedRole], processes: int, tokens: list[PassTokens], counts: Counts
) -> list[PlannedPhase]:
    """Of passes over so many tokens, by role."""
    together = [each for each in roles if not each.is_alone]
    held = sum(each.held.between_steps for each in together)
    moved = sum(each.held.between_steps for each in together if each.is_moved)
    found = []
    for role, own in zip(roles, tokens, strict=True):
        each = role if role.on is None else replace(role, counted=role.on)
        if not each.counted.passes.any():
            continue
        stays = _staying(config, [each] if each.is_alone else together, processes)
        if own.learned:
            kept = each.held.on_device - each.held.between_steps - moved + _waiting(config, together, each)
            found += learning(config, each, held + kept, processes, own, stays)
            if each.texts is not None:
                texts = replace(each, role=replace(each.role, key=f"{each.role.key}, of texts"), counted=each.texts)
                found += learning(config, texts, held + kept, processes, replace(own, learned=own.texts), stays)
        if own.read > own.learned:
            beside = each.held.on_device if each.is_alone else held
            counted = _read(config, each, counts) if own.learned else each.counted
            found.append(reading(config, each, counted, beside, processes, own, stays))
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


def _drawing(config: Planned, actor: PlannedRole, processes: int, counts: Counts) -> dict[str, float]:
    if not config.replies:
        return {}
    role = Role(actor.role.key, replace(without_gradients(actor.role).settings, fp8=Fp8.none))
    reading = counts.of(role, rows_of(config)[0], compute_dtype(config.distributed), config.batch.layout)
    return while_drawing(config, actor, reading, processes)


def _read(config: Planned, each: PlannedRole, counts: Counts) -> Counted:
    rows = rows_of_role(config, each.role)
    return counts.of(without_gradients(each.role), rows, compute_dtype(config.distributed), config.batch.layout)
