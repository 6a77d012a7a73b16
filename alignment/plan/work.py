"""What a step computes, and how long that takes: at a given share of a device's best, and at the rate of this one."""

from dataclasses import dataclass

from alignment.config.online import OnlineConfig, PPOConfig
from alignment.config.run import TrainingConfig
from alignment.distributed.collectives import pick_device
from alignment.distributed.precision import compute_dtype
from alignment.distributed.product_rate import product_rate
from alignment.models.footprint import config_and_trust
from alignment.plan.estimate import Plan
from alignment.plan.roles import PlannedRole, widest_rows
from alignment.training.timer import step_flops

MFU = 0.4  # of a device's best: what large models are trained at (Llama 3, arXiv:2407.21783, table 4: 38 to 43%)


ROWS, WIDTH = 1024, 4096  # of the products that are timed, at the most: larger ones are no faster


@dataclass(frozen=True, slots=True)
class Work:
    """Of a step, over all processes, with rows of the longest kind."""

    tokens: int
    flops: float
    """Products of weights alone; what is computed again for checkpointing is in it."""

    def seconds(self, plan: Plan, mfu: float) -> float | None:
        peak = plan.hardware.flops
        return None if peak is None else self.flops / (peak * mfu * plan.hardware.processes)


def rate_here(plan: Plan) -> float | None:
    """FLOPs a second of all the run's processes together, of products as wide as the model, timed on this machine's
    device; None where the plan is for another. A step, in which not all is products, takes longer than at that rate."""
    config, hardware = plan.config, plan.hardware
    if not hardware.is_here:
        return None
    width: int = config_and_trust(plan.roles[0].role)[0].get_text_config().hidden_size
    sizes = min(ROWS, plan.max_tokens // config.distributed.sequence_parallel), min(WIDTH, width)
    device, dtype = pick_device(config.distributed.device), compute_dtype(config.distributed)
    return hardware.processes * product_rate(device, dtype, *sizes, processes=hardware.local)


def work_of(plan: Plan) -> Work | None:
    """None of a run that takes no steps."""
    config = plan.config
    if not isinstance(config, TrainingConfig):
        return None
    tokens = config.batch.size * widest_rows(config).together
    learning = sum(_learning(each) for each in plan.roles if each.role.is_trained)
    if not isinstance(config, OnlineConfig):
        return Work(tokens, tokens * learning)
    passes = config.ppo.epochs if isinstance(config, PPOConfig) else 1
    reading = sum(2.0 * _weights(each) for each in plan.roles)
    drawing = 2.0 * _weights(plan.roles[0])
    if isinstance(config, PPOConfig) and not any(each.role.key == "reference" for each in plan.roles):
        reading += drawing  # by the actor without its adapter
    return Work(tokens, tokens * (passes * learning + reading + drawing))


def _learning(each: PlannedRole) -> float:
    """A token's, forward and backward, and forward again where activations are not kept."""
    again = 2.0 * _weights(each) if each.role.settings.gradient_checkpointing else 0.0
    return step_flops(_weights(each), each.counted.num_trained) + again


def _weights(each: PlannedRole) -> int:
    return each.counted.num_trained + each.counted.num_frozen
