"""The models of a run, each counted and shared out among its processes."""

from dataclasses import dataclass, replace

import torch

from alignment.config.batch import Layout
from alignment.config.online import OnlineDPOConfig, PPOConfig
from alignment.config.ppo import Share
from alignment.config.run import TrainingConfig
from alignment.config.tasks import RejectionConfig
from alignment.distributed.precision import compute_dtype
from alignment.models.counted import Counted, Role, Rows
from alignment.models.footprint import config_and_trust, counted_of, states_of_role
from alignment.models.held import Held, States, held_of
from alignment.models.optimizer_states import FLOAT, gradient_bytes, has_momentum, update_bytes
from alignment.models.weight_kinds import WeightKind, is_for
from alignment.tasks.max_tokens import roles_of
from alignment.tasks.rows import rows_of

Planned = TrainingConfig | RejectionConfig


class Counts:
    """Models that have been counted, each once: settings that are compared leave most of them as they are."""

    def __init__(self) -> None:
        self._found: dict[str, Counted] = {}
        self._of_passes: dict[str, Counted] = {}  # under whichever optimizer

    def of(self, role: Role, rows: Rows, compute: torch.dtype, layout: Layout) -> Counted:
        """As `counted_of`."""
        settings = replace(role.settings, tokenizer=None, chat_template=None, resize_embeddings=False)
        role = replace(role, settings=settings if role.settings.path is not None else role.settings)
        train = role.train
        states = None if train is None else (train.optimizer, has_momentum(train), bool(train.weight_decay))
        passes = role.settings, role.is_scalar, role.is_trained, role.is_in_ppo, rows, compute, layout
        key, of_passes = repr((passes, states)), repr(passes)
        if key not in self._found:
            known = self._of_passes.get(of_passes)
            if known is None:
                self._found[key] = counted_of(role, rows, compute, layout)
            else:
                self._found[key] = replace(known, states=states_of_role(role, compute))
            self._of_passes[of_passes] = self._found[key]
        return self._found[key]


@dataclass(frozen=True, slots=True)
class PlannedRole:
    """A model in one of the run's processes."""

    role: Role
    counted: Counted
    held: Held
    is_alone: bool = False
    """Whether it is there before the others alone, and gone when they come."""
    is_moved: bool = False
    """Whether it waits in the memory of the CPU while the others learn."""
    on: Counted | None = None
    """Of an adapter on another's backbone what reads through both."""
    texts: Counted | None = None
    """The policy as it reads PPO-ptx's texts, which have passes of their own, where there are any."""


def planned_roles(config: Planned, processes: int, *, is_gpu: bool, counts: Counts) -> list[PlannedRole]:
    """Raises:
    as `counted_of`.
    """
    compute, layout = compute_dtype(config.distributed), config.batch.layout
    found = []
    for role in roles_of(config):
        counted = counts.of(role, rows_of_role(config, role), compute, layout)
        held = held_of(
            counted.trained,
            counted.frozen,
            config.distributed,
            processes,
            is_gpu=is_gpu,
            averages=role.copies,
            states=counted.states,
            scales=counted.scales,
            gradients=gradient_bytes(role.train, counted.trained),
            in_a_group=_grouped_alone(role, counted),
            update=_update(config, role, counted, processes),
        )
        is_first = role.key == "reference.path" and not role.is_trained and not isinstance(config, PPOConfig)
        is_moved = isinstance(config, PPOConfig) and config.roles.offload and not role.is_trained and is_gpu
        of_texts = texts_of_role(config, role)
        texts = None if of_texts is None else counts.of(role, of_texts, compute, layout)
        is_alone = is_first and _reads_first(config)
        found.append(PlannedRole(role, counted, held, is_alone=is_alone, is_moved=is_moved, texts=texts))
    if isinstance(config, PPOConfig) and config.roles.share is Share.lora:
        found += _adapters(config, found[0], processes, is_gpu=is_gpu, counts=counts)
    return found


def without_gradients(role: Role) -> Role:
    settings = replace(role.settings, gradient_checkpointing=False, activation_offloading=False)
    return Role(role.key, settings, is_scalar=role.is_scalar)


def _update(config: Planned, role: Role, counted: Counted, processes: int) -> float:
    """Bytes that the optimizer makes as it updates the largest weight; ZeRO lays a process's share out as one."""
    if not config.distributed.zero:
        return counted.states.update
    return update_bytes(role.train, torch.Size([counted.num_trained // processes])) if role.is_trained else 0.0


def _grouped_alone(role: Role, counted: Counted) -> float:
    """Bytes of the embeddings, where all weights train and the optimizer is not for these: they have AdamW, in a group
    of their own."""
    is_frozen = not role.is_trained or role.settings.has_adapter
    if is_frozen or role.train is None or is_for(role.train.optimizer, WeightKind.embedding, 2):
        return 0.0
    hidden: int = config_and_trust(role)[0].get_text_config().hidden_size
    return float(counted.num_pieces * hidden * FLOAT)


def _reads_first(config: Planned) -> bool:
    """Whether another model that is the reference is read before the policy is there: where rows do not change."""
    return not isinstance(config, RejectionConfig) and not config.replies


def _adapters(
    config: PPOConfig, actor: PlannedRole, processes: int, *, is_gpu: bool, counts: Counts
) -> list[PlannedRole]:
    """Of the roles on the actor's backbone: as large as the actor's own. The critic's passes are no larger than the
    actor's, whose logits it has not; what judges reads more at once, through all of the backbone."""
    trained, none = actor.counted.trained, 0 * actor.counted.passes
    small = min(trained, actor.counted.small)
    empty = replace(actor.counted, passes=none, few=none, num_frozen=0, small=small, scales=0.0)
    roles = [("critic", True)] if config.advantage.has_critic else []
    roles += [("reward.path", False)] if config.reward.path is not None else []
    found = []
    for key, trains in roles:
        own = (trained, 0.0) if trains else (0.0, trained)
        number = empty.num_trained
        counted = replace(
            empty,
            trained=own[0],
            frozen=own[1],
            num_trained=number * trains,
            num_frozen=number * (not trains),
            num_shared=number,
            states=empty.states if trains else States(),
        )
        role = Role(key, actor.role.settings, is_scalar=True, is_trained=trains)
        update = _update(config, replace(role, train=config.train), counted, processes)
        held = held_of(*own, config.distributed, processes, is_gpu=is_gpu, states=counted.states, update=update)
        on = None
        if not trains:
            rows, compute = rows_of_role(config, role), compute_dtype(config.distributed)
            read = counts.of(without_gradients(role), rows, compute, config.batch.layout)
            on = replace(actor.counted, passes=read.passes, few=read.few)
        found.append(PlannedRole(role, counted, held, on=on))
    return found


def rows_of_role(config: Planned, role: Role) -> Rows:
    """The longest that one pass of the model has, but for `texts_of_role`: of pairs of replies a prompt with two."""
    rows = rows_of(config)[0]
    if isinstance(config, OnlineDPOConfig) and not role.is_scalar:
        return Rows(rows.prompt, rows.completion, 2)
    return rows


def texts_of_role(config: Planned, role: Role) -> Rows | None:
    """Those of PPO-ptx, which the policy alone reads."""
    has_texts = isinstance(config, PPOConfig) and config.ptx.weight > 0
    return rows_of(config)[-1] if has_texts and role.is_trained and not role.is_scalar else None


def widest_rows(config: Planned) -> Rows:
    """The longest that one pass has, by their limits."""
    return max(rows_of(config), key=lambda each: each.together)
