"""In how many passes a step is learned from."""

from alignment.config.online import OnlineDPOConfig, PPOConfig
from alignment.config.run import TrainingConfig
from alignment.plan.roles import Planned, PlannedRole


def is_one_pass(config: Planned, each: PlannedRole, processes: int, max_tokens: int) -> bool:
    """Whether all that a process learns from in one step goes into one pass, so that gradients are there from its
    backward pass on. Under ZeRO 3 their memory is there at all times, and some optimizers keep none."""
    is_kept = each.held.gradients > 0 and not each.held.keeps_gradients
    if not is_kept or not isinstance(config, TrainingConfig):
        return False
    rows = config.batch.size
    if isinstance(config, OnlineDPOConfig):
        rows *= config.num_samples  # of all pairs more than of the best and the worst
    if isinstance(config, PPOConfig):
        rows = -(-rows // config.ppo.mini_batches)
        if config.ptx.weight and not each.role.is_scalar:
            return False
    parts = processes // config.distributed.sequence_parallel
    return -(-rows // parts) * each.counted.row <= max_tokens
