"""Whether a run has room at all: what its weights, gradients and optimizers take, by the size of the models' files,
against all the memory that a device has. Less than a plan, which counts what passes take too, and asked of each run."""

import torch

from alignment.config.errors import ConfigError
from alignment.config.folders import find_model
from alignment.config.run import RunConfig, TrainingConfig
from alignment.config.supervised import ReferencedConfig
from alignment.config.tasks import RejectionConfig
from alignment.distributed import collectives
from alignment.distributed.device import total_memory
from alignment.distributed.precision import compute_dtype
from alignment.models.counted import Role
from alignment.models.files import weights_in
from alignment.models.held import Held, States, held_of, together
from alignment.models.optimizer_states import gradient_bytes, least_state_bytes
from alignment.models.quantized import LEAST_BITS
from alignment.tasks.max_tokens import roles_of

GB = 1e9
WAY = "`alignment plan` in place of `alignment run` says which settings would do, or how many GPUs (--for 8x80GB)"
FLOAT = torch.float32.itemsize


def require_room(config: RunConfig) -> None:
    """Raises:
    ConfigError: what has to be there before the first step is more than the device has, or the machine beside a CPU.
    """
    if not isinstance(config, TrainingConfig | RejectionConfig):
        return
    device, processes = collectives.pick_device(config.distributed.device), collectives.size()
    is_gpu = device.type == "cuda"
    here = 1 if is_gpu else min(processes, max(config.launch.processes, config.cluster.num_tasks_per_node()))
    needs = here * together(
        _held(role, config, processes, is_gpu=is_gpu)
        for role in roles_of(config)
        if not (isinstance(config, ReferencedConfig) and role.key == "reference.path")  # gone when the policy comes
    )
    has = total_memory(device)
    if needs > has:
        where = "the GPU has" if is_gpu else "this machine has"
        what = f"weights, gradients and optimizer take at least {needs / GB:.1f} GB, and {where} {has / GB:.1f} GB"
        raise ConfigError(f"{what}; {WAY}")


def _held(role: Role, config: TrainingConfig | RejectionConfig, processes: int, *, is_gpu: bool) -> Held:
    trained, frozen = _bytes(role, config)
    states = States() if role.train is None else States(least_state_bytes(role.train) * trained / FLOAT)
    return held_of(
        trained,
        frozen,
        config.distributed,
        processes,
        is_gpu=is_gpu,
        averages=role.copies,
        states=states,
        gradients=gradient_bytes(role.train, trained),
    )


def _bytes(role: Role, config: TrainingConfig | RejectionConfig) -> tuple[float, float]:
    """Of the weights that train, in float32, and of the others, at the least; of a random model nothing is known."""
    settings = role.settings
    if settings.path is None:
        return 0.0, 0.0
    folder = find_model(settings.path, role.key, trusted=settings.trust_remote_code)
    number = weights_in(folder.path, role.key)
    if role.is_trained and not settings.keeps_base:
        return (0.0, FLOAT * number) if settings.lora.rank else (FLOAT * number, 0.0)
    if settings.is_packed:  # all of them, where embeddings and heads are not
        return 0.0, LEAST_BITS[settings.quantization] / 8 * number
    return 0.0, compute_dtype(config.distributed).itemsize * number
