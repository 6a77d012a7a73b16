"""The replies to one prompt compared with each other: a policy gradient without a critic.

GRPO (Shao et al. 2402.03300), Dr. GRPO (Liu et al. 2503.20783) and RLOO (Ahmadian et al. 2402.14740) take a reply as
one action whose baseline are the other replies. PPO's `collect` and `make_experience` call these; the loss and its
normalization are in objectives.py, each method's own settings in its recipe.
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


def group_advantages(rewards: Tensor, replies: int, estimator: AdvantageEstimator) -> Tensor:
    """[C, T], of tokens' rewards [C, T]: sums of replies compared within a prompt; each token has its reply's."""
    of_reply = ESTIMATORS[estimator](rewards.sum(1).view(-1, replies))
    return of_reply.view(-1, 1).expand_as(rewards)


def all_alike(scores: Tensor) -> Tensor:
    """[G] bool, of scores [G, n]: prompts whose replies teach nothing, but for a KL in the reward that differs."""
    return (scores == scores[:, :1]).all(1)


def not_all_alike(scores: Tensor) -> Tensor | None:
    """[G] bool, the prompts whose replies score differently; None, to keep every prompt, where there is none."""
    differ = ~all_alike(scores)
    return differ if differ.any() else None


def redraw_alike(
    rollouts: Rollouts, samples: Samples, scores: Tensor, step: int, times: int
) -> tuple[Samples, Tensor, Metrics]:
    """The replies and scores of a step, drawn anew for prompts whose replies all score alike, up to `times` times; and
    the shares of prompts that still do, and that were drawn anew."""
    redrawn = torch.zeros(len(scores), dtype=torch.bool)
    for attempt in range(1, times + 1):
        if not (places := all_alike(scores).nonzero()[:, 0].tolist()):
            break
        redrawn[places] = True
        rows = [rollouts.batches.step_rows(step - 1)[place] for place in places]
        with rollouts.timer.part("generate"):
            other = rollouts.draw(rollouts.prompts.train, rows, rollouts.seed(step, attempt), scores.shape[1])
        with rollouts.timer.part("score"):
            samples = samples.with_replies(places, other)
            scores[places] = shape_scores(rollouts.scorer.reward.score(other), other, rollouts.config)
    metrics = Metrics({"groups/alike": Mean.of(all_alike(scores))})
    return samples, scores, metrics | ({"groups/redrawn": Mean.of(redrawn)} if times else {})
