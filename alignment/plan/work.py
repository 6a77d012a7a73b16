"""What a step computes, and how long that takes: at a given share of a device's best, and at the rate of this one."""

from collections.abc import Callable
from dataclasses import dataclass

from alignment.config.fp8 import Fp8
from alignment.config.online import OnlineConfig, PPOConfig
from alignment.config.run import TrainingConfig
from alignment.distributed.collectives import pick_device
from alignment.distributed.precision import compute_dtype
from alignment.distributed.product_rate import product_rate
from alignment.models.footprint import config_and_trust
from alignment.plan.estimate import Plan
from alignment.plan.roles import PlannedRole
from alignment.tasks.rows import rows_of
from alignment.training.timer import step_flops

MFU = 0.4  # of a device's best: what large models are trained at (Llama 3, arXiv:2407.21783, table 4: 38 to 43%)
FP8_TIMES = 2.0  # as many products a second in 8 bits as in bfloat16 at best: data sheets of H100, H200, L40S, RTX 4090
ROWS, WIDTH = 1024, 4096  # of the products that are timed, at the most: larger ones are no faster
Products = Callable[[PlannedRole], tuple[float, float]]
"""FLOPs of a role for each token, forward and backward."""


@dataclass(frozen=True, slots=True)
class Work:
    """Of a step, over all processes, with rows of the longest kind."""

    tokens: int
    flops: float
    """Products of weights alone; what is computed again for checkpointing is in it."""
    flops_fp8: float
    """Those of them in 8 bits."""

    def seconds(self, plan: Plan, mfu: float) -> float | None:
        peak = plan.hardware.flops
        spared = self.flops_fp8 * (1 - 1 / FP8_TIMES)
        return None if peak is None else (self.flops - spared) / (peak * mfu * plan.hardware.processes)


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
    tokens = config.batch.size * rows_of(config)[0].together
    flops, flops_fp8 = (tokens * _of_token(plan.roles, config, products) for products in (_all, _in_fp8))
    if isinstance(config, OnlineConfig):
        flops += tokens * _all(plan.roles[0])[0]  # drawing, never in 8 bits
    return Work(tokens, flops, flops_fp8)


def _of_token(roles: list[PlannedRole], config: TrainingConfig, products: Products) -> float:
    """Learning, and what reads replies for it."""
    learning = sum(_learning(each, products) for each in roles if each.role.is_trained)
    if not isinstance(config, OnlineConfig):
        return learning
    passes = config.ppo.epochs if isinstance(config, PPOConfig) else 1
    reading = sum(products(each)[0] for each in roles)
    if isinstance(config, PPOConfig) and not any(each.role.key == "reference" for each in roles):
        reading += products(roles[0])[0]  # by the actor without its adapter
    return passes * learning + reading


def _learning(each: PlannedRole, products: Products) -> float:
    """Forward and backward, and forward again where activations are not kept."""
    forward, backward = products(each)
    return forward + backward + forward * each.role.settings.gradient_checkpointing


def _all(each: PlannedRole) -> tuple[float, float]:
    number = each.counted.num_trained + each.counted.num_frozen
    return 2.0 * number, step_flops(number, each.counted.num_trained) - 2.0 * number


def _in_fp8(each: PlannedRole) -> tuple[float, float]:
    number = each.counted.num_fp8
    own = 0 if each.role.settings.fp8 is Fp8.rowwise_with_gw_hp else number
    return 2.0 * number, step_flops(number, own) - 2.0 * number
