"""The replies to one prompt compared with each other: a policy gradient without a critic.

GRPO (Shao et al. 2402.03300), Dr. GRPO (Liu et al. 2503.20783) and RLOO (Ahmadian et al. 2402.14740) take a reply as
one action, and what is usual among the replies to its prompt as the baseline. The rest is PPO's.
"""

import torch
from torch import Tensor

from alignment.config.ppo import AdvantageEstimator
from alignment.generation.samples import Samples
from alignment.losses import Mean, dr_grpo_advantages, grpo_advantages, rloo_advantages
from alignment.rl.rewards import shape_scores
from alignment.rl.rollouts import Rollouts
from alignment.training.metrics import Metrics

ESTIMATORS = {
    AdvantageEstimator.grpo: grpo_advantages,
    AdvantageEstimator.dr_grpo: dr_grpo_advantages,
    AdvantageEstimator.rloo: rloo_advantages,
}
REDRAW_SEED = 2**40  # times the attempt, beside a step's own seed: no other step draws with it


def group_advantages(rewards: Tensor, replies: int, estimator: AdvantageEstimator) -> Tensor:
    """[C, T], of the tokens' rewards [C, T] of C replies, `replies` to each prompt: each token of a reply has the
    reply's, which is compared by the sum of its rewards."""
    of_reply = ESTIMATORS[estimator](rewards.sum(1).view(-1, replies))
    return of_reply.view(-1, 1).expand_as(rewards)


def all_alike(scores: Tensor) -> Tensor:
    """[G] bool, of scores [G, n]: whether the replies to a prompt all score alike, which teaches nothing."""
    return (scores == scores[:, :1]).all(1)


def not_all_alike(scores: Tensor) -> Tensor | None:
    """[G] bool, the prompts whose replies can be learned from; None, which is every prompt, where there is none."""
    differ = ~all_alike(scores)
    return differ if differ.any() else None


def redraw_alike(
    rollouts: Rollouts, samples: Samples, scores: Tensor, step: int, times: int
) -> tuple[Samples, Tensor, Metrics]:
    """Step `step`'s replies and scores, where the replies to a prompt all score alike drawn anew, up to so many times;
    and the shares of prompts that still score alike, and that were drawn anew."""
    redrawn = torch.zeros(len(scores), dtype=torch.bool)
    for attempt in range(1, times + 1):
        places = all_alike(scores).nonzero()[:, 0].tolist()
        if not places:
            break
        redrawn[places] = True
        rows = [rollouts.batches.step_rows(step - 1)[place] for place in places]
        with rollouts.timer.part("generate"):
            seed = rollouts.seed(step) + attempt * REDRAW_SEED
            other = rollouts.draw(rollouts.prompts.train, rows, seed, scores.shape[1])
        with rollouts.timer.part("score"):
            samples = samples.with_replies(places, other)
            scores[places] = shape_scores(rollouts.scorer(other)[0], other, rollouts.config)
    metrics = Metrics({"groups/alike": Mean.of(all_alike(scores))})
    return samples, scores, metrics | ({"groups/redrawn": Mean.of(redrawn)} if times else {})
