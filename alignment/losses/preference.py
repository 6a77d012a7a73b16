"""What all losses on preference pairs share: their metrics, and the mean over pairs that may count unequally."""

from torch import Tensor

from alignment.losses.checks import pairwise
from alignment.losses.types import Mean


def preference_metrics(
    chosen_rewards: Tensor, rejected_rewards: Tensor, weight: Tensor | None = None
) -> dict[str, Mean]:
    """Means over the pairs of rewards [B]; `rewards/accuracy` is the share r_chosen > r_rejected: a tie is a miss.

    weight: [B]; those of 0 are no pairs, as online DPO has them, the others count alike.
    """
    chosen, rejected = chosen_rewards.detach(), rejected_rewards.detach()
    mask = None if weight is None else weight > 0
    return {
        "rewards/chosen": Mean.of(chosen, mask),
        "rewards/rejected": Mean.of(rejected, mask),
        "rewards/margin": Mean.of(chosen - rejected, mask),
        "rewards/accuracy": Mean.of(chosen > rejected, mask),
    }


def mean_over_pairs(losses: Tensor, weight: Tensor | None) -> Mean:
    """sum(weight * loss) over sum(weight), both [B]: a pair of weight 2 counts as two. None: each counts 1.

    Raises ValueError for wrong shapes and dtypes.
    """
    if weight is None:
        return Mean.of(losses)
    losses, weight = pairwise(losses=losses, weight=weight)
    return Mean((weight * losses).sum(), weight.sum())
