"""The metrics that all losses on preference pairs share."""

from torch import Tensor

from alignment.losses.types import Mean


def preference_metrics(chosen_rewards: Tensor, rejected_rewards: Tensor) -> dict[str, Mean]:
    """Means over the pairs of rewards [B]; `rewards/accuracy` is the share r_chosen > r_rejected: a tie is a miss."""
    chosen, rejected = chosen_rewards.detach(), rejected_rewards.detach()
    return {
        "rewards/chosen": Mean.of(chosen),
        "rewards/rejected": Mean.of(rejected),
        "rewards/margin": Mean.of(chosen - rejected),
        "rewards/accuracy": Mean.of(chosen > rejected),
    }
