"""What each of a run's phases takes in one process: a model's passes, forward and backward, and the ends of steps."""

from dataclasses import dataclass, replace

from alignment.distributed.precision import compute_dtype
from alignment.models.counted import Counted, Part, Phase
from alignment.plan.buffers import buckets, casts, gathered, laid_together
from alignment.plan.passes import PassTokens
from alignment.plan.roles import Planned, PlannedRole

NAMES = {
    Part.copies: "weights in half precision",
    Part.attention: "attention",
    Part.layers: "layers",
    Part.logits: "logits",
    Part.gradients: "gradients",
}
EXCHANGED = "queries, keys and values sent"
BUCKETS, LAID_TOGETHER = "buckets of gradients", "gradients laid together"
SMALL_WEIGHTS, PAGES, UPDATING = "small weights, whole", "pages of the largest weight", "what an update makes"


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


def learning(
    config: Planned, each: PlannedRole, held: float, processes: int, tokens: PassTokens, stays: dict[str, float]
) -> list[PlannedPhase]:
    """A role's pass when it has most, beside what is `held` with its gradients and `stays`; its backward pass, where
    ZeRO lays gradients together as they come; and the end of a step's last pass, where that may have more."""
    key, distributed, size = each.role.key, config.distributed, tokens.learned
    # Under ZeRO 3 gradients have their memory at all times, and some optimizers keep none.
    is_only = tokens.is_only and each.held.gradients > 0 and not each.held.keeps_gradients
    before = held - each.held.on_device + each.held.between_steps if is_only else held
    beside = {LAID_TOGETHER: share} if (share := laid_together(each.held, distributed, processes)) else {}
    is_cut = bool(beside) and distributed.zero == 2
    is_late = is_only and distributed.zero in (1, 2)  # whose buckets come with a step's first gradient
    parts = _parts(config, each, processes, size, is_only=is_only and not is_cut) | stays
    first = {name: part for name, part in parts.items() if name != BUCKETS} if is_late else parts
    found = [PlannedPhase(f"learning, {key}", first, before)]
    if is_cut or is_late:
        parts = _parts(config, each, processes, size, is_only=is_only and not is_cut, begins=Phase.backward) | stays
        parts |= beside if is_cut else {}
        found.append(PlannedPhase(f"the backward pass, {key}", parts, before))
    if is_only or beside:
        ends = {name: parts[name] for name in (BUCKETS, SMALL_WEIGHTS) if name in parts}
        found.append(PlannedPhase(f"the end of a step's last pass, {key}", ends | beside, held))
    made = {PAGES: each.held.page, UPDATING: each.held.update}
    if any(made.values()):
        made = {name: size for name, size in made.items() if size}
        made |= beside if distributed.zero in (1, 2) else {}
        found.append(PlannedPhase(f"an update, {key}", made | stays, held))
    return found


def reading(
    config: Planned,
    each: PlannedRole,
    counted: Counted,
    held: float,
    processes: int,
    tokens: PassTokens,
    stays: dict[str, float],
) -> PlannedPhase:
    """A pass without gradients; `counted` is the role in one, whose weights are those that it has while it learns: in
    float32 where they train."""
    passes, few = counted.passes.copy(), counted.few.copy()
    for own, known in ((passes, each.counted.passes), (few, each.counted.few)):
        own[:, :, Part.copies] = known[:, Phase.forward, None, Part.copies]
    read = replace(each.counted, passes=passes, few=few)
    frozen = replace(each, role=replace(each.role, is_trained=False), counted=read)
    return PlannedPhase(f"reading, {each.role.key}", _parts(config, frozen, processes, tokens.read) | stays, held)


def _parts(
    config: Planned,
    each: PlannedRole,
    processes: int,
    tokens: int,
    *,
    is_only: bool = False,
    begins: Phase = Phase.forward,
) -> dict[str, float]:
    """Bytes, by what they are for, of a role's pass of so many tokens in the phase that has most, of those from
    `begins` on.

    Args:
        is_only: whether it is all of a step, and the gradients that it has made by then are to be in it.
    """
    distributed, sharing = config.distributed, config.distributed.sequence_parallel
    own = -(-tokens // sharing)
    sizes = each.counted.during(own, is_only=is_only, begins=begins)
    sizes[Part.copies] = casts(float(sizes[Part.copies]), each.counted.layer, distributed)
    parts = {NAMES[part]: float(sizes[part]) for part in NAMES}
    parts[EXCHANGED] = own * each.counted.exchanged(sharing, compute_dtype(distributed).itemsize)
    parts[BUCKETS] = buckets(distributed, each.counted) * each.role.is_trained
    parts["gathered weights"] = gathered(each.counted, distributed, processes)
    return {name: size for name, size in parts.items() if size > 0}
