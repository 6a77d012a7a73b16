"""What replies look like beside what they score: repetition, length, and whether length is what is paid for.

Metrics travel as `Mean`s. What is no mean (a correlation, a square root) is made by `derived`, at the end, from means:
so it is exact over any number of micro-batches, iterations and processes.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from alignment.config.metrics import STDERR
from alignment.generation.samples import Samples
from alignment.losses import Mean

NGRAMS = (1, 2, 3)
_X, _Y, _XX, _YY, _XY = (f"moments/{name}" for name in ("length", "reward", "length2", "reward2", "length_reward"))
_GOLD, _GOLD2 = "moments/gold", "moments/gold2"
_CONSTANT = 1e-12  # a variance below this share of the mean square is rounding


def diagnostics(samples: Samples, rewards: Tensor) -> dict[str, Mean]:
    """Their `diversity`, and the moments that `derived` reads.

    rewards: [G, n], the learned score of each reply, without penalties: with them, length is paid for by intention.
    """
    lengths = torch.tensor([len(reply.ids) for row in samples.replies for reply in row], dtype=torch.float64)
    return {**diversity(samples), **moments(lengths, rewards.flatten().double().cpu())}


def diversity(samples: Samples) -> dict[str, Mean]:
    """`distinct_1`, `_2`, `_3` over all replies. Those of two parts do not add to those of the whole: an n-gram that is
    in both is one."""
    replies = [reply for row in samples.replies for reply in row]
    # The token that ended a reply is no choice of words: it is the same in all of them.
    bodies = [reply.ids[:-1] if reply.finished else reply.ids for reply in replies]
    return {f"distinct_{n}": distinct_ngrams(bodies, n) for n in NGRAMS}


def distinct_ngrams(replies: Sequence[np.ndarray], n: int) -> Mean:
    """Distinct n-grams of token ids as a share of all n-grams, over all replies together (Li et al. 1510.03055).

    Tokens, not words: there are languages without spaces. The share falls with the number of replies, so it compares
    iterations of one run, and not runs of different batch sizes. No n-gram at all: a Mean that counts nothing.
    """
    grams = [np.lib.stride_tricks.sliding_window_view(ids, n) for ids in replies if len(ids) >= n]
    table = np.concatenate(grams) if grams else np.empty((0, n), dtype=np.int32)
    return Mean(torch.tensor(float(len(np.unique(table, axis=0)))), torch.tensor(len(table)))


def moments(lengths: Tensor, rewards: Tensor) -> dict[str, Mean]:
    """E[x], E[y], E[x^2], E[y^2] and E[x y] of lengths x (tokens) and rewards y: both [R], float64."""
    values = {_X: lengths, _Y: rewards, _XX: lengths.square(), _YY: rewards.square(), _XY: lengths * rewards}
    return {name: Mean.of(value) for name, value in values.items()}


def gold_metrics(scores: Tensor) -> dict[str, Mean]:
    """`gold`, and the moments for its standard error. scores: of each reply, any shape."""
    exact = scores.double()
    return {"gold": Mean.of(scores), _GOLD: Mean.of(exact), _GOLD2: Mean.of(exact.square())}


def standard_errors(row: dict[str, float], count: int) -> dict[str, float]:
    """`stderr/reward` and `stderr/gold`: of the means over `count` independent replies, s / sqrt(count), from the
    moments that `derived` takes away; nothing of a single reply."""
    found = {"reward": (_Y, _YY), "gold": (_GOLD, _GOLD2)}
    if count < 2:
        return {}
    errors = {}
    for name, (first, second) in found.items():
        if second in row:
            variance = row[second] - row[first] ** 2
            is_noise = variance <= _CONSTANT * row[second]
            errors[f"{STDERR}{name}"] = 0.0 if is_noise else math.sqrt(variance / (count - 1))
    return errors


def derived(row: dict[str, float]) -> dict[str, float]:
    """A row of means with its moments replaced by what they make, and the square root of its KL.

    length                      E[x], tokens a reply
    length/reward_correlation   (E[xy] - E[x] E[y]) / sqrt(Var x Var y), Pearson's, over the replies of the row;
                                left out where all lengths or all rewards are equal
    kl/sqrt                     sqrt(max(kl, 0)), the distance of Gao et al. 2210.10760 (an estimate may be below 0)
    """
    row = dict(row)
    for name in (_GOLD, _GOLD2):
        row.pop(name, None)
    if _X in row:
        x, y, xx, yy, xy = (row.pop(name) for name in (_X, _Y, _XX, _YY, _XY))
        row["length"] = x
        if xx - x * x > _CONSTANT * xx and yy - y * y > _CONSTANT * yy:
            correlation = (xy - x * y) / math.sqrt((xx - x * x) * (yy - y * y))
            row["length/reward_correlation"] = max(-1.0, min(1.0, correlation))
    if "kl" in row:
        row["kl/sqrt"] = math.sqrt(max(row["kl"], 0.0))
    return row
