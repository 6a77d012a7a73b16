"""What a run takes beside its devices: the memory of the CPU, while models are read and saved, and the disk."""

from dataclasses import dataclass

from alignment.config.run import TrainingConfig
from alignment.models.footprint import config_and_trust
from alignment.plan.buffers import FLOAT
from alignment.plan.estimate import Plan, on_host
from alignment.plan.roles import PlannedRole
from alignment.plan.saving import copied, in_checkpoint, saved


@dataclass(frozen=True, slots=True)
class Host:
    """Bytes."""

    offloaded: float
    """In the memory of one machine, of all its processes, for as long as the run lasts."""
    activations: float
    """The same, while passes wait for their backward passes."""
    loading: float
    """The same, beside a GPU, while the models are read."""
    saving: float
    """In the main process, while its model is saved."""
    copied: float
    """Of one machine's processes, of a checkpoint while training goes on, until it is written."""
    checkpoint: float
    """On disk, of all processes."""
    kept: int
    """Checkpoints that are there at once, while one more is written."""
    model: float
    """On disk, as it is saved."""


def host_of(plan: Plan) -> Host:
    config, local, processes = plan.config, plan.hardware.local, plan.hardware.processes
    is_training = isinstance(config, TrainingConfig)
    whole, adapter = saved(plan.roles[0]) if is_training else (0.0, 0.0)
    return Host(
        offloaded=local * sum(each.held.in_cpu_memory for each in plan.roles),
        activations=local * on_host(plan),
        loading=_loading(plan) if plan.hardware.is_gpu else 0.0,
        saving=max(whole, adapter),
        copied=local * copied(config, plan.roles, processes, "cuda") if plan.hardware.is_gpu else 0.0,
        checkpoint=processes * in_checkpoint(config, plan.roles, processes),
        kept=config.checkpoint.keep + 1 if isinstance(config, TrainingConfig) else 0,
        model=whole + adapter,
    )


def _loading(plan: Plan) -> float:
    """The models are read one after the other, from files that all processes of a machine map: a weight is converted
    and on its device before the next one is read, of all processes at once, or under ZeRO 3, but where it is packed, of
    the main one. One of `model.init` is drawn whole by each process."""
    sizes = []
    for each in plan.roles:
        if each.role.settings.path is None:
            number = each.counted.num_trained + each.counted.num_frozen
            sizes.append(float(plan.hardware.local * number * FLOAT))
        else:
            is_of_one = plan.config.distributed.zero == 3 and not each.counted.scales
            readers = 1 if is_of_one else plan.hardware.local
            sizes.append(readers * _largest(each))
    return max(sizes, default=0.0)


def _largest(each: PlannedRole) -> float:
    """Of its weights at the most: the embeddings', which are held in float32, or one of a layer."""
    hidden: int = config_and_trust(each.role)[0].get_text_config().hidden_size
    return max(each.counted.num_pieces * hidden * float(FLOAT), each.counted.layer)
